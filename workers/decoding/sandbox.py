"""What a decoding child gives up before the first hostile byte: memory, time, files, network, new processes.

Each limit stands for itself, so that a bug in a decoder that some let through meets the others. All are Linux', and
none needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import resource
import signal
import struct
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

# Five are open in a child; a decoder opens at most its own tables, one at a time.
MAX_DESCRIPTORS = 16
# Of <linux/prctl.h>.
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
# System calls that no decoder needs, and the architecture's number in <linux/audit.h>: socket; clone, fork, vfork,
# clone3; execve, execveat; ptrace, process_vm_readv, process_vm_writev; io_uring_setup, which could stand in for them.
FORBIDDEN_CALLS: dict[str, tuple[int, tuple[int, ...]]] = {
    "x86_64": (0xC000003E, (41, 56, 57, 58, 435, 59, 322, 101, 310, 311, 425)),
    "aarch64": (0xC00000B7, (198, 220, 435, 221, 281, 117, 270, 271, 425)),
}


def confine(memory_bytes: int) -> None:
    """Give up, for the rest of this process's life, what decoding doesn't need. Its imports must be done.

    `memory_bytes` is the address space that it may take beside what it has.
    """
    # A worker that was killed takes its children with it, even those that hang. The signal comes when the thread ends
    # that started this process: see `ChildPool`.
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C goes to the whole group, and systemd's SIGTERM to all processes: the worker says when we are done, by
    # closing the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Decoders print what they find wrong, with text from the file: that belongs in no log.
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    with contextlib.suppress(OSError):  # where memory runs out, the kernel shall take a child and not the worker
        Path("/proc/self/oom_score_adj").write_text("1000")
    # No core files: they would hold patients' pixels. Nor any other file.
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, MAX_DESCRIPTORS),
        (resource.RLIMIT_AS, address_space_bytes() + memory_bytes),
    ):
        resource.setrlimit(kind, (most, most))
    _forbid_calls()


def allow_cpu_seconds(seconds: float) -> None:
    """From now on, end this process by SIGXCPU once it has computed for so long, rounded up to whole seconds."""
    most = math.ceil(time.process_time() + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))


def address_space_bytes() -> int:
    """How much this process has reserved, as RLIMIT_AS counts it."""
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


def _forbid_calls() -> None:
    """Have the kernel answer FORBIDDEN_CALLS with EPERM, where it can filter calls."""
    known = FORBIDDEN_CALLS.get(platform.machine())
    if known is None:
        return
    code = _filter(*known)
    instructions = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: how many instructions of 8 bytes, and where.
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(instructions)))
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program))


def _filter(architecture: int, calls: Sequence[int]) -> bytes:
    """A classic BPF program over struct seccomp_data: allows all calls but these, and those of other architectures."""
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, refuse = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with EPERM
    x32 = 0x40000000  # the calls of x86_64 under other numbers
    tests = [(equal, call) for call in calls] + [(at_least, x32)]
    steps = [(load, 0, 0, 4), (equal, 0, len(tests) + 2, architecture), (load, 0, 0, 0)]
    steps += [(test, len(tests) - place, 0, number) for place, (test, number) in enumerate(tests)]
    steps += [(answer, 0, 0, allow), (answer, 0, 0, refuse)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _prctl(option: int, *arguments: int) -> None:
    """Best effort: a kernel or a container that refuses leaves the other limits."""
    values = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    ctypes.CDLL(None).prctl(ctypes.c_int(option), *values)
