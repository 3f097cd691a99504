"""Writes the dashboards: `make docs`."""

from __future__ import annotations

from pathlib import Path

from deploy.monitoring.boards.frame import as_json
from deploy.monitoring.boards.models import models
from deploy.monitoring.boards.operations import operations
from deploy.monitoring.boards.scan import scan

FOLDER = Path(__file__).parents[1] / "dashboards"


def dashboards() -> dict[str, str]:
    """Each dashboard's JSON, by the name of its file, which is its uid."""
    boards = [operations(), models(), scan()]
    return {f"{board.build().uid}.json": as_json(board) for board in boards}


if __name__ == "__main__":
    for name, text in dashboards().items():
        (FOLDER / name).write_text(text)
