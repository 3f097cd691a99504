from __future__ import annotations

import threading

import pytest

from workers.errors import Unavailable
from workers.metrics import Metrics
from workers.retry import GaveUp, Patience


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
