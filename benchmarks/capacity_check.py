"""A plan of `mristream plan-capacity` against reality: the hour with most scans is played on this machine.

    python -m benchmarks.capacity_check --figures FIGURES.json --latency-s 1 [--study-scans 1] [--seconds 60]

The demand is the largest that one unit may have by the plan, or --scans-per-hour. Its arrivals (Poisson; scans of a study at
once, with one key) are sent whatever the platform is at, and each scan is timed as benchmarks.latency does. Prints what was
predicted and what was measured, and the machine's highest rate before and after: where it is another than in the figures, the
machine is no longer what was planned for. So measure the figures right before, while nothing else runs. Exit code 1: the
target was missed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.latency import ROOT, WARM_UP, Bench, read_slices
from benchmarks.stand import machine
from workers.capacity import HOURS, Demand, make_plan, most_utilisation
from workers.errors import UserError
from workers.figures import SHIPPED, read_figures

# Rounded the wrong way, what one unit just manages would need two.
_JUST_BELOW = 0.999
_BACKLOG = 500


def main() -> int:
    """Parse, plan, play, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, default=SHIPPED)
    parser.add_argument("--latency-s", type=float, required=True, help="99 of 100 scans within this time")
    parser.add_argument("--study-scans", type=int, default=1, help="scans that are sent together")
    parser.add_argument("--scans-per-hour", type=float, help="[default: the most that one unit may have]")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the hour that are played")
    parser.add_argument("--slices", type=Path, help="as the figures were measured with")
    parser.add_argument("--model-repository", type=Path, default=ROOT / "model_repository", help="the same")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    figures = read_figures(given.figures)

    def demand(scans_per_hour: float) -> Demand:
        return Demand((scans_per_hour,) + (0.0,) * (HOURS - 1), given.latency_s, given.study_scans)

    most = most_utilisation(figures, demand(1.0)) * figures.unit.scans_per_s * 3600 * _JUST_BELOW
    peak = make_plan(figures, demand(given.scans_per_hour or most or 1.0)).peak
    if peak.units != 1:
        raise UserError(f"{peak.scans:,.0f} scans an hour need {peak.units} units, and this machine is one")

    arrivals = studies(peak.scans / 3600, given.study_scans, given.seconds, given.seed)
    with (
        tempfile.TemporaryDirectory() as scratch,
        Bench(Path(scratch), given.model_repository, read_slices(given.slices)) as bench,
    ):
        bench.watch.at([0.0] * WARM_UP)
        before = bench.highest(_BACKLOG).scans_per_s
        latencies_s = bench.watch.at(arrivals, study_scans=given.study_scans)
        after = bench.highest(_BACKLOG).scans_per_s
    p50, p99 = np.percentile(latencies_s, (50, 99))
    held = p99 <= given.latency_s
    print(f"{machine()}; figures of {figures.measured_on}")
    print(
        f"highest rate: {figures.unit.scans_per_s:.1f} scans/s in the figures, {before:.1f} here before the play and "
        f"{after:.1f} after it"
    )
    print(
        f"{len(latencies_s)} scans in {arrivals[-1]:.0f} s, {given.study_scans} at a time: {len(latencies_s) / arrivals[-1]:.1f} "
        f"scans/s, {peak.utilisation:.0%} of one unit's highest rate"
    )
    print("             p50 s   p99 s   worst s")
    print(f"predicted  {peak.p50_s:7.3f} {peak.p99_s:7.3f}")
    print(f"measured   {p50:7.3f} {p99:7.3f}   {max(latencies_s):7.3f}")
    print(
        f"{sum(each <= given.latency_s for each in latencies_s) / len(latencies_s):.2%} within {given.latency_s:g} s: ",
        end="",
    )
    print("the target was held" if held else "the target was missed")
    return 0 if held else 1


def studies(scans_per_s: float, study_scans: int, seconds: float, seed: int) -> list[float]:
    """When each scan is due, in seconds: whole studies, as many as are expected in that time, or ten in a longer one.

    Poisson arrivals whose number is known lie anywhere with equal chance: no luck with the rate, only with where they cluster.
    """
    chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
    count = max(10, round(scans_per_s * seconds / study_scans))
    last_s = count * study_scans / scans_per_s
    times = sorted(chance.uniform(0, last_s) for _ in range(count))
    return [due for due in times for _ in range(study_scans)]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as problem:
        sys.exit(f"error: {problem}")
