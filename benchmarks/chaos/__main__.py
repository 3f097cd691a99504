"""`python -m benchmarks.chaos --kills 1000`: kill things for a while, then prove that no scan was lost or doubled.

Prints each fault as it is done and a report at the end; with --out also report.txt, report.json and report.md.
Exit code 0: every promise was kept; 1: one was broken, or something did not come back.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from dataclasses import fields
from itertools import islice
from pathlib import Path

from benchmarks.chaos.report import as_json, as_markdown, as_text
from benchmarks.chaos.run import Options, planned_for, run
from benchmarks.chaos.stack import STORES
from deploy.local.server import ServerError


def main() -> int:
    """Parse, run, report."""
    defaults = Options()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=defaults.kills, help="SIGKILLs until it is enough")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="the same seed gives the same schedule")
    parser.add_argument("--brokers", type=int, default=defaults.brokers, choices=(1, 3))
    parser.add_argument("--workers", type=int, default=defaults.workers)
    parser.add_argument("--store", default=defaults.store, choices=STORES)
    parser.add_argument("--group-protocol", default=defaults.group_protocol, choices=("consumer", "classic"))
    parser.add_argument("--rate", type=float, default=defaults.rate, help="scans a second")
    parser.add_argument("--most-waiting", type=int, default=defaults.most_waiting, help="scans sent and not answered")
    parser.add_argument("--interval-s", type=float, default=defaults.interval_s, help="mean time between two faults")
    parser.add_argument("--armed", type=float, default=defaults.armed, help="share of workers that die at a step")
    parser.add_argument("--finish-s", type=float, default=defaults.finish_s, help="for the last scans' results")
    parser.add_argument("--out", type=Path, help="folder for the report and the servers' logs")
    parser.add_argument("--plan", type=int, metavar="N", help="only print the schedule's first N faults")
    given = parser.parse_args()
    if given.out and (given.out / "servers").exists():
        parser.error(f"{given.out} holds the servers of an earlier run: delete it, or choose another folder")
    # A broker that is gone is no news here.
    logging.getLogger("workers.kafka").setLevel(logging.CRITICAL)
    options = Options(**{each.name: getattr(given, each.name) for each in fields(Options)})
    if given.plan is not None:
        for fault in islice(planned_for(options), given.plan):
            print(f"{fault.number:5d}  +{fault.after_s:5.1f} s  {fault}")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given.out or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            outcome = run(options, folder / "servers", lambda text: print(text, flush=True))
        except ServerError as problem:
            print(problem, file=sys.stderr)
            return 1
        print(f"\n{as_text(outcome)}")
        if given.out:
            (folder / "report.txt").write_text(as_text(outcome) + "\n")
            (folder / "report.json").write_text(as_json(outcome) + "\n")
            (folder / "report.md").write_text(as_markdown(outcome))
    return 0 if outcome.holds else 1


if __name__ == "__main__":
    sys.exit(main())
