"""What the runner tells a peer: where scans come from, where results and masks go, and what the classifier's gate is."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

VARIABLE = "PEER_JOB"


@dataclass(frozen=True, slots=True)
class Job:
    """In an environment variable, since it is the frameworks that load most peers' code, not a command line.

    `ready` is a file that the peer makes when it listens. The limits of the gate are those of `PolicySettings`; how many
    scans are one batch, and how many batches are worked on at once, is as in `WorkerSettings`.
    """

    bootstrap_servers: str
    scans_topic: str
    results_topic: str
    group_id: str
    masks: str
    ready: str
    not_brain_from: float
    uncertain_from: float
    batch_scans: int
    batches_in_flight: int

    @classmethod
    def given(cls) -> Self:
        """What this process was told."""
        return cls(**json.loads(os.environ[VARIABLE]))

    def environment(self) -> dict[str, str]:
        """The variable that tells it to another process."""
        return {VARIABLE: json.dumps(asdict(self))}

    def say_ready(self) -> None:
        """Tell the runner that scans are taken."""
        Path(self.ready).touch()
