"""`mristream run` and `mristream up`: real servers and workers on this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.local.stack import Stack
from deploy.local.worker import WorkerProcess
from workers.kafka import create_topics, make_producer
from workers.messages import ScanResult
from workers.settings import KafkaSettings, Settings
from workers.submission import Found, Submission, Submitter, submit_all
from workers.topics import read_results

# With nothing finished for this long something is stuck for good: the slowest single step waits out outages, and on
# one machine with its own servers there are none that a wait would mend.
STALL_TIMEOUT_S = 300.0
# A worker that died is started again, as Kubernetes would; a scan that kills it every time must not do so for ever.
WORKER_STARTS = 3


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What a run delivered. `results` is in the order of the input; `missing` are inputs without a final result."""

    results: list[ScanResult]
    missing: list[str]
    seconds: float


def run_scans(
    found: Found,
    out: Path,
    settings: Settings,
    model_repository: Path,
    *,
    report: Callable[[str], None],
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> RunOutcome:
    """Stream the scans through servers of our own and stop those again, whatever happens.

    `settings` says all but the servers' addresses. `advance` hears how many results of how many are there. Server logs
    stay in `out/servers`. Raises ServerError if a server doesn't start or dies.
    """
    servers = out / "servers"
    try:
        with Stack(servers, model_repository=model_repository, report=report) as stack:
            settings = _with_addresses(settings, stack)
            create_topics(settings.kafka)
            with WorkerProcess(servers, settings) as worker:
                return _stream(found, settings.kafka, stack, worker, advance)
    finally:
        _keep_only_logs(servers)


def keep_up(
    folder: Path, settings: Settings, model_repository: Path, *, workers: int, report: Callable[[str], None]
) -> None:
    """Run servers and workers in `folder` until Ctrl-C or SIGTERM; a worker that dies is started again.

    Raises ServerError if a server doesn't start or dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as running:
        stack = running.enter_context(Stack(folder, model_repository=model_repository, report=report))
        settings = _with_addresses(settings, stack)
        create_topics(settings.kafka)
        processes = [
            running.enter_context(WorkerProcess(folder / f"worker-{number}", settings)) for number in range(workers)
        ]
        report("ready. In another terminal:")
        report(f"  export MRISTREAM_KAFKA__BOOTSTRAP_SERVERS={stack.kafka.bootstrap_servers}")
        report(f"  export MRISTREAM_TRITON__URL={stack.triton.grpc_url}")
        report(f"  export MRISTREAM_STORE__URI={settings.store.uri}")
        report("  mristream submit PATH…; mristream results --follow")
        for process in processes:
            report(f"metrics: {process.url('/metrics')}")
        try:
            while True:
                time.sleep(1)
                stack.check()
                for process in processes:
                    if not process.alive():
                        report(f"a worker died and is started again; its log: {process.log}")
                        process.stop()
                        process.start()
        except KeyboardInterrupt:
            report("stopping")


def _keep_only_logs(folder: Path) -> None:
    """What servers stored is worth nothing once their results are read; their logs may be asked for."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # a log is in it
                path.rmdir()
        elif path.suffix != ".log":
            path.unlink()


def _with_addresses(settings: Settings, stack: Stack) -> Settings:
    kafka = settings.kafka.model_copy(update={"bootstrap_servers": stack.kafka.bootstrap_servers})
    triton = settings.triton.model_copy(update={"url": stack.triton.grpc_url})
    return settings.model_copy(update={"kafka": kafka, "triton": triton})


def _stream(
    found: Found, kafka: KafkaSettings, stack: Stack, worker: WorkerProcess, advance: Callable[[int, int], None]
) -> RunOutcome:
    submitter = Submitter(make_producer(kafka), kafka)
    queued: dict[str, Submission] = {}
    all_queued = threading.Event()

    def submit() -> None:
        try:
            queued.update(submit_all(submitter, found.submissions))
        finally:
            all_queued.set()

    started = time.monotonic()
    threading.Thread(target=submit, name="submit", daemon=True).start()
    results: dict[str, ScanResult] = {}
    last_result_at, starts = started, 1
    for result in read_results(kafka, follow=True):
        if result is not None:
            results[result.scan_id] = result
            last_result_at = time.monotonic()
            advance(len(results), len(found.submissions))
        if all_queued.is_set() and results.keys() >= queued.keys():
            break
        if result is not None:
            continue
        stack.check()
        if not worker.alive():
            if starts == WORKER_STARTS:
                worker.check()
            starts += 1
            worker.stop()
            worker.start()
        if time.monotonic() - last_result_at > STALL_TIMEOUT_S:
            break
    missing = [queued[scan_id].uri for scan_id in queued if scan_id not in results]
    return RunOutcome(
        results=[results[scan_id] for scan_id in queued if scan_id in results],
        missing=[*missing, *submitter.failures],
        seconds=last_result_at - started,
    )
