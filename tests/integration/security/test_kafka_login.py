"""Every way to reach a Kafka that is not open to all, and what a user reads who takes a wrong one."""

from __future__ import annotations

from pathlib import Path

from tests.integration.security.conftest import Broker
from workers.kafka import find_topics
from workers.settings import KafkaSettings


def ask(settings: KafkaSettings) -> None:
    """Raise unless the broker lets us in; to find that we may do nothing there is enough."""
    find_topics(settings, ["scans"])


def tls(broker: Broker, **more: object) -> KafkaSettings:
    address = {"bootstrap_servers": broker.server.tls_servers, "security_protocol": "SSL"}
    return KafkaSettings.model_validate(address | {"ca_file": broker.authority.ca_file} | more)


def test_tls(broker: Broker) -> None:
    ask(tls(broker))


def test_mutual_tls(broker: Broker) -> None:
    ours = broker.authority.issue("someone")

    ask(
        tls(
            broker,
            bootstrap_servers=broker.server.bootstrap_servers,
            cert_file=ours.cert_file,
            key_file=ours.key_file,
        )
    )


def test_scram(broker: Broker) -> None:
    ask(broker.login("worker"))


def test_a_password_may_lie_in_a_file(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(broker.passwords["worker"] + "\n")

    ask(broker.login("worker", password=None, password_file=tmp_path / "password"))


def oauth(broker: Broker, **more: object) -> KafkaSettings:
    login = {
        "sasl_mechanism": "OAUTHBEARER",
        "oauth_token_url": broker.provider.token_url,
        # The provider's certificate is a matter of its own.
        "client": {"https.ca.location": str(broker.authority.ca_file)},
    }
    return broker.login("worker", **(login | more))


def test_oauth(broker: Broker) -> None:
    ask(oauth(broker))
