"""One Kafka that trusts nobody for all tests here, with a user for each role."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from pydantic import SecretStr

from deploy.local.kafka import Kafka
from deploy.local.kafka_security import KafkaSecurity
from tests.integration.security.certificates import Authority
from tests.integration.security.identity_provider import IdentityProvider
from workers.settings import KafkaSettings

TIMEOUT_S = 30.0
ROLES = ("worker", "submitter", "reader", "redriver", "replayer")
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


def add_users(admin: AdminClient, passwords: dict[str, str]) -> None:
    """Make users who log in by SCRAM."""
    hashing = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    wanted = [UserScramCredentialUpsertion(user, hashing, text.encode()) for user, text in passwords.items()]
    for added in admin.alter_user_scram_credentials(wanted).values():
        added.result(TIMEOUT_S)
