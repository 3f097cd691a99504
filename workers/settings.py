"""Every setting of the platform, typed, with its unit.

Read from, in rising order of precedence: defaults, the YAML file that MRISTREAM_CONFIG names, environment variables
(`MRISTREAM_KAFKA__GROUP_ID=…`), arguments.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource
from yaml import YAMLError

from workers.errors import UserError
from workers.monitoring_settings import MonitoringSettings, TracingSettings
from workers.setting_types import REVEAL_SECRETS, Group, Secret, check_one_password, check_pair, read_password

MIB = 1024 * 1024
CONFIG_VARIABLE = "MRISTREAM_CONFIG"
PREFIX = "MRISTREAM_"
# Read elsewhere, before there are settings: where the local servers' downloads come from and stay.
_OTHER_VARIABLES = {CONFIG_VARIABLE, "MRISTREAM_CACHE", "MRISTREAM_MAVEN"}


class KafkaSettings(Group):
    """Where scans come from and results go to."""

    bootstrap_servers: str = Field("127.0.0.1:9092", description="brokers to ask first, host:port, comma-separated")
    scans_topic: str = Field("scans", description="where scans come from")
    stat_topic: str | None = Field(
        "scans.stat", description="where urgent scans come from, which are served first; empty: no such lane"
    )
    replay_topic: str | None = Field(
        "scans.replay", description="where history comes from that is run again when there is time; empty: no such lane"
    )
    results_topic: str = Field("results", description="where each scan's one final result goes")
    dead_topic: str = Field("scans.dead", description="where rejected scans go, as they came")
    partitions: int = Field(6, gt=0, description="of topics that mristream creates itself")
    max_inline_bytes: int = Field(
        MIB, gt=0, le=32 * MIB, description="`submit` sends larger files by reference instead of inside the message"
    )
    group_id: str = Field("mristream", description="workers with the same group share the scans")
    group_protocol: Literal["consumer", "classic"] = Field(
        "consumer", description="`consumer` is KIP-848 (broker 4.0 and later), `classic` the older protocol"
    )
    delivery: Literal["exactly_once", "at_least_once"] = Field(
        "exactly_once",
        description="`at_least_once` is for brokers without transactions: after a crash, the results of at most "
        "`worker.unpublished_scans` scans come twice, with equal `mristream_*` headers",
    )
    transactional_id: str | None = Field(
        None, description="unique per running worker; made from group, host and a random part if not given"
    )
    transaction_timeout_s: float = Field(
        15.0, gt=0, le=900, description="after a crash, readers wait at most this long for the open transaction"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="as the broker's listener has it; SSL means TLS"
    )
    ca_file: Path | None = Field(
        None, description="PEM file of the authority that signed the brokers' certificates; the system's own if none"
    )
    cert_file: Path | None = Field(None, description="PEM file of our own certificate, where brokers ask for one")
    key_file: Path | None = Field(None, description="PEM file of the private key that belongs to `cert_file`")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = Field(
        None, description="how we log in, with a SASL_ protocol"
    )
    username: str | None = Field(None, description="to log in with; for OAUTHBEARER the client id")
    password: Secret | None = Field(None, description="to log in with; for OAUTHBEARER the client secret")
    password_file: Path | None = Field(None, description="file that holds the password, instead of `password`")
    oauth_token_url: str | None = Field(None, description="where OAUTHBEARER gets its tokens (OpenID Connect)")
    oauth_scope: str | None = Field(None, description="what OAUTHBEARER asks a token for")
    client: dict[str, Secret] = Field(
        {}, description="further librdkafka settings for every client; these win over all others"
    )

    @field_validator("stat_topic", "replay_topic", mode="before")
    @classmethod
    def _empty_is_none(cls, given: object) -> object:
        """An environment variable can be empty, but not null."""
        return given or None

    @model_validator(mode="after")
    def _lanes_are_apart(self) -> Self:
        topics = [name for name in (self.scans_topic, self.stat_topic, self.replay_topic, self.dead_topic) if name]
        if len({*topics, self.results_topic}) <= len(topics):
            raise ValueError("each of the topics for scans, results and rejected scans needs a name of its own")
        return self

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        check_pair(self.cert_file, self.key_file)
        check_one_password(self.password, self.password_file)
        logs_in = self.security_protocol.startswith("SASL_")
        if logs_in != (self.sasl_mechanism is not None):
            raise ValueError("a SASL_ security_protocol and a sasl_mechanism go together")
        if (self.sasl_mechanism == "OAUTHBEARER") != (self.oauth_token_url is not None):
            raise ValueError("OAUTHBEARER and an oauth_token_url go together")
        if logs_in and (self.username is None or (self.password is None and self.password_file is None)):
            raise ValueError("to log in, username and password (or password_file) are needed")
        return self

    def read_password(self) -> str | None:
        """The password, from wherever it was given. Raises UserError if its file can't be read."""
        return read_password(self.password, self.password_file, "kafka.password_file")


