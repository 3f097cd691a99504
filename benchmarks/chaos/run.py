"""One run: start everything, send scans, do harm on schedule, let it recover, and read the history."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.chaos.faults import EXTRA_WORKER, PlannedFault, Undo, inject, schedule
from benchmarks.chaos.history import Fault, Verdict, check
from benchmarks.chaos.load import Load, Sender
from benchmarks.chaos.stack import ChaosStack, Names, StoreKind
from benchmarks.chaos.supervisor import Death, now_ms, random_arms
from benchmarks.chaos.watch import Watcher, read_history, unpublished
from deploy.local.server import ServerError

Say = Callable[[str], None]

_FIRST_RESULT_TIMEOUT_S = 180.0
# With so many faults a quiet minute is nothing; this is a system that no longer works.
_STUCK_AFTER_S = 300.0
_PROGRESS_INTERVAL_S = 15.0
_LOG_LINES = 150


@dataclass(frozen=True, slots=True)
class Options:
    """What kind of run. `rate` is in scans a second, `interval_s` the mean time between two scheduled faults.

    `armed` is the share of workers that are started with a fault point; `finish_s` how long the last scans may take.
    """

    seed: int = 7
    kills: int = 1000
    brokers: int = 1
    workers: int = 3
    store: StoreKind = "redis"
    group_protocol: Literal["consumer", "classic"] = "consumer"
    rate: float = 30.0
    most_waiting: int = 600
    interval_s: float = 2.5
    armed: float = 0.6
    finish_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to. `trouble` says why it ended early, or what didn't come back, if anything."""

    options: Options
    verdict: Verdict
    deaths: Sequence[Death]
    faults: Sequence[Fault]
    done: Mapping[str, int]
    trouble: Sequence[str]
    seconds: float

    @property
    def kills(self) -> int:
        """How often a process was killed."""
        return sum(death.killed for death in self.deaths)

    @property
    def holds(self) -> bool:
        """Whether the promise was kept and every server came back."""
        return self.verdict.holds and not self.trouble


class Injector:
    """Does faults and undoes them when their time is over; at most one at a time to each target, kills excepted."""

    def __init__(self, stack: ChaosStack) -> None:
        self._stack = stack
        self._active: dict[str, tuple[float, PlannedFault, int, Undo]] = {}
        # Undoing may take seconds: a worker drains.
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="undo")
        self._undoing: dict[str, Future[None]] = {}
        self.faults: list[Fault] = []
        self.done: Counter[str] = Counter()

    def inject(self, fault: PlannedFault) -> bool:
        """Do it. False if it can't be done now."""
        place = f"{fault.verb if fault.verb in ('fill', 'overload', 'reload') else ''}{fault.target}"
        lasting = fault.verb not in ("kill", "freeze")
        if lasting and (place in self._active or not self._undoing.get(place, _DONE).done()):
            return False
        undo = inject(fault, self._stack)
        if undo is None:
            return False
        self.done[fault.kind] += 1
        if lasting:
            self._active[place] = (time.monotonic() + fault.seconds, fault, now_ms(), undo)
        return True

    def undo_due(self, *, everything: bool = False) -> None:
        """Undo what is over."""
        for place, (until, fault, began_ms, undo) in list(self._active.items()):
            if everything or time.monotonic() >= until:
                del self._active[place]
                self._undoing[place] = self._threads.submit(self._undo, fault, began_ms, undo)

    def calm(self) -> None:
        """Undo everything, and return when it is undone."""
        self.undo_due(everything=True)
        for future in self._undoing.values():
            future.result()
        self._threads.shutdown()

    def _undo(self, fault: PlannedFault, began_ms: int, undo: Undo) -> None:
        undo()
        self.faults.append(
            Fault(f"{fault.kind.partition(' ')[2]} {_WORDS[fault.verb]}", fault.target, began_ms, now_ms())
        )


_DONE: Future[None] = Future()
_DONE.set_result(None)
_WORDS = {
    "cut": "cut off",
    "hold": "silent",
    "delay": "far away",
    "reset": "reset",
    "reload": "reloading a model",
    "overload": "overloaded",
    "fill": "full",
    "scale": "more for a while",
}


def run(options: Options, folder: Path, say: Say) -> Outcome:
    """Start servers in `folder`, kill until it is enough, and judge what is left.

    Raises ServerError if the servers can't be started at all.
    """
    started = time.monotonic()

    def tell(text: str) -> None:
        say(f"{time.monotonic() - started:6.0f} s  {text}")

    tell("starting Kafka, Triton and the store")
    with ChaosStack(
        folder, brokers=options.brokers, store=options.store, group_protocol=options.group_protocol
    ) as stack:
        return harm(stack, Names(), options, planned_for(options), tell)


