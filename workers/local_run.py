"""`mristream run` and `mristream up`: real servers and workers on this machine."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local.prometheus import TRITON, WORKERS, Prometheus
from deploy.local.stack import Stack
from deploy.local.worker import WorkerProcess
from workers.errors import UserError
from workers.kafka import create_topics, make_producer
from workers.logs import message_of
from workers.messages import ScanResult
from workers.settings import KafkaSettings, Settings, TritonSettings
from workers.submission import Found, Submission, Submitter, submit_all
from workers.topics import read_results
from workers.tracing import NO_TRACING, Tracing

# With nothing finished for this long something is stuck for good: most outages are over by then, and whoever can end
# the others sits in front of it.
STALL_TIMEOUT_S = 300.0
# A worker that died is started again, as Kubernetes would; a scan that kills it every time must not do so for ever.
WORKER_STARTS = 3
# A worker that isn't ready by then, and says what it waits for, may wait for long: for a store that is down, or for the
# place of a scan that was left in the queue.
WORKER_START_S = 15.0
# Longer than the slowest batch on a busy machine, and still soon for a person who wonders why nothing moves.
ASK_WORKER_AFTER_S = 3.0
# Who stops a run early doesn't want to wait, and what is in flight then is worth nothing.
DRAIN_TIMEOUT_S = 2.0
# Somebody sits before it and waits to see something; a few processes cost nothing to ask.
LOCAL_SCRAPE_INTERVAL_S = 5.0

# The system hands a child no more than 128 KiB of settings.
_MOST_PREFIXES = 200
_TLS = ("ca_file", "cert_file", "key_file")
_TRITON_ACCESS = ("tls", *_TLS)
_KAFKA_ACCESS = (
    *("security_protocol", "sasl_mechanism", "username", "password", "password_file"),
    *("oauth_token_url", "oauth_scope", "client", *_TLS),
)

RESULTS = "results.jsonl"
_WRITTEN_BY_RUN = (RESULTS, "report.html", "masks", "overlays", "servers")
# In a folder that a run has written: the next one may replace what is there. Locked while a run writes.
_RUN_MARK = ".mristream-run"
_UP_MARK = ".mristream-up"

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What a run delivered. `results` is in the order of the input; `missing` says what has no final result, and why."""

    results: list[ScanResult]
    missing: list[str]
    seconds: float


@contextmanager
def run_folder(out: Path, found: Found) -> Iterator[None]:
    """Have `out` to ourselves for one run, without what an earlier run has left in it.

    Raises UserError if it holds anything else, can't be written, is in use, or doesn't lie apart from the input: the
    next run would take results for scans, or this one delete what it is to read.
    """
    for folder in found.folders:
        if out.is_relative_to(folder.resolve()):
            raise UserError(
                f"what is written to {out} would be read as scans by the next run over {folder}: "
                "choose a folder elsewhere for --out"
            )
    for scan in found.submissions:
        if scan.path is not None and scan.path.resolve().is_relative_to(out):
            raise UserError(f"{scan.path} lies in {out}, which is cleared first: choose another folder for --out")
    with _own_folder(out, _RUN_MARK, may_hold_others=False):
        try:
            for path in (out / name for name in _WRITTEN_BY_RUN):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        except OSError as problem:
            raise UserError(f"what an earlier run left in {out} can't be deleted: {problem}") from problem
        yield


