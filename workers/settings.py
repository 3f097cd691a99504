"""Every setting of the platform, typed, with its unit.

Read from, in rising order of precedence: defaults, the YAML file that MRISTREAM_CONFIG names, environment variables
(`MRISTREAM_KAFKA__GROUP_ID=…`), arguments.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource
from yaml import YAMLError

from workers.errors import UserError

MIB = 1024 * 1024
CONFIG_VARIABLE = "MRISTREAM_CONFIG"
PREFIX = "MRISTREAM_"
# Read elsewhere, before there are settings: where the local servers' downloads come from and stay.
_OTHER_VARIABLES = {CONFIG_VARIABLE, "MRISTREAM_CACHE", "MRISTREAM_MAVEN"}


class Group(BaseModel):
    """Settings that belong together; a misspelt name is an error, not a silence."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class KafkaSettings(Group):
    """Where scans come from and results go to."""

    bootstrap_servers: str = Field("127.0.0.1:9092", description="brokers to ask first, host:port, comma-separated")
    scans_topic: str = Field("scans", description="where scans come from")
    stat_topic: str | None = Field(
        "scans.stat", description="where urgent scans come from, which are served first; null: no such lane"
    )
    replay_topic: str | None = Field(
        "scans.replay", description="where history comes from that is run again when there is time; null: no such lane"
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
    client: dict[str, str] = Field(
        {}, description="further librdkafka settings for every client, such as security.protocol or sasl.username"
    )


class TritonSettings(Group):
    """Where the models are served."""

    url: str = Field("127.0.0.1:8001", description="gRPC address, host:port")
    timeout_s: float = Field(
        # Whoever waits less than the slowest model takes asks for ever; connections that died are noticed sooner.
        300.0,
        gt=0,
        description="for one batch; a batch that takes longer is tried again in halves",
    )
    classifier: str = Field("brain_mri_classifier", description="model that names the class")
    segmenter: str = Field("tumor_segmentation", description="ensemble that outlines the tumour")


class SourceSettings(Group):
    """Where scans that come by reference may lie."""

    allowed_prefixes: tuple[str, ...] = Field(
        ("file:///", "s3://", "gs://", "az://"),
        description="only what lies below one of these is read, such as file:///data/scans or s3://bucket/folder",
    )
    timeout_s: float = Field(30.0, gt=0, description="for one file or object")


class StoreSettings(Group):
    """Where masks go: file:///dir, s3://bucket/prefix, gs://…, az://… or redis://host/db?ttl=seconds."""

    uri: str = Field("file:///tmp/mristream/masks", description="address of the store")
    timeout_s: float = Field(30.0, gt=0, description="for one mask or one object")


class DecodeSettings(Group):
    """Limits for untrusted input. By default decoding never takes more than 500 MB beside what the worker has when idle:
    two children of 128 MiB each, and three batches with one file of 32 MiB each in memory twice."""

    max_bytes: int = Field(32 * MIB, gt=0, description="of one file, inline or by reference")
    max_pixels: int = Field(
        4096 * 4096, gt=0, description="rows x columns x frames, checked before anything is decoded"
    )
    medical_processes: int = Field(2, gt=0, description="child processes that decode DICOM and large images")
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

    batch_scans: int = Field(16, gt=0, description="most scans in one batch")
    batches_in_flight: int = Field(3, gt=0, description="batches being worked on at once")
    bytes_in_flight: int = Field(
        256 * MIB, gt=0, description="no more scans are taken while the unpublished ones hold this many bytes"
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
        # Half of what a radiologist notices, and long enough that a commit costs under 1 % of a batch.
        0.2,
        gt=0,
        description="longest time between a finished scan and its publication",
    )
    checkpoint_scans: int = Field(64, gt=0, description="publish as soon as this many scans have finished")
    drain_timeout_s: float = Field(25.0, gt=0, description="after SIGTERM; below Kubernetes' grace period of 30 s")
    http_host: str = Field(
        "0.0.0.0",  # noqa: S104 - probes and Prometheus come from outside the pod
        description="address to serve metrics and health on",
    )
    http_port: int = Field(8080, ge=0, le=65535, description="metrics and health; 0 takes a free port")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="what is worth a line")


class Settings(BaseSettings):
    """All settings."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    kafka: KafkaSettings = KafkaSettings()
    triton: TritonSettings = TritonSettings()
    source: SourceSettings = SourceSettings()
    store: StoreSettings = StoreSettings()
    decode: DecodeSettings = DecodeSettings()
    policy: PolicySettings = PolicySettings()
    worker: WorkerSettings = WorkerSettings()

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
