"""Child processes that decode: what they may do, and what becomes of a scan when they misbehave."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz.bad_child import NONSENSE
from tests.fuzz.seeds import dicom, gray, image
from workers.decoding import DecodedScan, Decoder, pool
from workers.decoding.fit import Placement
from workers.errors import Reason, ScanRejected, Unavailable
from workers.settings import DecodeSettings

ONE = DecodeSettings(medical_processes=1)
IMPATIENT = DecodeSettings(medical_processes=1, medical_timeout_s=0.5)


@pytest.fixture
def taken_over(monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoder]:
    """A decoder whose one child does what its files say."""
    monkeypatch.setattr(pool, "PROGRAM", "tests.fuzz.bad_child")
    with Decoder(IMPATIENT) as decoder:
        yield decoder


def order(text: str) -> bytes:
    """A file for `taken_over`."""
    return b"\xff\xd8\xff" + text.encode()


def children() -> set[int]:
    found: set[int] = set()
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            found |= {int(number) for number in (thread / "children").read_text().split()}
    return found


def patiently(decoder: Decoder) -> Callable[[bytes], DecodedScan]:
    """Decodes as a worker does: a child that was killed before it was ready is an outage, and waited out."""

    def decode(file: bytes) -> DecodedScan:
        while True:
            try:
                return decoder.decode(file)
            except Unavailable:
                time.sleep(0.05)

    return decode


@pytest.mark.parametrize("deed", ["abort", "segfault", "exit", "noise", "huge", *NONSENSE])
def test_a_child_that_dies_or_talks_nonsense_costs_its_scan_alone(taken_over: Decoder, deed: str) -> None:
    with pytest.raises(ScanRejected) as caught:
        taken_over.decode(order(deed))

    assert caught.value.reason is Reason.DECODER_FAILED
    assert "crashes on this file" in caught.value.message
    assert taken_over.decode(order("good")).placement == Placement(9, 9)


def test_a_child_that_computes_too_long_costs_its_scan_alone(taken_over: Decoder) -> None:
    with pytest.raises(ScanRejected) as caught:
        taken_over.decode(order("spin"))

    assert caught.value.reason is Reason.DECODER_FAILED
    assert caught.value.message.startswith("decoding takes more than 0.5 s of computing")
    assert taken_over.decode(order("good")).placement == Placement(9, 9)


@pytest.mark.parametrize("deed", ["sleep", "half"])
def test_a_child_that_neither_answers_nor_computes_rejects_no_scan(taken_over: Decoder, deed: str) -> None:
    with pytest.raises(Unavailable, match="don't get to compute"):
        taken_over.decode(order(deed))

    assert taken_over.decode(order("good")).placement == Placement(9, 9)


@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP])
def test_a_child_that_is_killed_or_stopped_costs_no_scan(what: signal.Signals) -> None:
    before = children()
    with Decoder(IMPATIENT) as decoder:
        # Larger than what fits between the processes, so that a stopped child blocks the worker's writing too.
        for file in (image(gray(), "PNG"), dicom(gray(16, 800, 800))):
            first = decoder.decode(file)
            (child,) = children() - before

            os.kill(child, what)

            assert np.array_equal(decoder.decode(file).pixels, first.pixels)
            assert child not in children()


def test_children_that_can_not_start_are_an_outage_and_not_the_fault_of_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    with Decoder(ONE) as decoder:
        decoder.decode(image(gray(), "PNG"))
    monkeypatch.setattr(pool, "PROGRAM", "tests.fuzz.no_such_program")
    with Decoder(ONE) as decoder:
        with pytest.raises(Unavailable) as caught:
            decoder.decode(image(gray(), "PNG"))
        assert caught.value.dependency == "decoder"

        monkeypatch.undo()
        with pytest.raises(Unavailable):  # the next child was started already, before the cure
            decoder.decode(image(gray(), "PNG"))
        assert decoder.decode(image(gray(), "PNG")).placement == Placement(40, 36)


def test_a_worker_out_of_descriptors_waits_instead_of_rejecting() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    decoder = Decoder(ONE)  # not entered: its child is started when it is needed
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(Unavailable, match="no child process can be started"):
            decoder.decode(image(gray(), "PNG"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert decoder.decode(image(gray(), "PNG")).placement == Placement(40, 36)
    decoder.close()


def test_a_pool_whose_children_are_killed_again_and_again_keeps_serving() -> None:
    before = children()
    with Decoder(DecodeSettings(medical_processes=2)) as decoder, ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            for child in children() - before:
                os.kill(child, signal.SIGKILL)

            scans = list(threads.map(patiently(decoder), [image(gray(), "PNG")] * 8))

            assert all(scan.placement == Placement(40, 36) for scan in scans)
    assert children() == before


def test_a_child_outlives_the_signals_of_a_shutdown_but_not_its_decoder() -> None:
    before = children()
    with Decoder(ONE) as decoder:
        decoder.decode(dicom(gray()))
        (child,) = children() - before
        assert os.getpgid(child) != os.getpgid(0)

        os.kill(child, signal.SIGINT)
        os.kill(child, signal.SIGTERM)
        decoder.decode(dicom(gray()))

        assert children() - before == {child}
    assert children() == before


def test_children_live_on_when_the_thread_that_needed_them_first_ends() -> None:
    before = children()
    with Decoder(ONE) as decoder:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(decoder.decode, dicom(gray())).result()
        living = children() - before
        decoder.decode(dicom(gray()))

        assert len(living) == 1
        assert children() - before == living


@pytest.mark.parametrize("stopped", [False, True])
def test_children_do_not_outlive_a_worker_that_was_killed(tmp_path: Path, stopped: bool) -> None:
    scan = tmp_path / "scan.dcm"
    scan.write_bytes(dicom(gray()))
    program = (
        "import os, pathlib, sys; from workers.decoding import Decoder; from workers.settings import DecodeSettings\n"
        "from tests.test_decoding_children import children\n"
        "Decoder(DecodeSettings(medical_processes=1)).decode(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "(child,) = children()\n"
        "print(child, flush=True)\n"
        f"{stopped} and os.kill(child, 19)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(scan)], stdout=subprocess.PIPE, text=True, check=False)
    child = int(done.stdout)
    deadline = time.monotonic() + 30

    while _is_decoder(child):
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.01)


def test_a_child_has_no_network_no_programs_no_files_and_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not for children")
    before = children()
    with Decoder(ONE) as decoder:
        decoder.decode(image(gray(), "PNG"))
        (child,) = children() - before
        process = Path(f"/proc/{child}")

        assert b"AWS" not in (process / "environ").read_bytes()
        limits = {line[:26].strip(): line[26:].split()[:2] for line in (process / "limits").read_text().splitlines()}
        assert limits["Max core file size"] == ["0", "0"]
        assert limits["Max file size"] == ["0", "0"]
        assert limits["Max open files"] == ["16", "16"]
        assert int(limits["Max cpu time"][0]) <= 60
        assert int(limits["Max address space"][1]) < 2**31
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")

    program = (
        "import os, socket, subprocess; from workers.decoding.sandbox import confine\n"
        "keep, (come, go) = os.dup(1), socket.socketpair(); confine(1 << 27)\n"
        "def tries(what, *given):\n"
        "    try: what(*given)\n"
        "    except OSError as error: return error.errno\n"
        "said = [tries(socket.socket), tries(os.fork), tries(os.execv, '/bin/true', ['true']),\n"
        "        tries(subprocess.run, ['true']), tries(os.write, keep, b'')]\n"
        "os.write(keep, repr(said).encode())"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"[1, 1, 1, 1, None]"


def _is_decoder(process: int) -> bool:
    try:
        return b"workers.decoding.child" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