class TritonSettings(Group):
    """Where the models are served."""

    url: str = Field("127.0.0.1:8001", description="gRPC address, host:port")
    tls: bool = Field(False, description="whether that port speaks TLS")
    ca_file: Path | None = Field(
        None, description="PEM file of the authority that signed Triton's certificate; the usual public ones if none"
    )
    cert_file: Path | None = Field(None, description="PEM file of our own certificate, where Triton asks for one")
    key_file: Path | None = Field(None, description="PEM file of the private key that belongs to `cert_file`")
    timeout_s: float = Field(
        # Whoever waits less than the slowest model takes asks for ever; connections that died are noticed sooner.
        300.0,
        gt=0,
        description="for one batch; a batch that takes longer is tried again in halves",
    )
    classifier: str = Field("brain_mri_classifier", description="model that names the class")
    segmenter: str = Field("tumor_segmentation", description="ensemble that outlines the tumour")
    version: int | None = Field(
        None,
        gt=0,
        description="version of the models to ask for, one of those that `mristream load` had Triton load side by side; "
        "the newest if none",
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        check_pair(self.cert_file, self.key_file)
        if not self.tls and (self.ca_file or self.cert_file):
            raise ValueError("ca_file and cert_file mean nothing without tls: true")
        return self


class SourceSettings(Group):
    """Where scans that come by reference may lie. By default nowhere: whoever may write to the scans' topic would have
    the worker read any place, and wait for any that is not there."""

    allowed_prefixes: tuple[str, ...] = Field(
        (),
        description="only what lies below one of these is read, such as file:///data/scans or s3://bucket/folder; "
        "s3:// is any bucket",
    )
    timeout_s: float = Field(30.0, gt=0, description="for one file or object")


class StoreSettings(Group):
    """Where masks go: file:///dir, s3://bucket/prefix, gs://…, az://…, redis://host/db?ttl=seconds, or rediss:// for
    TLS. Login and certificates here are for Redis; buckets are opened by each cloud's usual environment variables."""

    uri: str = Field("file:///tmp/mristream/masks", description="address of the store")
    timeout_s: float = Field(30.0, gt=0, description="for one mask or one object")
    username: str | None = Field(None, description="Redis ACL user; the default user if none")
    password: Secret | None = Field(None, description="of that user")
    password_file: Path | None = Field(None, description="file that holds the password, instead of `password`")
    ca_file: Path | None = Field(
        None, description="PEM file of the authority that signed the server's certificate; the system's own if none"
    )
    cert_file: Path | None = Field(None, description="PEM file of our own certificate, where the server asks for one")
    key_file: Path | None = Field(None, description="PEM file of the private key that belongs to `cert_file`")

    @model_validator(mode="before")
    @classmethod
    def _take_login_out_of_the_address(cls, given: Any) -> Any:
        """The address is shown in logs and results, so the login that it may hold goes where it is hidden."""
        if not isinstance(given, dict) or "@" not in str(given.get("uri", "")):
            return given
        try:
            parts = urlsplit(given["uri"])
        except ValueError:
            # Not the cause: it may repeat the password.
            raise ValueError("the address can't be read") from None
        if "@" not in parts.netloc:
            return given
        if parts.scheme.lower() not in ("redis", "rediss"):
            raise ValueError("only a redis:// or rediss:// address can hold a login")
        login = {"username": parts.username, "password": parts.password}
        named = {name: unquote(text) for name, text in login.items() if text}
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        # What the address says holds for the address; a login given beside it may come from the environment.
        others = {name: value for name, value in given.items() if name not in (*login, "password_file") or not named}
        return {**others, **named, "uri": bare}

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        check_pair(self.cert_file, self.key_file)
        check_one_password(self.password, self.password_file)
        return self

    def read_password(self) -> str | None:
        """The password, from wherever it was given. Raises UserError if its file can't be read."""
        return read_password(self.password, self.password_file, "store.password_file")


class DecodeSettings(Group):
    """Limits for untrusted input. By default decoding never takes more than 500 MB beside what the worker has when idle:
    two children of 128 MiB each, and three batches with one file of 32 MiB each in memory twice."""

    max_bytes: int = Field(32 * MIB, gt=0, description="of one file, inline or by reference")
    max_pixels: int = Field(
        4096 * 4096, gt=0, description="rows x columns x frames, checked before anything is decoded"
    )
    medical_processes: int = Field(2, gt=0, description="child processes that decode files")
    medical_timeout_s: float = Field(10.0, gt=0, description="for one file in a child process")
    medical_memory_bytes: int = Field(128 * MIB, gt=0, description="address space that decoding one file may add")


class PolicySettings(Group):
    """What the platform says of a scan, given the models' outputs."""

    # Chosen on the validation split, where no brain MRI slice reaches 0.27; what lies between is for a person to judge.
    not_brain_from: float = Field(
        0.7, ge=0, le=1, description="turned away from this probability of `not_brain_mri` upwards"
    )
    uncertain_from: float = Field(
        0.3,
        ge=0,
        le=1,
        description="`uncertain` from this probability of `not_brain_mri` up to `not_brain_from`; equal values: never",
    )
    segment_when: Literal["valid_brain_mri", "tumor_suspected"] = Field(
        "valid_brain_mri", description="`tumor_suspected` spares the U-Net where the classifier is sure of no tumour"
    )
    no_tumor_from: float = Field(
        0.95,
        ge=0,
        le=1,
        description="under `tumor_suspected`, the U-Net is not asked from this probability of `no_tumor` upwards",
    )
    late: Literal["process", "uncertain"] = Field(
        "process",
        description="a scan whose deadline has passed when its turn comes is processed all the same, or is `uncertain` "
        "without asking the models; its result is flagged `late` either way",
    )


class WorkerSettings(Group):
    """How much a worker takes on at a time."""

    batch_scans: int = Field(
        64, gt=0, description="most scans in one batch; fewer where a batch would take long, as it does without a GPU"
    )
    batches_in_flight: int = Field(
        3, gt=0, description="full batches being worked on at once, or four small ones in the place of each"
    )
    bytes_in_flight: int = Field(
        128 * MIB, gt=0, description="no more scans are taken while the unpublished ones hold this many bytes"
    )
    unpublished_scans: int = Field(
        1024, gt=0, description="no more scans are taken while this many have no published result"
    )
    attempts: int = Field(
        5,
        ge=3,
        description="workers that may die of one scan, the first two of them among others, before it is rejected",
    )
    join_timeout_s: float = Field(
        15.0, gt=0, description="a worker that got no partition within this time counts as ready: there are none left"
    )
    revoke_timeout_s: float = Field(
        10.0, gt=0, description="partitions that go to another worker are finished within this time or left to it"
    )
    checkpoint_interval_s: float = Field(
        # A commit costs Kafka and the worker about 8 core-ms: 3 % of a core, and little beside the wait in a backlog.
        0.25,
        gt=0,
        description="longest time between a finished scan and its publication; without a backlog it is published at once",
    )
    checkpoint_scans: int = Field(256, gt=0, description="publish as soon as this many scans have finished")
    drain_timeout_s: float = Field(25.0, gt=0, description="after SIGTERM; below Kubernetes' grace period of 30 s")
    http_host: str = Field(
        "0.0.0.0",  # noqa: S104 - probes and Prometheus come from outside the pod
        description="address to serve metrics and health on",
    )
    http_port: int = Field(8080, ge=0, le=65535, description="metrics, health and the status page; 0 takes a free port")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="what is worth a line; DEBUG has one for each scan"
    )
    log_format: Literal["json", "text"] | None = Field(
        None,
        description="an object a line, or text for people; if none, `text` for workers that `run` and `up` start, else `json`",
    )


