"""Coverage-guided fuzzing of one decoder, in this process and its children: `python -m tests.fuzz.guided`.

What runs is what answers a file inside a decoder's child process, under that child's limit on memory. Native decoders
may end the process. So atheris runs in children forked from this process, where everything is imported and
instrumented once; each death leaves its input in FOLDER/crashes, and the next child goes on.

Arguments: the decoder's name, FOLDER, seconds, and if you like a folder of further seeds.
Prints one line of JSON: what happened. Coverage is that of Python code; native code is not instrumented.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(
    include=["workers", "pydicom", "PIL", "openjpeg", "rle", "jpeg_ls"], enable_loader_override=False
):
    from tests.fuzz.subjects import LIMITS, Subject, subject

from tests.fuzz.mutation import mutate
from tests.fuzz.seeds import seeds

# An edit may lengthen a file by this much.
ROOM_BYTES = 256
MAX_LENGTH = 64 * 1024
# Statistics are written this often, since a crash leaves no time for it.
REPORT_RUNS = 500


def fuzz(name: str, folder: Path, seconds: float, extra: Path | None = None) -> dict[str, object]:
    """Fuzz until the time is over, over all deaths. Returns what docs/decoding.md reports of it."""
    corpus, crashes, log = folder / "corpus", folder / "crashes", folder / "log"
    for path in (corpus, crashes):
        path.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name, extra)):
        (corpus / f"seed-{number}").write_bytes(seed)
    target = subject(name)
    deadline = time.monotonic() + seconds
    deaths = executions = edges = 0
    outcomes: Counter[str] = Counter()
    while (left := deadline - time.monotonic()) > 1:
        with log.open("wb") as output:
            child = os.fork()
            if child == 0:
                for stream in (1, 2):
                    os.dup2(output.fileno(), stream)
                _run(target, corpus, crashes, folder / "outcomes", left)
            _, status = os.waitpid(child, 0)
        said = log.read_text(errors="replace")
        if os.waitstatus_to_exitcode(status) != 0:
            deaths += 1
            log.rename(folder / f"log-of-death-{deaths}")
        executions += max([0, *map(int, re.findall(r"^#(\d+)\t", said, re.MULTILINE))])
        edges = max([edges, *map(int, re.findall(r"cov: (\d+)", said))])
        outcomes.update(json.loads((folder / "outcomes").read_text()))
    return {
        "decoder": name,
        "seconds": round(seconds),
        "executions": executions,
        "edges": edges,
        "corpus": len(list(corpus.iterdir())),
        "deaths": deaths,
        "crashes": sorted(path.name for path in crashes.iterdir()),
        "outcomes": dict(outcomes.most_common()),
    }


def _run(target: Subject, corpus: Path, crashes: Path, report: Path, seconds: float) -> None:
    """Be the child that runs atheris, which never returns."""
    outcomes: Counter[str] = Counter()
    report.write_text("{}")

    def run_one(data: bytes) -> None:
        # Only now, in front of libFuzzer's own handlers: a death's log names the Python code that it came from.
        faulthandler.enable()
        space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + LIMITS.memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (space, resource.RLIM_INFINITY))
        try:
            outcome = target(data)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        outcomes[outcome] += 1
        if outcomes.total() % REPORT_RUNS == 0:
            report.write_text(json.dumps(outcomes))

    def vary(data: bytes, max_size: int, seed: int) -> bytes:
        def edit(part: bytes) -> bytes:
            return atheris.Mutate(part, len(part) + ROOM_BYTES) if part else b"\0"

        return mutate(data, edit, Random(seed))[:max_size]  # noqa: S311 - libFuzzer's own seed

    options = [
        f"-max_total_time={max(1, round(seconds))}",
        f"-artifact_prefix={crashes}/",
        f"-timeout={round(LIMITS.timeout_s)}",
        f"-max_len={MAX_LENGTH}",
        # The limit on address space is stricter.
        "-rss_limit_mb=0",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], run_one, custom_mutator=vary)
    atheris.Fuzz()


if __name__ == "__main__":
    print(json.dumps(fuzz(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), *map(Path, sys.argv[4:5]))))
