from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.conftest import scan_message
from workers.errors import Reason, Unavailable
from workers.messages import DeadLetter, Lane, ModelVersion, RejectReason, ScanResult, Status
from workers.metrics import Lag, Metrics
from workers.metrics.worker import LAST_REJECTS
from workers.progress import Outcome, Partition
from workers.retry import Patience
from workers.status import SECURITY_POLICY, History, State, render, state_of
from workers.status.history import INTERVAL_S, READINGS, last, quantile, rates
from workers.status.page import as_bytes, as_duration, as_line, as_rate

# Elements that have no end.
VOID = {"meta", "line", "polyline"}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Elements(HTMLParser):
    """Which elements a page has, in order, and whether each that begins ends."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def history(metrics: Metrics, clock: Clock) -> History:
    return History(metrics, clock)


def state(metrics: Metrics, history: History, **more: object) -> State:
    facts: dict[str, object] = {"worker": "pod:8080", "running_s": 5.0, "hangs_s": None, "waiting_for": {}}
    return state_of(metrics, history.readings(), **(facts | more))  # type: ignore[arg-type]


def outcome(offset: int, status: Status = Status.SEGMENTED, lane: Lane = Lane.ROUTINE) -> Outcome:
    return Outcome(scan_message(offset), ScanResult(scan_id=f"scan-{offset}", status=status, lane=lane))


def rejected(offset: int, topic: str = "scans") -> Outcome:
    reason = RejectReason(code=Reason.DAMAGED, message="SECRET message", step="decode")
    result = ScanResult(scan_id="SECRET-id", source="file:///SECRET.dcm", status=Status.REJECTED, reason=reason)
    message = replace(scan_message(offset), partition=Partition(topic, 3))
    letter = DeadLetter(
        scan_id="SECRET-id",
        code=Reason.DAMAGED,
        message="SECRET message",
        step="decode",
        worker_version="1",
        topic=topic,
        partition=3,
        offset=offset,
    )
    return Outcome(message, result, letter)


def test_a_worker_that_has_done_nothing_yet_has_a_page(metrics: Metrics, history: History) -> None:
    page = render(state(metrics, history))

    assert "Ready." in page
    assert "No scan waits." in page
    assert "None since this worker started." in page
    assert "Not known before the first scan." in page


def test_flow_is_that_of_the_last_minute_by_status(metrics: Metrics, history: History, clock: Clock) -> None:
    metrics.published([outcome(n) for n in range(100)])
    for _ in range(6):
        clock.now += INTERVAL_S
        history.keep()
    metrics.published([*(outcome(n) for n in range(90)), *(outcome(n, Status.UNCERTAIN) for n in range(30))])
    clock.now += INTERVAL_S

    shown = state(metrics, history)

    flow = {f.status: (f.per_s, f.recent, f.total) for f in shown.flow}
    assert flow[Status.SEGMENTED] == (1.5, 190, 190)
    assert flow[Status.UNCERTAIN] == (0.5, 30, 30)
    assert shown.scans_per_s == 2
    assert shown.history_scans_per_s == [10, 0, 0, 0, 0, 0, 12]


def test_history_reaches_back_a_quarter_of_an_hour_and_no_further(
    metrics: Metrics, history: History, clock: Clock
) -> None:
    for _ in range(2 * READINGS):
        clock.now += INTERVAL_S
        history.keep()

    readings = history.readings()

    assert readings[-1].at_s - readings[0].at_s == READINGS * INTERVAL_S == 900
    assert last(readings, 60)[0].at_s == clock.now - 60
    assert last(readings, 9000)[0] is readings[0]
    assert len(rates(readings)) == READINGS + 1


def test_latency_is_estimated_as_prometheus_does_and_held_against_the_objective(
    metrics: Metrics, history: History
) -> None:
    for seconds in (0.3, 0.3, 0.3, 7):
        metrics.end_to_end.labels(Lane.STAT).observe(seconds)

    [stat] = [latency for latency in state(metrics, history).latency if latency.lane is Lane.STAT]

    # Three of four lie evenly between 0.25 and 0.5, one between 5 and 10: that is what a histogram knows.
    assert stat.p50_s == pytest.approx(0.25 + 0.25 * 2 / 3)
    assert stat.p99_s == pytest.approx(5 + 5 * 0.96)
    assert (stat.scans, stat.objective_s, stat.within_objective, stat.misses) == (4, 5.0, 0.75, True)
    assert "! 75.0 %" in render(state(metrics, history))


def test_a_quantile_beyond_the_last_bound_is_that_bound_and_of_nothing_there_is_none() -> None:
    bounds = (1.0, 2.0, float("inf"))

    assert quantile(bounds, (0, 0, 0), 0.5) is None
    assert quantile(bounds, (0, 1, 4), 0.99) == 2
    assert quantile(bounds, (4, 4, 4), 0.5) == 0.5


def test_what_waits_is_shown_by_lane_and_the_oldest_partitions_by_name(metrics: Metrics, history: History) -> None:
    metrics.lag = {
        Partition("scans", number): Lag(Lane.ROUTINE, number, 1.0 + number if number else None) for number in range(20)
    }

    shown = state(metrics, history)

    routine = next(lag for lag in shown.lag if lag.lane is Lane.ROUTINE)
    assert (routine.partitions, routine.scans) == (20, sum(range(20)))
    assert [lag.partition for lag in shown.partitions] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert shown.lag_scans == 190
    assert "scans[1]" in render(shown)


def test_what_is_waited_for_and_since_when_is_shown(metrics: Metrics, history: History) -> None:
    patience = Patience(metrics, lambda _: None)
    patience.missed(Unavailable("triton", "SECRET address"))

    page = render(state(metrics, history, waiting_for={"triton": 7.0}))

    assert "Waits</b> for triton" in page
    assert "! down for " in page
    assert "<td>open</td>" in page
    assert "SECRET" not in page


def test_a_loop_that_hangs_is_what_is_said_first(metrics: Metrics, history: History) -> None:
    page = render(state(metrics, history, hangs_s=75.0, waiting_for={"triton": 7.0}))

    assert "Hangs:</b> its loop has not turned for 1 min 15 s" in page
    assert "<title>Hangs" in page


def test_the_last_rejects_say_why_and_where_and_nothing_of_the_scan(metrics: Metrics, history: History) -> None:
    metrics.published([rejected(offset) for offset in range(LAST_REJECTS + 5)])

    shown = state(metrics, history)

    assert [reject.offset for reject in shown.rejects] == list(range(LAST_REJECTS + 4, 4, -1))
    text = json.dumps(shown.as_json()) + render(shown)
    assert "damaged" in text
    assert "scans[3]@12" in text
    assert "SECRET" not in text


def test_whatever_a_name_holds_is_escaped(metrics: Metrics, history: History) -> None:
    evil = "<img src=x onerror=alert(1)>"
    metrics.published([rejected(1, evil)])
    metrics.lag = {Partition(evil, 0): Lag(Lane.ROUTINE, 1, 1.0)}
    metrics.models_in_use([ModelVersion(name=evil, version=evil, sha256="0" * 64)])

    page = render(state(metrics, history, worker=evil, waiting_for={evil: 1.0}))

    assert "<img" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") >= 5


def test_the_page_needs_nothing_from_elsewhere_and_may_run_nothing_but_its_own(
    metrics: Metrics, history: History
) -> None:
    page = render(state(metrics, history))

    for tag in ("style", "script"):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in SECURITY_POLICY
    assert re.findall(r"https?:|//\w|@import|url\(|\bsrc=|\bon\w+=|\bstyle=", page) == []


def test_the_page_can_be_read_by_a_screen_reader(metrics: Metrics, history: History) -> None:
    metrics.published([outcome(1), rejected(2)])
    metrics.models_in_use([ModelVersion(name="m", version="1", sha256="0" * 64)])

    elements = Elements(render(state(metrics, history)))

    assert elements.open == []
    assert elements.of("html") == [{"lang": "en"}]
    assert {"header", "main", "footer", "nav", "h1", "title"} <= {tag for tag, _ in elements.found}
    assert all("scope" in attributes for attributes in elements.of("th"))
    headings = {attributes.get("id") for tag, attributes in elements.found if tag == "h2"}
    assert {section["aria-labelledby"] for section in elements.of("section")} == headings
    # What a sparkline shows stands beside it in words.
    assert all(attributes["aria-hidden"] == "true" for attributes in elements.of("svg"))
    assert [p["role"] for p in elements.of("p") if "role" in p] == ["alert", "status"]
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_it_can_be_looked_at_while_the_worker_counts(metrics: Metrics) -> None:
    ended = threading.Event()

    def count() -> None:
        offset = 0
        while not ended.is_set():
            offset += 1
            metrics.published([rejected(offset), outcome(offset)])
            metrics.lag = {Partition("scans", offset % 7): Lag(Lane.ROUTINE, offset, 1.0)}
            metrics.models_in_use([ModelVersion(name=f"m{offset % 3}", version="1", sha256="0" * 64)])

    with History(metrics) as history:
        counting = threading.Thread(target=count)
        counting.start()
        try:
            for _ in range(50):
                history.keep()
                json.dumps(state(metrics, history).as_json(), allow_nan=False)
                render(state(metrics, history))
        finally:
            ended.set()
            counting.join()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0204, "20 ms"),
        (1.25, "1.2 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (2e5, "2 d 7 h"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert as_duration(seconds) == text


def test_figures_are_short() -> None:
    assert [as_rate(rate) for rate in (0, 0.123, 1.23, 1234.5)] == ["0", "0.12", "1.2", "1,234"]
    assert [as_bytes(count) for count in (0, 2048, 3 << 20, 5 << 30)] == ["0 B", "2.0 KiB", "3.0 MiB", "5.0 GiB"]


def test_a_sparkline_ends_at_the_right_and_has_gaps_where_nothing_is_known() -> None:
    assert as_line([0.0, 2.0, None, 1.0]) == ["86,29.0 87,1.0", "89,15.0 89,15.0"]
    assert as_line([]) == []
