"""What the runner tells a peer: where scans come from, where results and masks go, and what the classifier's gate is."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

VARIABLE = "PEER_JOB"
# As many scans at a time as a worker of mristream takes by default (workers/settings.py), and as many batches at once.
BATCH_SCANS = 16
BATCHES_IN_FLIGHT = 3


@dataclass(frozen=True, slots=True)
class Job:
    """In an environment variable, since it is the frameworks that load most peers' code, not a command line.

    `ready` is a file that the peer makes when it listens. The two limits are those of `PolicySettings`.
    """

    bootstrap_servers: str
    scans_topic: str
    results_topic: str
    group_id: str
    masks: str
    ready: str
    not_brain_from: float
    uncertain_from: float

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