class Settings(BaseSettings):
    """All settings."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        nested_model_default_partial_update=True,
    )

    kafka: KafkaSettings = KafkaSettings()
    triton: TritonSettings = TritonSettings()
    source: SourceSettings = SourceSettings()
    store: StoreSettings = StoreSettings()
    decode: DecodeSettings = DecodeSettings()
    policy: PolicySettings = PolicySettings()
    worker: WorkerSettings = WorkerSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    tracing: TracingSettings = TracingSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over environment over YAML file."""
        config = os.environ.get(CONFIG_VARIABLE)
        yaml = (YamlConfigSettingsSource(settings_cls, yaml_file=config),) if config else ()
        return init_settings, env_settings, *yaml

    def environment(self) -> dict[str, str]:
        """The environment variables that give another process these settings, secrets included."""
        groups = self.model_dump(mode="json", context=REVEAL_SECRETS)
        return {f"{PREFIX}{name.upper()}": json.dumps(group) for name, group in groups.items()}


def load_settings(**overrides: object) -> Settings:
    """Settings from file, environment and `overrides` (a dict for each group). Raises UserError naming the setting."""
    _refuse_unknown_variables()
    config = os.environ.get(CONFIG_VARIABLE)
    if config and not Path(config).is_file():
        raise UserError(f"{CONFIG_VARIABLE} names {config}, which is not a file")
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"bad setting: {problems}") from error
    except (OSError, ValueError, YAMLError) as error:
        raise UserError(f"the settings can't be read: {error}") from error


def _refuse_unknown_variables() -> None:
    """A misspelt group in a variable's name would otherwise be passed over in silence."""
    groups = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for name in os.environ:
        if name.upper().startswith(PREFIX) and name.upper().split("__")[0] not in groups | _OTHER_VARIABLES:
            raise UserError(f"{name} is no setting: known groups are {', '.join(sorted(groups))}")
