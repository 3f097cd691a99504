"""The proof of delivery in small: workers die at every step and servers fail in every way, and the history is checked.

`make chaos` is the same for an hour (benchmarks/chaos).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.chaos.faults import PlannedFault
from benchmarks.chaos.history import Defect, Verdict
from benchmarks.chaos.run import Options, harm
from benchmarks.chaos.stack import ChaosStack, Names
from benchmarks.chaos.supervisor import Arm, process_state
from benchmarks.chaos.trial import Trial, wait_for
from benchmarks.chaos.worker import POINTS
from deploy.local.kafka_cluster import GROUP_COORDINATOR, TRANSACTION_COORDINATOR

# Everything here waits for the sessions of the dead, and a busy machine needs time for servers too.
pytestmark = pytest.mark.timeout(600)

SCANS = 24
FROZEN_AT = ("stored", "checkpoint.produced", "checkpoint.offsets_sent")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosStack]:
    """One broker, Triton with models that cost nothing, and Redis, each behind a proxy."""
    # Longer than in a long run: a worker that is slow, because the machine is busy, is not to be taken for dead.
    with ChaosStack(tmp_path_factory.mktemp("chaos"), partitions=2, session_timeout_s=6) as running:
        yield running


@pytest.fixture(scope="module")
def verdicts(stack: ChaosStack) -> dict[str, Verdict]:
    """What is left when a worker has died or was frozen at a point; all at the same time, as they mostly wait."""
    dying = {point: Trial(stack, point, scans=SCANS) for point in POINTS}
    freezing = {f"frozen at {point}": Trial(stack, f"frozen-{point}", scans=SCANS) for point in FROZEN_AT}
    broken = Trial(stack, "broken", scans=SCANS)
    killed = {trial.start_worker(Arm(point)): point for point, trial in dying.items()}
    killed[broken.start_worker(Arm("checkpoint.committed"), broken="commit-before-mask")] = "checkpoint.committed"
    # Until another has done everything.
    frozen = {
        name: trial.start_worker(Arm(point, stop=True), frozen_s=3600)
        for point, (name, trial) in zip(FROZEN_AT, freezing.items(), strict=True)
    }
    for slot, point in killed.items():
        wait_for(lambda slot=slot: bool(slot.deaths), f"death at {point}")  # type: ignore[misc]
        assert slot.deaths[0].why == f"killed at {point}"
    for name, slot in frozen.items():
        wait_for(lambda slot=slot: bool(slot.faults), f"worker {name}")  # type: ignore[misc]
        assert slot.faults[0].kind == f"worker {name}"
        freezing[name].start_worker()
    for name, slot in frozen.items():
        freezing[name].wait_for_results()
        slot.thaw()
        wait_for(lambda slot=slot: process_state(slot.server.pid) != "T", f"the worker {name} to go on")  # type: ignore[misc]
    return {name: trial.finish() for name, trial in {**dying, **freezing, "broken": broken}.items()}


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_that_dies_at_any_step_loses_nothing_and_doubles_nothing(
    verdicts: dict[str, Verdict], point: str
) -> None:
    verdict = verdicts[point]

    assert verdict.defects == {}
    assert (verdict.scans, verdict.results) == (SCANS, SCANS)


@pytest.mark.parametrize("point", FROZEN_AT)
def test_a_worker_that_was_frozen_wakes_up_without_a_say(verdicts: dict[str, Verdict], point: str) -> None:
    verdict = verdicts[f"frozen at {point}"]

    assert verdict.defects == {}
    assert (verdict.scans, verdict.results) == (SCANS, SCANS)


def test_what_broken_transactions_have_written_is_there_and_no_reader_sees_it(verdicts: dict[str, Verdict]) -> None:
    # Of a single one, results may not have left it yet.
    assert sum(verdict.withheld for verdict in verdicts.values()) > 0


def test_masks_that_are_written_after_the_commit_are_found_missing(verdicts: dict[str, Verdict]) -> None:
    assert list(verdicts["broken"].defects) == [Defect.MASK_MISSING]


def test_nothing_is_lost_or_doubled_while_everything_fails(stack: ChaosStack) -> None:
    faults = [
        fault("kill", "worker-1", after_s=0.5),
        fault("reset", "broker-1"),
        fault("cut", "triton"),
        fault("kill", "worker-2", after_s=1.0),
        fault("fill", "store"),
        fault("freeze", "worker-1", seconds=8),
        fault("kill", "store", after_s=1.0),
        fault("hold", "store"),
        fault("overload", "triton"),
        fault("kill", "worker-2", after_s=1.0),
        fault("delay", "broker-1"),
        fault("scale", "worker-extra", seconds=4),
        fault("reload", "triton"),
        fault("freeze", "broker-1", after_s=1.0),
        fault("kill", "worker-2", after_s=1.0),
        fault("kill", "triton", after_s=1.0),
        fault("cut", "store"),
        fault("kill", "worker-1", after_s=1.0),
        fault("kill", "broker-1", after_s=1.0),
        fault("kill", "worker-2"),
        fault("freeze", "triton", after_s=4.0),
        fault("kill", "worker-1", after_s=1.0),
    ]
    options = Options(workers=2, kills=1000, armed=0.2, rate=40, finish_s=90)

    outcome = harm(stack, Names.of("chaos"), options, faults, print)

    assert outcome.trouble == []
    assert outcome.verdict.defects == {}
    assert outcome.kills >= 8
    assert sum(outcome.done.values()) >= len(faults) - 4, "most faults found their target running"


@pytest.mark.long
def test_leaders_and_coordinators_that_die_cost_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    with ChaosStack(
        tmp_path_factory.mktemp("three"), brokers=3, store="file", partitions=3, session_timeout_s=6
    ) as three:

        def faults() -> Iterator[PlannedFault]:
            """Chosen when their turn comes: leaders move."""
            for topic in (GROUP_COORDINATOR, TRANSACTION_COORDINATOR, "results-three"):
                leader = three.kafka.nodes.index(three.kafka.leader(topic)) + 1
                yield fault("kill", f"broker-{leader}", after_s=2.0)
                wait_for(lambda leader=leader: three.servers[f"broker-{leader}"].up, "the broker")  # type: ignore[misc]

        options = Options(brokers=3, store="file", workers=2, armed=0.0, rate=30, finish_s=90)

        outcome = harm(three, Names.of("three"), options, faults(), print)

    assert outcome.trouble == []
    assert outcome.verdict.defects == {}
    assert outcome.kills == 3


def fault(verb: str, target: str, *, after_s: float = 0.3, seconds: float = 1.5) -> PlannedFault:
    return PlannedFault(0, after_s, verb, target, seconds, chance=0.3)
