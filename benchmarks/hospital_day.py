"""A day of a hospital against the chart's scaling rules: is the latency objective kept, and what does it cost in pod-hours?

    python -m benchmarks.hospital_day [--values FILE] [--hospitals 1] [--seed 1] [--out FOLDER]

A simulation. Read and not assumed: the rules, from the objects that helm renders of --values (thresholds, polling, windows,
bounds, schedule), and the rates of a worker and of a Triton, from workers/figures.json. Assumed, and options or constants
here: the day, how a study becomes slices, how long a pod takes to be ready.

Prints a table of the hours; with --out it writes hospital_day.png.
"""

from __future__ import annotations

import argparse
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.scaling_rules import CHART, HPA_SYNC_S, Pods, Rules, rendered, rules_of, within_tolerance
from workers.figures import Figures, read_figures
from workers.messages import Lane
from workers.metrics import OBJECTIVE_SHARE, OBJECTIVES_S

VALUES = CHART / "examples" / "hospital.yaml"
DAY_S = 24 * 3600
STEP_S = 0.25

# Studies in the busiest hour, and images or slices in one (mean; each study draws from half to one and a half of it).
STUDIES = {"XR": (120, 3), "US": (50, 40), "CT": (30, 400), "MR": (25, 500)}
# Share of the busiest hour, by the hour of the day: a night with an emergency room, two peaks, a long evening.
DAY = (
    *(0.08, 0.06, 0.05, 0.05, 0.06, 0.10, 0.20, 0.50, 0.85, 1.00, 1.00, 0.95),
    *(0.80, 0.85, 0.90, 0.80, 0.60, 0.40, 0.30, 0.25, 0.20, 0.15, 0.12, 0.10),
)
# Every tenth study is urgent.
STAT_SHARE = 0.1
# A PACS forwards a study image by image, about as fast as this.
SENT_PER_S = 50.0
# From a pod's creation to its first scan: measured on two cores (docs/images.md); an image that has to be pulled or a GPU
# node that has to be started comes on top.
WORKER_START_S, TRITON_START_S = 20.0, 40.0
# What a request waits in Triton's queue while scans wait: measured with one worker and with three on one Triton (54 and
# 122 ms). It does not grow with the backlog, as a worker takes on no more than keeps its batches short (workers/pace.py), but with
# the workers for each Triton.
QUEUE_S, QUEUE_OF_EACH_WORKER_S = 0.020, 0.034
# Of a Triton that nobody asks, the adapter's rule says 0, which asks for the fewest as this does.
QUEUE_IDLE_S = 0.005


@dataclass(frozen=True, slots=True)
class Study:
    """Scans that are sent one after another from `begins_s` on."""

    begins_s: float
    slices: int
    lane: Lane


def draw_day(hospitals: float, seed: int) -> list[Study]:
    """The studies of a day; each kind comes when it comes (Poisson) at the rate of its hour."""
    chance = np.random.default_rng(seed)
    studies = []
    for hour, share in enumerate(DAY):
        for in_peak_hour, slices in STUDIES.values():
            for begins_s in chance.uniform(0, 3600, chance.poisson(in_peak_hour * share * hospitals)):
                lane = Lane.STAT if chance.random() < STAT_SHARE else Lane.ROUTINE
                drawn = max(1, round(slices * chance.uniform(0.5, 1.5)))
                studies.append(Study(hour * 3600 + begins_s, drawn, lane))
    return sorted(studies, key=lambda study: study.begins_s)


@dataclass
class Outcome:
    """What became of the day."""

    latencies_s: dict[Lane, list[tuple[float, float, int]]] = field(
        default_factory=lambda: {Lane.STAT: [], Lane.ROUTINE: []}
    )
    timeline: list[tuple[float, int, int, float]] = field(default_factory=list)
    worker_hours: float = 0.0
    triton_hours: float = 0.0

    def share_within(self, lane: Lane) -> float:
        """Of the lane's scans, how many kept the objective."""
        found = self.latencies_s[lane]
        total = sum(scans for _, _, scans in found)
        return sum(scans for _, late_s, scans in found if late_s <= OBJECTIVES_S[lane]) / total if total else 1.0

    def quantile(self, lane: Lane, share: float, hour: int | None = None) -> float:
        """Latency below which that share of the lane's scans (of an hour) lies."""
        found = sorted(
            (late_s, scans) for at_s, late_s, scans in self.latencies_s[lane] if hour is None or at_s // 3600 == hour
        )
        left = share * sum(scans for _, scans in found)
        for late_s, scans in found:
            left -= scans
            if left <= 0:
                return late_s
        return 0.0


