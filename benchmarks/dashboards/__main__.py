"""The pictures in docs/dashboards, of a real run with trouble on purpose.

    python -m benchmarks.dashboards [--minutes 21] [--out docs/dashboards]

Two workers take scans in all lanes; Triton stops and comes back, a backlog comes, a worker is killed, files come that are
none. Prometheus watches with the rules of deploy/monitoring, a collector takes the spans. Then each dashboard's queries are
asked and its panels drawn.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.dashboards.drawing import Drawing
from benchmarks.dashboards.scene import ACTS, INTERVAL_S, Scene, performed
from benchmarks.dashboards.traces import Traces
from benchmarks.stand import machine
from deploy.monitoring.boards import models, operations, scan
from deploy.monitoring.boards.asking import View, read_dashboards, rows

# What this machine hasn't got.
LEFT_OUT = (models.ONLY_SOME,)


def draw(scene: Scene, out: Path) -> None:
    """Each dashboard, and the row that says where scans wait at a quiet time."""
    boards = read_dashboards()
    traces = Traces(scene.collector.spans(), scene.logs)
    for uid in (operations.UID, models.UID, scan.UID):
        view = View(scene.prometheus.url, boards[uid], scene.start, scene.end, INTERVAL_S)
        Drawing(view, rows(boards[uid], without=LEFT_OUT), traces).save(out / f"{uid}.png")
    quiet = scene.start + (scene.end - scene.start) * ACTS[0].at
    view = View(scene.prometheus.url, boards[operations.UID], scene.start, quiet, INTERVAL_S)
    Drawing(view, rows(boards[operations.UID], only=operations.WAITING)).save(out / "where-scans-wait.png")


def main() -> None:
    """Perform, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=21.0, help="how long the run takes")
    parser.add_argument("--out", type=Path, default=Path("docs/dashboards"), help="folder for the pictures")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, performed(Path(scratch), given.minutes * 60) as scene:
        draw(scene, given.out)
    print(machine())


if __name__ == "__main__":
    main()
