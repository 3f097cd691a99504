from __future__ import annotations

from pathlib import Path

import pytest

from workers.errors import UserError
from workers.settings import load_settings


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MRISTREAM_CONFIG", raising=False)


def test_arguments_win_over_environment_over_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "mristream.yaml"
    config.write_text("kafka: {group_id: file, scans_topic: file, dead_topic: file}\n")
    monkeypatch.setenv("MRISTREAM_CONFIG", str(config))
    monkeypatch.setenv("MRISTREAM_KAFKA__GROUP_ID", "environment")
    monkeypatch.setenv("MRISTREAM_KAFKA__SCANS_TOPIC", "environment")

    kafka = load_settings(kafka={"group_id": "argument"}).kafka

    assert (kafka.group_id, kafka.scans_topic, kafka.dead_topic) == ("argument", "environment", "file")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("MRISTREAM_WORKER__BATCH_SCANS", "0", "worker.batch_scans: .*greater than 0"),
        ("MRISTREAM_WORKER__BACH_SCANS", "8", "worker.bach_scans"),
        ("MRISTREAM_WORKERS__BATCH_SCANS", "8", "MRISTREAM_WORKERS__BATCH_SCANS is no setting"),
        ("MRISTREAM_CONFIG", "/not/there.yaml", "/not/there.yaml, which is not a file"),
    ],
)
def test_a_bad_or_misspelt_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(UserError, match=problem):
        load_settings()


@pytest.mark.parametrize("text", ["kafkas: {group_id: x}\n", "kafka: [\n"])
def test_a_bad_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    monkeypatch.setenv("MRISTREAM_CONFIG", str(tmp_path / "c.yaml"))

    with pytest.raises(UserError):
        load_settings()


def test_a_login_in_the_stores_address_is_taken_out_of_it() -> None:
    store = load_settings(store={"uri": "rediss://scans:p%40ss@host:1/2?ttl=5"}).store

    assert store.uri == "rediss://host:1/2?ttl=5"
    assert (store.username, store.read_password()) == ("scans", "p@ss")


def test_a_login_in_the_stores_address_goes_before_one_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRISTREAM_STORE__PASSWORD", "of another server")

    assert load_settings(store={"uri": "redis://:here@host"}).store.read_password() == "here"
    assert load_settings(store={"uri": "redis://host"}).store.read_password() == "of another server"


def test_a_password_from_a_file_is_read_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(" with spaces \n")

    kafka = load_settings(store={"password_file": tmp_path / "password"}).store

    assert kafka.read_password() == " with spaces "


def test_a_password_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"store\.password_file names .*missing, which can't be read"):
        load_settings(store={"password_file": tmp_path / "missing"}).store.read_password()


SECRETS = {
    "kafka": {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "username": "u",
        "password": "SECRET-1",
        "client": {"ssl.key.password": "SECRET-2"},
    },
    "store": {"uri": "redis://:SECRET-3@host"},
}


def test_settings_are_shown_without_secrets() -> None:
    settings = load_settings(**SECRETS)

    shown = [repr(settings), str(settings), settings.model_dump_json(), repr(settings.model_dump())]

    assert not any("SECRET" in text for text in shown)
    assert settings.kafka.read_password() == "SECRET-1"


def test_a_child_process_gets_the_same_settings_with_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(**SECRETS)

    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)

    assert load_settings() == settings
    assert load_settings().store.read_password() == "SECRET-3"


@pytest.mark.parametrize(
    ("group", "given", "problem"),
    [
        ("kafka", {"security_protocol": "SASL_SSL"}, "go together"),
        ("kafka", {"sasl_mechanism": "PLAIN"}, "go together"),
        ("kafka", {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "username": "SECRET"}, "are needed"),
        (
            "kafka",
            {
                "security_protocol": "SASL_SSL",
                "sasl_mechanism": "OAUTHBEARER",
                "username": "u",
                "password": "SECRET",
            },
            "oauth_token_url go together",
        ),
        ("kafka", {"cert_file": "/a"}, "cert_file and key_file go together"),
        ("kafka", {"password": "SECRET", "password_file": "/a"}, "not both"),
        ("kafka", {"client": {"ssl.key.password": ["SECRET"]}}, "client"),
        ("kafka", {"pasword": "SECRET"}, "pasword"),
        ("triton", {"ca_file": "/a"}, "without tls"),
        ("store", {"uri": "s3://key:SECRET@bucket"}, "only a redis"),
        ("store", {"uri": "redis://:SECRET@[host"}, "can't be read"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_without_their_secrets(
    group: str, given: dict[str, object], problem: str
) -> None:
    with pytest.raises(UserError, match=problem) as raised:
        load_settings(**{group: given})

    assert "SECRET" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ['{"password": "SECRET', "kafka: {password: 'SECRET\n", "kafka:\n\tpassword: SECRET\n"]
)
def test_what_cannot_be_parsed_is_not_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    if text.startswith("{"):
        monkeypatch.setenv("MRISTREAM_KAFKA", text)
    else:
        (tmp_path / "c.yaml").write_text(text)
        monkeypatch.setenv("MRISTREAM_CONFIG", str(tmp_path / "c.yaml"))

    with pytest.raises(UserError) as raised:
        load_settings()

    assert "SECRET" not in str(raised.value)


def test_an_empty_variable_means_that_there_is_no_such_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRISTREAM_KAFKA__STAT_TOPIC", "")

    assert load_settings().kafka.stat_topic is None
    assert load_settings().kafka.replay_topic == "scans.replay"


def test_two_topics_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRISTREAM_KAFKA__STAT_TOPIC", "scans")

    with pytest.raises(UserError, match="name of its own"):
        load_settings()
