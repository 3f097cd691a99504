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
from deploy.local.server import Report, ServerError, silent

# Jars are small, so a download is mostly waiting.
_PARALLEL_DOWNLOADS = 8
# For one request; a slow mirror fetches a jar from upstream before it answers.
_DOWNLOAD_TIMEOUT_S = 60


def classpath(pins: Path, report: Report = silent) -> str:
    """Class path of the jars listed in `pins`: lines of `group:artifact:version[:classifier] sha256`, `#` comments.

    Cached jars are verified too, every time (0.1 s for Kafka's 45 MB); a damaged one has all downloaded again.
    Raises ServerError if a jar can't be downloaded or is not the one that was pinned.
    """
    digests = _read(pins)
    list_digest = hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()

    def download(folder: Path) -> None:
        report(f"downloading {pins.stem} (once)…")
        _download(digests, folder)

    folder = cached(f"jars/{pins.stem}-{list_digest[:16]}", download, lambda folder: _intact(folder, digests))
    return ":".join(str(jar) for jar in sorted(folder.rglob("*.jar")))


def _read(pins: Path) -> dict[str, str]:
    lines = (line.split("#")[0].split() for line in pins.read_text().splitlines())
    return {line[0]: line[1] for line in lines if line}


def _download(digests: dict[str, str], folder: Path) -> None:
    context = _maven(folder)
    with ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
        list(pool.map(lambda pin: _fetch(context, *pin), digests.items()))


def _intact(folder: Path, digests: dict[str, str]) -> bool:
    return sorted(_sha256(jar) for jar in folder.rglob("*.jar")) == sorted(digests.values())


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _fetch(context: MavenContext, coordinate: str, expected: str) -> None:
    try:
        jar = context.create_dependency(coordinate).artifact.resolve()
    # jgo raises RuntimeError for a status other than 200, and what requests raises (an OSError) for the rest.
    except (RuntimeError, OSError) as error:
        raise ServerError(
            f"{coordinate} could not be downloaded: {error}. Check the network and the proxy settings, "
            "or set MRISTREAM_MAVEN to the address of a Maven mirror."
        ) from error
    actual = _sha256(jar)
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
            print(name, _sha256(artifact.resolve()), flush=True)


if __name__ == "__main__":
    _print_pins(sys.argv[1])
