"""Where every moment of this machine's cores goes while one worker works off a backlog with models that cost nothing.

    python -m benchmarks.attribution [--scans 30000] [--seconds 15]

Needs Linux `perf` and the right to watch the whole machine (root, or kernel.perf_event_paranoid at -1). Samples all cores,
and says of each sample whose it is (worker, decoders, Triton, Kafka, the kernel's own threads, nobody's) and what was at
work there: the library, or what the kernel was asked for. What no rule names is "unknown"; the last line says how much has a
name. A core that sleeps may give no samples, so the first line says how many there would be of cores that never do.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.backlog import work_off
from benchmarks.chaos.null_models import segmented_slices, write_null_models
from benchmarks.processes import descendants
from benchmarks.stand import machine
from deploy.local.stack import Stack

_HERTZ = 499
# Until batches are as large as they get.
_GROWING_S = 2.0
_UNKNOWN, _IDLE, _OTHERS = "unknown", "idle", "others on this machine"
# By the names of the files that the code comes from; the first that fits.
_LIBRARIES = (
    ("JPEG", r"jpeg"),
    ("numpy", r"_multiarray|_umath|openblas"),
    ("OpenCV", r"cv2"),
    ("gRPC", r"cygrpc"),
    ("protobuf", r"^_message\."),
    ("pydantic", r"_pydantic"),
    ("Kafka's client", r"rdkafka|^cimpl"),
    ("SHA-256", r"libcrypto|_hashlib|_sha2"),
    ("zlib", r"^libz\b|^zlib\."),
    ("Python", r"^libpython|^python3|\.cpython-"),
    ("JVM", r"^libjvm|^libnio|^libnet\.|^libjava|^libjli|^libzip|^perf-\d+\.map|\[JIT\]|^classes.*\.jsa"),
    ("Triton", r"triton"),
    ("C library", r"^lib(c|m|gcc_s|stdc\+\+|pthread|rt|dl)[.-]|^ld-linux|vdso"),
)
_SYSCALL = re.compile(r"__(?:x64|ia32|arm64)_sys_(\w+)")
_WORK_OF_SYSCALLS = (
    ("files", r"open|fsync|fdatasync|rename|unlink|write$|pwrite|fadvise|close|stat|getdents|mkdir|ftruncate"),
    ("sockets", r"send|recv|poll|epoll|accept|connect|socket|shutdown|select|writev|readv"),
    ("waiting and waking", r"futex|nanosleep|sched_yield|eventfd|timer"),
    ("memory", r"mmap|munmap|madvise|brk|mprotect|mremap"),
)
# What the kernel does unasked, by the symbols on the stack; the first that fits.
_UNASKED = (
    ("memory", r"page_fault"),
    (
        "interrupts",
        r"softirq|interrupt(?!ible)|sysvec_|handle_\w*irq|irq_exit|irqentry|hrtimer_|^tick_|exc_nmi|^el[01]\w*_irq",
    ),
    ("scheduler", r"^(?:__)?schedule|^sched_|^finish_task_switch|^__switch_to"),
    ("its own threads", r"^kthread$"),
)
# Innermost: on the way from a program to what it asks for, or back.
_ENTRY = re.compile(r"entry_SYSCALL|do_syscall_64|x64_sys_call|syscall_")


@dataclass(frozen=True, slots=True)
class Sample:
    """One tick of one core: process id (0: the core was idle), and what was called, innermost first: (symbol, file)."""

    pid: int
    comm: str
    stack: tuple[tuple[str, str], ...]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=30_000)
    parser.add_argument("--seconds", type=float, default=15.0)
    given = parser.parse_args()
    if shutil.which("perf") is None:
        parser.error("perf is not installed")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        slices = segmented_slices()
        recording = _Recording(folder / "perf.data", given.seconds)
        with Stack(folder / "stack", model_repository=write_null_models(folder / "models")) as stack:
            work_off(stack, folder / "warm", slices, given.scans // 3, {})  # now Kafka's code is compiled
            measured = work_off(stack, folder / "attribution", slices, given.scans, {}, at_work=recording.begin)
            recording.join()
        counts = count(samples(recording.data), recording.owners)
    print(f"{machine()}\n{measured}\n")
    print(table(counts, round(len(os.sched_getaffinity(0)) * _HERTZ * given.seconds)))


class _Recording(threading.Thread):
    """Watches all cores for some time. `owners` says then whose the processes are."""

    def __init__(self, data: Path, seconds: float) -> None:
        super().__init__(name="perf")
        self.data = data
        self.owners: dict[int, str] = {}
        self._seconds = seconds

    def begin(self, processes: Mapping[str, int]) -> None:
        """Of a worker that has just got ready, and the servers."""
        self._processes = processes
        self.start()

    def run(self) -> None:
        time.sleep(_GROWING_S)
        command = ["perf", "record", "-q", "-a", "-g", "-F", str(_HERTZ), "-o", str(self.data)]
        subprocess.run([*command, "--", "sleep", str(self._seconds)], check=True, capture_output=True)
        for name, pid in self._processes.items():
            self.owners.update(dict.fromkeys(descendants(pid), "decoders" if name == "worker" else name))
        self.owners[self._processes["worker"]] = "worker"


def samples(data: Path) -> Iterator[Sample]:
    """What perf has recorded."""
    command = ["perf", "script", "-i", str(data), "-F", "comm,pid,ip,sym,dso"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, errors="replace").stdout
    for block in text.split("\n\n"):
        head, *frames = block.strip("\n").split("\n")
        found = re.match(r"\s*(.+?)\s+(-?\d+)\s*$", head)
        if found:
            yield Sample(int(found[2]), found[1], tuple(map(_frame, frames)))


def _frame(line: str) -> tuple[str, str]:
    found = re.match(r"\s*[0-9a-f]+\s+(.*) \(([^()]*)\)\s*$", line)
    return (found[1], found[2]) if found else ("", line.strip())


def count(ticks: Iterator[Sample], owners: Mapping[int, str]) -> Counter[tuple[str, str]]:
    """Ticks by owner and work."""
    counts: Counter[tuple[str, str]] = Counter()
    for tick in ticks:
        whose = owner(tick, owners)
        counts[whose, "" if whose in (_IDLE, _OTHERS) else work(tick)] += 1
    return counts


def owner(sample: Sample, owners: Mapping[int, str]) -> str:
    """Whose process it is."""
    if sample.pid == 0 or sample.comm == "swapper":
        return _IDLE
    if sample.pid in owners:
        return owners[sample.pid]
    if all(file.startswith("[kernel") for _, file in sample.stack):
        return "kernel threads"
    return _OTHERS


def work(sample: Sample) -> str:
    """What is at work: a library, or what the kernel was asked for."""
    if not sample.stack:
        return _UNKNOWN
    innermost = sample.stack[0][1]
    if innermost.startswith("[kernel"):
        return _kernel_work(sample)
    return _library(innermost)


def _kernel_work(sample: Sample) -> str:
    for symbol, _ in sample.stack:
        if asked := _SYSCALL.match(symbol):
            for name, pattern in _WORK_OF_SYSCALLS:
                if re.match(pattern, asked[1]):
                    return f"kernel: {name}"
            return f"kernel: {asked[1]}"
    if _ENTRY.match(sample.stack[0][0]):
        return "kernel: entry and exit"
    for name, pattern in _UNASKED:
        if any(re.search(pattern, symbol) for symbol, _ in sample.stack):
            return f"kernel: {name}"
    return _UNKNOWN


def _library(file: str) -> str:
    name = Path(file).name
    return next((library for library, pattern in _LIBRARIES if re.search(pattern, name)), _UNKNOWN)


def table(counts: Counter[tuple[str, str]], expected: int) -> str:
    """Shares of all cores' time by owner and work, the largest first; `expected` ticks are those of cores that never sleep."""
    total = sum(counts.values())
    by_owner: Counter[str] = Counter()
    for (name, _), ticks in counts.items():
        by_owner[name] += ticks
    lines = [f"{total} samples of {expected}, which is cores x {_HERTZ} Hz x seconds"]
    for name, ticks in by_owner.most_common():
        lines.append(f"{name:24} {ticks / total:7.2%}")
        parts = [(what, n) for (whose, what), n in counts.items() if whose == name and what]
        lines += [f"  {what:30} {n / total:7.2%}" for what, n in sorted(parts, key=lambda part: -part[1])]
    unknown = sum(n for (_, what), n in counts.items() if what == _UNKNOWN)
    busy = total - by_owner[_IDLE]
    lines.append(f"named: {1 - unknown / total:.2%} of the samples, {1 - unknown / busy:.2%} of those of busy cores")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
