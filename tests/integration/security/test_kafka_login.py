"""Every way to reach a Kafka that is not open to all, and what a user reads who takes a wrong one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.integration.security.conftest import Broker
from workers.errors import Unavailable, UserError
from workers.kafka import ADMIN_TIMEOUT_S, create_topics, find_topics, make_consumer
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


def test_oauth(broker: Broker) -> None:
    ask(oauth(broker))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"password": "wrong"}, "no way into Kafka at .*invalid credentials with SASL mechanism SCRAM-SHA-512"),
        ({"username": "stranger"}, "no way into Kafka at .*invalid credentials"),
        ({"ca_file": None}, "no way into Kafka at .*certificate verify failed"),
    ],
)
def test_who_is_turned_away_is_told_why_within_seconds(broker: Broker, wrong: dict[str, object], sentence: str) -> None:
    started = time.monotonic()

    with pytest.raises(Unavailable, match=sentence):
        create_topics(broker.login("worker", **wrong))

    assert time.monotonic() - started < ADMIN_TIMEOUT_S


def test_a_listener_that_asks_for_a_certificate_turns_others_away(broker: Broker) -> None:
    with pytest.raises(Unavailable, match=r"no way into Kafka at .*certificate required"):
        ask(tls(broker, bootstrap_servers=broker.server.bootstrap_servers))


def test_a_wrong_client_secret_is_turned_away_by_the_identity_provider(broker: Broker) -> None:
    with pytest.raises(Unavailable, match=r"no way into Kafka at .*OAUTHBEARER token.*invalid_client"):
        ask(oauth(broker, password="wrong"))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"ca_file": "/missing.pem"}, r"the settings of kafka can't work: .*ssl\.ca\.location"),
        ({"password": None, "password_file": "/missing"}, r"kafka\.password_file names /missing, which can't be read"),
        ({"client": {"no.such.thing": "1"}}, r"the settings of kafka can't work: .*no\.such\.thing"),
    ],
)
def test_a_setting_that_cannot_work_is_named(broker: Broker, wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make_consumer(broker.login("worker", **wrong))


def oauth(broker: Broker, **more: object) -> KafkaSettings:
    login = {
        "sasl_mechanism": "OAUTHBEARER",
        "oauth_token_url": broker.provider.token_url,
        # The provider's certificate is a matter of its own.
        "client": {"https.ca.location": str(broker.authority.ca_file)},
    }
    return broker.login("worker", **(login | more))
