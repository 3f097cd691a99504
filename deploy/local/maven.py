"""Jars of a Java server: a pinned list, downloaded once, verified by SHA-256, cached.

`python -m deploy.local.maven GROUP:ARTIFACT:VERSION` prints such a list for an artifact and all that it needs.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jgo.maven import MavenContext

from deploy.local.cache import cached
from deploy.local.server import ServerError

# Jars are small, so a download is mostly waiting.
_PARALLEL_DOWNLOADS = 8
# For one request; a slow mirror fetches a jar from upstream before it answers.
_DOWNLOAD_TIMEOUT_S = 60


def classpath(pins: Path) -> str:
    """Class path of the jars listed in `pins`: lines of `group:artifact:version[:classifier] sha256`, `#` comments.

    Raises ServerError if a jar can't be downloaded or is not the one that was pinned.
    """
    digests = _read(pins)
    list_digest = hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()
    folder = cached(f"jars/{pins.stem}-{list_digest[:16]}", lambda fresh: _download(digests, fresh))
    return ":".join(str(jar) for jar in sorted(folder.rglob("*.jar")))


def _read(pins: Path) -> dict[str, str]:
    lines = (line.split("#")[0].split() for line in pins.read_text().splitlines())
    return {line[0]: line[1] for line in lines if line}


def _download(digests: dict[str, str], folder: Path) -> None:
    context = _maven(folder)
    with ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
        list(pool.map(lambda pin: _fetch(context, *pin), digests.items()))


def _fetch(context: MavenContext, coordinate: str, expected: str) -> None:
    try:
        jar = context.create_dependency(coordinate).artifact.resolve()
    # jgo raises RuntimeError for a status other than 200, and what requests raises (an OSError) for the rest.
    except (RuntimeError, OSError) as error:
        raise ServerError(
            f"{coordinate} could not be downloaded: {error}. Check the network and the proxy settings, "
            "or set MRISTREAM_MAVEN to the address of a Maven mirror."
        ) from error
    actual = hashlib.sha256(jar.read_bytes()).hexdigest()
    if actual != expected:
        raise ServerError(
            f"{coordinate} is not the jar that was pinned: SHA-256 {actual}, expected {expected}. "
            "Something between here and the Maven repository changed it."
        )


def _maven(folder: Path) -> MavenContext:
    mirror = os.environ.get("MRISTREAM_MAVEN")
    return MavenContext(
        repo_cache=folder,
        local_repos=[],
        remote_repos={"mirror": mirror.rstrip("/")} if mirror else None,
        timeout=_DOWNLOAD_TIMEOUT_S,
    )


def _print_pins(coordinate: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        context = _maven(Path(folder))
        dependency = context.create_dependency(coordinate)
        _, nodes = context.resolver.get_dependency_list([dependency])
        needed = [node.dep for node in nodes if node.dep.scope in ("compile", "runtime")]
        for artifact in dict.fromkeys(each.artifact for each in [dependency, *needed]):
            name = f"{artifact.groupId}:{artifact.artifactId}:{artifact.version}"
            if artifact.classifier:
                name += f":{artifact.classifier}"
            print(name, hashlib.sha256(artifact.resolve().read_bytes()).hexdigest(), flush=True)


if __name__ == "__main__":
    _print_pins(sys.argv[1])