def run_scans(
    found: Found,
    out: Path,
    settings: Settings,
    model_repository: Path,
    *,
    report: Report,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> RunOutcome:
    """Stream the scans through servers of our own and stop those again, whatever happens.

    `settings` says all but the servers' addresses. `advance` hears how many results of how many are there. The results
    that there are when it ends, however it ends, are in `out/results.jsonl`; server logs stay in `out/servers`.
    Raises ServerError if a server doesn't start or dies.
    """
    servers = out / "servers"
    settings = settings.model_copy(
        update={"worker": settings.worker.model_copy(update={"drain_timeout_s": DRAIN_TIMEOUT_S})}
    )
    try:
        traces_url = settings.tracing.traces_url
        with Stack(servers, model_repository=model_repository, traces_url=traces_url, report=report) as stack:
            settings = _with_addresses(settings, stack, prefixes_of(found))
            # All scans come at once here: lanes would only cost time.
            one_lane = settings.kafka.model_copy(update={"stat_topic": None, "replay_topic": None})
            settings = settings.model_copy(update={"kafka": one_lane})
            create_topics(settings.kafka)
            with _PatientWorker(servers, settings) as worker, Tracing(settings.tracing, "mristream-run") as tracing:
                return _Run(found, settings.kafka, stack, worker, report, advance, tracing).stream(out / RESULTS)
    finally:
        _keep_only_logs(servers)


def keep_up(
    folder: Path,
    settings: Settings,
    model_repository: Path,
    *,
    workers: int,
    prometheus_port: int | None = None,
    report: Report,
) -> None:
    """Run servers and workers in `folder` until Ctrl-C or SIGTERM; a worker that dies is started again.

    With `prometheus_port` (0: any free one) a Prometheus watches them.
    Raises ServerError if a server doesn't start or dies, UserError if another one uses `folder`.
    """
    with ExitStack() as running:
        running.enter_context(_own_folder(folder, _UP_MARK, may_hold_others=True))
        prometheus = None
        if prometheus_port is not None:
            # Before the others, which take longer: a program that can't be had shows at once.
            prometheus = Prometheus(
                folder / "prometheus", port=prometheus_port, scrape_interval_s=LOCAL_SCRAPE_INTERVAL_S
            )
            prometheus.provision(report)
            running.enter_context(prometheus)
        traces_url = settings.tracing.traces_url
        stack = running.enter_context(
            Stack(folder, model_repository=model_repository, traces_url=traces_url, report=report)
        )
        # What is too large for a message is read where it lies; scans lie where we were started, or so the settings say.
        here = Path.cwd().as_uri()
        settings = _with_addresses(settings, stack, (here, *settings.source.allowed_prefixes))
        create_topics(settings.kafka)
        processes = [
            running.enter_context(_PatientWorker(folder / f"worker-{number}", settings)) for number in range(workers)
        ]
        report("ready. In another terminal:")
        report(f"  export MRISTREAM_KAFKA__BOOTSTRAP_SERVERS={stack.kafka.bootstrap_servers}")
        report(f"  export MRISTREAM_TRITON__URL={stack.triton.grpc_url}")
        report(f"  export MRISTREAM_STORE__URI={shlex.quote(settings.store.uri)}")
        report("  mristream submit PATH…; mristream results --follow")
        report(f"large scans are read below {Path.cwd()}; MRISTREAM_SOURCE__ALLOWED_PREFIXES allows other places")
        for process in processes:
            report(f"status: {process.url('/')}; metrics: {process.url('/metrics')}")
        if prometheus is not None:
            prometheus.scrape(TRITON, [stack.triton.metrics_url])
            prometheus.scrape(WORKERS, [process.url("/metrics") for process in processes])
            report(f"Prometheus, with rules and alerts: {prometheus.url}")
        waiting_for = [""] * workers
        try:
            while True:
                time.sleep(1)
                stack.check()
                if prometheus is not None and not prometheus.alive():
                    report(f"Prometheus died and is started again; its log: {prometheus.log}")
                    prometheus.restart()
                for number, process in enumerate(processes):
                    if not process.alive():
                        report(f"worker {number} died and is started again; its log: {process.log}")
                        process.restart()
                    waiting_for[number] = _say_what_is_waited_for(
                        f"worker {number}", process, waiting_for[number], report
                    )
        except KeyboardInterrupt:
            report("stopping")


class _Run:
    """One run, once its servers and its worker are up."""

    def __init__(
        self,
        found: Found,
        kafka: KafkaSettings,
        stack: Stack,
        worker: WorkerProcess,
        report: Report,
        advance: Callable[[int, int], None],
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._found = found
        self._kafka = kafka
        self._stack = stack
        self._worker = worker
        self._report = report
        self._advance = advance
        self._submitter = Submitter(make_producer(kafka), kafka, tracing=tracing)
        self._sending_failed: Exception | None = None
        self._all_sent = threading.Event()
        self._results: dict[str, ScanResult] = {}
        self._worker_starts = 1
        self._waiting_for = ""

    def stream(self, results_file: Path) -> RunOutcome:
        """Send all scans, and return when each that Kafka took has its result, or none came for too long."""
        started = last_result_at = asked_at = time.monotonic()
        threading.Thread(target=self._send_all, name="submit", daemon=True).start()
        try:
            for result in read_results(self._kafka, follow=True):
                now = time.monotonic()
                if result is not None:
                    # The message doesn't say which file it was; we know, and so shall the results that lie beside it.
                    sent = self._submitter.queued.get(result.scan_id)
                    source = sent.uri if sent else result.source
                    self._results[result.scan_id] = result.model_copy(update={"source": source})
                    last_result_at = now
                    self._advance(len(self._results), len(self._found.submissions))
                if self._complete():
                    break
                if result is not None:
                    continue
                self._look_after_servers()
                if now - last_result_at > STALL_TIMEOUT_S:
                    self._report(f"nothing was finished for {STALL_TIMEOUT_S:.0f} s: the run is given up")
                    break
                if now - max(last_result_at, asked_at) > ASK_WORKER_AFTER_S:
                    asked_at = now
                    self._waiting_for = _say_what_is_waited_for(
                        "the worker", self._worker, self._waiting_for, self._report
                    )
        except BaseException:
            self._report(f"stopping; {len(self._results)} of {len(self._found.submissions)} scans have a result")
            raise
        finally:
            lines = "".join(f"{result.model_dump_json()}\n" for result in self._in_order())
            results_file.write_text(lines, encoding="utf-8")
        return RunOutcome(self._in_order(), self._missing(), last_result_at - started)

    def _send_all(self) -> None:
        try:
            submit_all(self._submitter, self._found.submissions)
        except Exception as problem:  # raised again on the main thread
            self._sending_failed = problem
        finally:
            self._all_sent.set()

    def _complete(self) -> bool:
        if not self._all_sent.is_set():
            return False
        if self._sending_failed is not None:
            raise self._sending_failed
        queued = self._submitter.queued
        # The lengths first: comparing the ids after every result would take a large run's whole time.
        return len(self._results) >= len(queued) and self._results.keys() >= queued.keys()

    def _look_after_servers(self) -> None:
        self._stack.check()
        if self._worker.alive():
            return
        if self._worker_starts == WORKER_STARTS:
            self._worker.check()
        self._worker_starts += 1
        self._report(f"the worker died and is started again; its log: {self._worker.log}")
        self._worker.restart()

    def _in_order(self) -> list[ScanResult]:
        return [self._results[scan_id] for scan_id in list(self._submitter.queued) if scan_id in self._results]

    def _missing(self) -> list[str]:
        queued: list[tuple[str, Submission]] = list(self._submitter.queued.items())
        missing = [f"{scan.place}: no result came" for scan_id, scan in queued if scan_id not in self._results]
        return [*missing, *self._submitter.failures, *self._found.unreadable]


class _PatientWorker(WorkerProcess):
    """A worker that counts as started, too, once it says that it waits for something: that is not its fault."""

    _started_at = 0.0

    def prepare(self) -> list[str]:
        """The command."""
        self._started_at = time.monotonic()
        return super().prepare()

    def ready(self) -> bool:
        """Whether it is ready, or has waited for something for a while."""
        return super().ready() or (time.monotonic() - self._started_at > WORKER_START_S and bool(_waiting_for(self)))


def _say_what_is_waited_for(name: str, worker: WorkerProcess, said: str, report: Report) -> str:
    """Report what the worker waits for, if that isn't what was `said` last; returns it."""
    waiting_for = _waiting_for(worker)
    if waiting_for != said:
        report(f"{name} waits for {waiting_for}" if waiting_for else f"{name} goes on")
    return waiting_for


def _waiting_for(worker: WorkerProcess) -> str:
    """What the worker says that it waits for, with the reason from its log; empty if it waits for nothing."""
    try:
        names = worker.waiting_for()
    except OSError:
        return ""  # it starts, or has died, which is noticed elsewhere
    lines = [message_of(line) for line in worker.log.read_text(errors="replace").splitlines()]
    reasons = [
        next((line.partition("waiting for ")[2] for line in reversed(lines) if f"waiting for {name}: " in line), name)
        for name in names
    ]
    return "; ".join(reasons)


@contextmanager
def _own_folder(folder: Path, mark: str, *, may_hold_others: bool) -> Iterator[None]:
    """Make `folder` if it isn't there, and hold the lock of the file `mark` in it; the kernel frees it however we end."""
    try:
        if not may_hold_others and folder.exists() and any(folder.iterdir()) and not (folder / mark).exists():
            raise UserError(f"{folder} holds something else: choose an empty or new folder")
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / mark).open("a")
    except OSError as problem:
        raise UserError(f"{folder} can't be written to: {problem.strerror}") from problem
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another mristream uses {folder}: choose another folder, or wait for it to end") from None
        yield


def _keep_only_logs(folder: Path) -> None:
    """Delete what servers stored, the scans among it: it is worth nothing once their results are read."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix != ".log":
            path.unlink()


def prefixes_of(found: Found) -> tuple[str, ...]:
    """What a worker must be allowed to read all of these files: the folders in which they and what they link to lie."""
    files = [scan.path for scan in found.submissions if scan.path is not None]
    # Where a name leads, and where it only seems to: Sources wants both to be allowed.
    folders = {path.parent for path in files} | {path.resolve().parent for path in files}
    outermost = {folder for folder in folders if folders.isdisjoint(folder.parents)}
    if len(outermost) > _MOST_PREFIXES:
        outermost = {Path(os.path.commonpath(outermost))}
    return tuple(sorted(folder.as_uri() for folder in outermost))


def _with_addresses(settings: Settings, stack: Stack, allowed_prefixes: tuple[str, ...]) -> Settings:
    # Security settings of another Kafka or Triton mean nothing to our own.
    unset = {name: KafkaSettings.model_fields[name].get_default() for name in _KAFKA_ACCESS}
    kafka = settings.kafka.model_copy(update=unset | {"bootstrap_servers": stack.kafka.bootstrap_servers})
    unset = {name: TritonSettings.model_fields[name].get_default() for name in _TRITON_ACCESS}
    triton = settings.triton.model_copy(update=unset | {"url": stack.triton.grpc_url})
    source = settings.source.model_copy(update={"allowed_prefixes": allowed_prefixes})
    # What these workers log lies in a folder, for people to read.
    worker = settings.worker.model_copy(update={"log_format": settings.worker.log_format or "text"})
    return settings.model_copy(update={"kafka": kafka, "triton": triton, "source": source, "worker": worker})