def play(
    studies: Sequence[Study],
    workers: Rules,
    tritons: Rules,
    figures: Figures,
    scrape_s: float,
    *,
    fixed: tuple[int, int] | None = None,
) -> Outcome:
    """Send the day's scans through. With `fixed`, so many workers and Tritons run all day: what scaling is compared with."""
    outcome = Outcome()
    wanted = fixed or (workers.least, tritons.least)
    pods = {"worker": Pods(workers, WORKER_START_S, wanted[0]), "triton": Pods(tritons, TRITON_START_S, wanted[1])}
    arrivals = _arrivals(studies)
    waiting: dict[Lane, deque[list[float]]] = {Lane.STAT: deque(), Lane.ROUTINE: deque()}
    base_s = figures.alone.p50_ms / 1000
    scraped: dict[str, float] = {"stat": 0.0, "routine": 0.0, "queue": 0.0}
    queue_s = deque([QUEUE_IDLE_S] * int(60 / STEP_S), maxlen=int(60 / STEP_S))
    active_s, budget = -math.inf, 0.0
    steps = int(DAY_S / STEP_S)
    for step in range(steps + int(3600 / STEP_S)):
        now_s = step * STEP_S
        for lane, scans in arrivals.get(step, ()):
            waiting[lane].append([now_s, scans])
        # What is ready takes STAT scans first, then the oldest.
        capacity = min(
            pods["worker"].ready(now_s) * figures.worker.scans_per_s,
            pods["triton"].ready(now_s) * figures.unit.scans_per_s,
        )
        budget = min(budget + capacity * STEP_S, max(1.0, capacity * STEP_S))
        for lane, queue in waiting.items():
            while queue and budget >= 1:
                at_s, scans = queue[0]
                taken = min(scans, math.floor(budget))
                budget -= taken
                outcome.latencies_s[lane].append((at_s, now_s + STEP_S - at_s + base_s, int(taken)))
                queue[0][1] -= taken
                if not queue[0][1]:
                    queue.popleft()
        each_s = QUEUE_OF_EACH_WORKER_S * pods["worker"].ready(now_s) / max(1, pods["triton"].ready(now_s))
        queue_s.append(QUEUE_S + each_s if any(waiting.values()) and capacity else QUEUE_IDLE_S)
        for kind in pods.values():
            kind.pod_s += kind.wanted * STEP_S
        if _every(step, 10):
            backlog = sum(scans for queue in waiting.values() for _, scans in queue)
            outcome.timeline.append((now_s / 3600, pods["worker"].wanted, pods["triton"].wanted, backlog))
        if now_s >= DAY_S and not any(waiting.values()):
            break
        if fixed is not None:
            continue
        if _every(step, scrape_s):
            scraped = {str(lane): now_s - queue[0][0] if queue else 0.0 for lane, queue in waiting.items()}
            # The adapter's rule: how long requests wait, times the share of the minute in which there were any.
            scraped["queue"] = sum(queue_s) / len(queue_s)
        if any(scraped[lane] > 0 for lane in ("stat", "routine")):
            active_s = now_s
        active_s = _scale(pods, scraped, now_s, step, active_s)
    outcome.worker_hours = pods["worker"].pod_s / 3600
    outcome.triton_hours = pods["triton"].pod_s / 3600
    return outcome


def _scale(pods: dict[str, Pods], scraped: dict[str, float], now_s: float, step: int, active_s: float) -> float:
    worker, triton = pods["worker"], pods["triton"]
    by_clock = max((n for first, last, n in worker.rules.schedule if first <= now_s % DAY_S / 3600 < last), default=0)
    if by_clock:
        active_s = now_s
    if _every(step, worker.rules.polling_s):
        # From none to one, and to none, it is KEDA itself that scales.
        if worker.wanted == 0 and active_s == now_s:
            worker.set(now_s, 1)
        elif worker.wanted and worker.rules.least == 0 and now_s - active_s > worker.rules.cooldown_s:
            worker.set(now_s, 0)
    if _every(step, HPA_SYNC_S):
        if worker.wanted:
            asked = [by_clock]
            for lane, target_s in worker.rules.targets.items():
                usage = scraped.get(lane, 0.0) / (target_s * worker.wanted)
                asked.append(worker.wanted if within_tolerance(usage) else math.ceil(scraped.get(lane, 0.0) / target_s))
            worker.recommend(now_s, max(asked))
        # The metric is of pods that answer, and a Triton that starts does not.
        ratio = scraped["queue"] / triton.rules.targets["queue"]
        ready = max(1, triton.ready(now_s))
        triton.recommend(now_s, triton.wanted if within_tolerance(ratio) else math.ceil(ready * ratio))
    return active_s


def _every(step: int, period_s: float) -> bool:
    return step % max(1, round(period_s / STEP_S)) == 0


