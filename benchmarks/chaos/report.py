"""What a run came to, for people, for programs and for docs/delivery.md."""

from __future__ import annotations

import json
import platform
from collections import Counter
from dataclasses import asdict, fields
from typing import Any

from benchmarks.chaos.history import Defect
from benchmarks.chaos.run import Options, Outcome
from workers import __version__

# Cases of a defect that are shown; the JSON has all.
_SHOWN = 5


def as_text(outcome: Outcome) -> str:
    """A table, and examples of whatever is wrong."""
    rows = [*_rows(outcome), ("", ""), *_recovery_rows(outcome)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:{width}}  {value}".rstrip() for name, value in rows]
    for defect, cases in outcome.verdict.defects.items():
        lines += ["", f"{len(cases)} {defect}:", *(f"    {case}" for case in cases[:_SHOWN])]
    by_themselves = [death for death in outcome.deaths if not death.killed]
    if by_themselves:
        lines += ["", "ended by themselves:", *(f"    {death.target}: {death.why}" for death in by_themselves[:_SHOWN])]
    lines += ["", *(f"TROUBLE: {each}" for each in outcome.trouble)]
    lines.append("The promise holds." if outcome.holds else "THE PROMISE IS BROKEN.")
    return "\n".join(lines)


def as_json(outcome: Outcome) -> str:
    """Everything, for programs."""
    verdict = outcome.verdict
    content: dict[str, Any] = {
        "holds": outcome.holds,
        "options": asdict(outcome.options),
        "version": __version__,
        "seconds": round(outcome.seconds, 1),
        "kills": outcome.kills,
        "killed": _killed(outcome),
        "faults": dict(outcome.done),
        "scans": verdict.scans,
        "results": verdict.results,
        "statuses": dict(verdict.statuses),
        "defects": {defect.name.lower(): list(verdict.defects.get(defect, ())) for defect in Defect},
        "withheld": verdict.withheld,
        "longest_stall": asdict(verdict.stall),
        "recoveries": {kind: asdict(recovery) for kind, recovery in verdict.recoveries.items()},
        "ended_by_themselves": [asdict(death) for death in outcome.deaths if not death.killed],
        "trouble": list(outcome.trouble),
    }
    return json.dumps(content, indent=2)


def as_markdown(outcome: Outcome) -> str:
    """The same as tables, with the command that prints them."""
    changed = [
        f"--{option.name.replace('_', '-')} {getattr(outcome.options, option.name)}"
        for option in fields(Options)
        if getattr(outcome.options, option.name) != option.default
    ]
    lines = [
        f"`{' '.join(['python -m benchmarks.chaos', *changed])}`, mristream {__version__}, Python {platform.python_version()}:",
        "",
        "| | |",
        "|---|---|",
    ]
    lines += [f"| {name} | {value} |" for name, value in _rows(outcome)]
    lines += ["", "| after | times | next result after (median) | at the latest |", "|---|---|---|---|"]
    lines += [
        f"| {kind} | {recovery.faults} | {recovery.median_s:.1f} s | {recovery.longest_s:.1f} s |"
        for kind, recovery in outcome.verdict.recoveries.items()
    ]
    return "\n".join(lines) + "\n"


def _rows(outcome: Outcome) -> list[tuple[str, str]]:
    verdict, killed = outcome.verdict, _killed(outcome)
    statuses = ", ".join(f"{number} {status}" for status, number in sorted(verdict.statuses.items()))
    by_role = Counter[str]()
    points = Counter[str]()
    for why, number in killed.items():
        role, _, moment = why.partition(" killed at ")
        by_role[role] += number
        if role == "worker" and moment != "a random moment":
            points[moment] += number
    return [
        ("kills", f"{outcome.kills} ({', '.join(f'{number} {role}' for role, number in by_role.most_common())})"),
        ("of them at a step", ", ".join(f"{number} {point}" for point, number in sorted(points.items())) or "none"),
        ("other faults", ", ".join(f"{n} {k}" for k, n in sorted(outcome.done.items()) if not k.startswith("kill"))),
        ("scans sent", str(verdict.scans)),
        ("results", f"{verdict.results} ({statuses})"),
        *((str(defect), str(len(verdict.defects.get(defect, ())))) for defect in Defect),
        ("results written and withheld from readers", str(verdict.withheld)),
        ("processes that ended by themselves", str(sum(not death.killed for death in outcome.deaths))),
        ("longest stall", f"{verdict.stall.seconds:.1f} s"),
        ("duration", f"{outcome.seconds / 60:.1f} min"),
    ]


def _recovery_rows(outcome: Outcome) -> list[tuple[str, str]]:
    return [
        (f"next result after {kind}", f"{each.median_s:.1f} s, at most {each.longest_s:.1f} s ({each.faults} times)")
        for kind, each in outcome.verdict.recoveries.items()
    ]


def _killed(outcome: Outcome) -> dict[str, int]:
    """Kills by what was killed where, such as `worker killed at checkpoint.produced`."""
    roles = {"kafka": "broker", "redis": "store", "s3": "store"}
    counted = Counter[str]()
    for death in outcome.deaths:
        if death.killed:
            name = death.target.partition("-")[0]
            counted[f"{roles.get(name, name)} {death.why}"] += 1
    return dict(sorted(counted.items()))
