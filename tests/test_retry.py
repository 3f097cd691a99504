from __future__ import annotations

import threading
import time

import pytest

from tests.conftest import wait_for
from workers.errors import ModelFailed, Unavailable
from workers.metrics import BreakerState, Metrics
from workers.retry import FIRST_DELAY_S, LONGEST_DELAY_S, GaveUp, Patience


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_what_is_down_is_named_while_it_is_waited_for_and_said_once() -> None:
    metrics, said = Metrics(), []
    patience = Patience(metrics, said.append)
    seen_down: list[str] = []
    attempts = iter([Unavailable("store", "refused"), Unavailable("store", "refused"), None])

    def call() -> str:
        seen_down.extend(patience.down())
        problem = next(attempts)
        if problem is not None:
            raise problem
        return "stored"

    assert patience.insist("store", call) == "stored"

    assert seen_down == ["store", "store"]
    assert patience.down() == {}
    assert [line.split()[0:3] for line in said] == [["waiting", "for", "store:"], ["store", "is", "back"]]
    assert value(metrics, "mristream_retries_total", dependency="store") == 2
    assert value(metrics, "mristream_dependency_up", dependency="store") == 1


def test_stop_wakes_whoever_waits() -> None:
    patience = Patience(Metrics(), lambda _: None)
    gave_up = threading.Event()

    def wait_for_ever() -> None:
        with pytest.raises(GaveUp):
            patience.insist("triton", lambda: (_ for _ in ()).throw(Unavailable("triton", "gone")))
        gave_up.set()

    thread = threading.Thread(target=wait_for_ever)
    thread.start()
    patience.stop()

    assert gave_up.wait(5)
    thread.join()


def test_what_is_not_an_outage_is_not_repeated() -> None:
    patience = Patience(Metrics(), lambda _: None)

    with pytest.raises(KeyError):
        patience.insist("triton", lambda: {}["x"])


def test_while_a_dependency_is_down_one_caller_tries_and_the_others_wait_for_what_it_finds() -> None:
    patience = Patience(Metrics(), lambda _: None)
    is_down = threading.Event()
    is_down.set()
    trying: list[int] = []
    most_at_once: list[int] = []

    def call() -> str:
        trying.append(1)
        most_at_once.append(len(trying))
        try:
            time.sleep(0.02)  # a call takes time: long enough for others to come in between, if they may
            if is_down.is_set():
                raise Unavailable("store", "refused")
            return "stored"
        finally:
            trying.pop()

    with pytest.raises(Unavailable):
        call()
    patience.missed(Unavailable("store", "refused"))
    most_at_once.clear()
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(patience.insist("store", call))) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(most_at_once) >= 4, "four attempts")
    assert max(most_at_once) == 1
    is_down.clear()
    for thread in threads:
        thread.join(20)

    assert answers == ["stored"] * 8


def test_pauses_grow_and_are_capped() -> None:
    now = [0.0]
    metrics = Metrics()
    patience = Patience(metrics, lambda _: None, clock=lambda: now[0])
    pauses = []

    for _ in range(12):
        patience.missed(Unavailable("triton", "gone"))
        pauses.append(patience.next_try_s("triton"))
        now[0] += pauses[-1]

    assert FIRST_DELAY_S / 2 <= pauses[0] <= FIRST_DELAY_S
    assert all(LONGEST_DELAY_S / 2 <= pause <= LONGEST_DELAY_S for pause in pauses[-3:])
    assert value(metrics, "mristream_breaker_state", dependency="triton") == BreakerState.OPEN
    assert (value(metrics, "mristream_dependency_down_since_timestamp_seconds", dependency="triton") or 0) > 1e9
    patience.answered("triton")
    assert value(metrics, "mristream_breaker_state", dependency="triton") == BreakerState.CLOSED
    assert value(metrics, "mristream_dependency_down_since_timestamp_seconds", dependency="triton") == 0


def test_a_bad_scan_met_while_trying_ends_the_outage() -> None:
    patience = Patience(Metrics(), lambda _: None)
    patience.missed(Unavailable("source", "gone"))

    with pytest.raises(KeyError):
        patience.insist("source", lambda: {}["x"])

    assert patience.down() == {}
    assert patience.insist("source", lambda: "read") == "read"


def test_a_model_that_fails_while_trying_leaves_the_turn_to_others_and_is_still_down() -> None:
    patience = Patience(Metrics(), lambda _: None)
    patience.missed(Unavailable("triton", "gone"))

    with pytest.raises(ModelFailed):
        patience.insist("triton", lambda: (_ for _ in ()).throw(ModelFailed("no answer in time")))

    assert list(patience.down()) == ["triton"]
    assert patience.insist("triton", lambda: "answer") == "answer"
    assert patience.down() == {}


def test_what_nobody_insists_on_can_be_forgotten() -> None:
    patience = Patience(Metrics(), lambda _: None)
    patience.missed(Unavailable("kafka", "gone"))

    patience.forget("kafka")

    assert patience.down() == {}


def test_what_somebody_insists_on_stays_down_until_it_answers() -> None:
    patience = Patience(Metrics(), lambda _: None)
    answers, tried = threading.Event(), threading.Event()

    def ask() -> None:
        if patience.down():
            tried.set()
        if not answers.is_set():
            raise Unavailable("kafka", "gone")

    asking = threading.Thread(target=lambda: patience.insist("kafka", ask), daemon=True)
    asking.start()
    assert tried.wait(20)

    patience.forget("kafka")
    assert list(patience.down()) == ["kafka"]

    answers.set()
    asking.join(20)
    assert patience.down() == {}