def planned_for(options: Options) -> Iterator[PlannedFault]:
    """The endless schedule of these options."""
    return schedule(
        options.seed,
        workers=options.workers,
        brokers=options.brokers,
        store=options.store,
        interval_s=options.interval_s,
    )


def harm(stack: ChaosStack, names: Names, options: Options, planned: Iterable[PlannedFault], say: Say) -> Outcome:
    """Let workers work on a running stack and do the planned faults, until all are done or enough has been killed."""
    trouble: list[str] = []
    started = time.monotonic()
    stack.create_topics(names)
    kafka = stack.settings(names, direct=True).kafka
    for name in (*(f"worker-{n}" for n in range(1, options.workers + 1)), EXTRA_WORKER):
        stack.worker(name, names, random_arms(f"{options.seed}/{name}", options.armed))
        if name != EXTRA_WORKER:
            stack.workers[name].start()
    sender = Sender(Load(options.seed), kafka, rate=options.rate, most_waiting=options.most_waiting)
    watcher = Watcher(kafka, stack.mask_digest)
    injector = Injector(stack)
    sender.start()
    watcher.start()
    try:
        _wait(lambda: watcher.seen > 0, stack, _FIRST_RESULT_TIMEOUT_S, "the first result")
        say("the first result is there; now the faults")
        _do_faults(options, planned, stack, injector, sender, watcher, say)
    except (ServerError, TimeoutError) as problem:
        trouble.append(str(problem))
    injector.calm()
    for slot in stack.workers.values():
        slot.choose_arm = lambda: None
        slot.thaw()
    sender.stop()
    say(f"{stack.kills} kills, {len(sender.sent)} scans sent; now it may recover")
    try:
        _wait(lambda: unpublished(kafka) == {}, stack, options.finish_s, "the last scan's result")
    except (ServerError, TimeoutError) as problem:
        trouble.append(f"{problem}; still waiting: {unpublished(kafka)}; see the workers' logs for what they are at")
        for slot in stack.workers.values():
            slot.tell_stacks()
    for slot in stack.workers.values():
        slot.stop()
        if trouble and slot.worker.log.exists():
            say(f"the end of {slot.worker.log}:\n{_last_lines(slot.worker.log)}")
    say("reading the history")
    faults = [*injector.faults, *(fault for each in stack.everything() for fault in each.faults)]
    history = read_history(
        kafka,
        stack.mask_digest,
        expected=sender.sent,
        acknowledged=sender.acknowledged.values(),
        late=watcher.late,
        faults=faults,
    )
    watcher.stop()
    return Outcome(
        options=options,
        verdict=check(history),
        deaths=stack.deaths(),
        faults=faults,
        done=injector.done,
        trouble=trouble,
        seconds=time.monotonic() - started,
    )


def _do_faults(
    options: Options,
    planned: Iterable[PlannedFault],
    stack: ChaosStack,
    injector: Injector,
    sender: Sender,
    watcher: Watcher,
    say: Say,
) -> None:
    told = due = time.monotonic()
    for fault in planned:
        due = max(due + fault.after_s, time.monotonic() - options.interval_s)
        while True:
            injector.undo_due()
            stack.check()
            sender.done = watcher.seen
            if stack.kills >= options.kills:
                return
            if time.monotonic() - watcher.seen_at > _STUCK_AFTER_S:
                raise TimeoutError(f"no result for {_STUCK_AFTER_S:.0f} s")
            if time.monotonic() - told > _PROGRESS_INTERVAL_S:
                told = time.monotonic()
                say(f"{stack.kills} kills, {len(sender.sent)} scans, {watcher.seen} results")
            if time.monotonic() >= due:
                break
            threading.Event().wait(0.05)
        happened = injector.inject(fault)
        say(f"{fault.number:5d}. {fault}{'' if happened else ' (not now)'}")


def _last_lines(log: Path) -> str:
    """What tells why a worker doesn't get on, for whoever sees no more of a run than its output."""
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join([line for line in lines if "a scan is rejected" not in line][-_LOG_LINES:])


def _wait(condition: Callable[[], bool], stack: ChaosStack, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        stack.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:.0f} s")
        threading.Event().wait(0.2)