def _arrivals(studies: Sequence[Study]) -> dict[int, list[tuple[Lane, int]]]:
    found: dict[int, list[tuple[Lane, int]]] = {}
    for study in studies:
        per_step = SENT_PER_S * STEP_S
        left, sent, step = study.slices, 0.0, int(study.begins_s / STEP_S)
        while left:
            sent += per_step
            now = min(left, math.floor(sent))
            sent -= now
            left -= now
            if now:
                found.setdefault(step, []).append((study.lane, now))
            step += 1
    return found


def report(outcome: Outcome, fixed: Mapping[tuple[int, int], Outcome]) -> str:
    """The table of hours, what the day came to, and what it would have with other numbers of workers and Tritons all day."""
    lines = ["hour    scans  workers  Tritons  p99 stat  p99 routine"]
    for hour in range(24):
        scans = sum(n for found in outcome.latencies_s.values() for at_s, _, n in found if int(at_s // 3600) == hour)
        inside = [each for each in outcome.timeline if hour <= each[0] < hour + 1]
        most = [max((each[index] for each in inside), default=0) for index in (1, 2)]
        p99 = [outcome.quantile(lane, 0.99, hour) for lane in (Lane.STAT, Lane.ROUTINE)]
        lines.append(f"{hour:4d} {scans:8,d} {most[0]:8d} {most[1]:8d} {p99[0]:8.1f}s {p99[1]:11.1f}s")
    for lane, bound_s in OBJECTIVES_S.items():
        share = outcome.share_within(lane)
        kept = "kept" if share >= OBJECTIVE_SHARE else "NOT KEPT"
        lines.append(f"{lane}: {share:.2%} within {bound_s:g} s, {OBJECTIVE_SHARE:.0%} are promised: {kept}")
    lines.append(f"{outcome.worker_hours:.1f} pod-hours of workers, {outcome.triton_hours:.1f} of Tritons")
    for (workers, tritons), always in fixed.items():
        shares = ", ".join(f"{lane} {always.share_within(lane):.2%}" for lane in OBJECTIVES_S)
        lines.append(
            f"{workers} workers and {tritons} Tritons all day: {shares}; {24 * workers} and {24 * tritons} pod-hours"
        )
    return "\n".join(lines)


def draw(outcome: Outcome, file: Path) -> None:
    """Pods and backlog over the day, and each scan's latency."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (pods, backlog, late) = pyplot.subplots(3, 1, figsize=(9, 7.5), sharex=True)
    hours = [each[0] for each in outcome.timeline]
    pods.step(hours, [each[1] for each in outcome.timeline], label="workers", where="post")
    pods.step(hours, [each[2] for each in outcome.timeline], label="Tritons", where="post")
    pods.set_ylabel("pods")
    pods.set_ylim(bottom=0)
    pods.legend(loc="upper right")
    backlog.fill_between(hours, [each[3] for each in outcome.timeline], step="post", alpha=0.6)
    backlog.set_ylabel("scans waiting")
    for lane, color in ((Lane.ROUTINE, "tab:blue"), (Lane.STAT, "tab:red")):
        found = outcome.latencies_s[lane]
        late.plot([at_s / 3600 for at_s, _, _ in found], [s for _, s, _ in found], ".", ms=1.5, color=color, label=lane)
        late.axhline(OBJECTIVES_S[lane], color=color, lw=0.8, ls="--")
    late.set_yscale("log")
    late.set_ylabel("latency, s (dashed: objective)")
    late.set_xlabel("hour of the day")
    late.set_xlim(0, 24)
    late.legend(loc="upper right", markerscale=6)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    """Play the day, and the same day with the fewest and with the most pods all the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=Path, default=VALUES)
    parser.add_argument("--hospitals", type=float, default=1.0, help="so many times the studies")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    workers, tritons, scrape_s = rules_of(rendered(given.values))
    figures = read_figures()
    studies = draw_day(given.hospitals, given.seed)
    slices = sum(study.slices for study in studies)
    print(f"{len(studies):,d} studies, {slices:,d} scans; a Triton does {figures.unit.scans_per_s:g}/s, a worker")
    print(f"{figures.worker.scans_per_s:,.0f}/s ({figures.machine}, {figures.measured_on}); seed {given.seed}")
    outcome = play(studies, workers, tritons, figures, scrape_s)
    others = [(workers.least, tritons.least), (workers.most, tritons.most)]
    fixed = {pods: play(studies, workers, tritons, figures, scrape_s, fixed=pods) for pods in others}
    print(report(outcome, fixed))
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        draw(outcome, given.out / "hospital_day.png")


if __name__ == "__main__":
    main()
