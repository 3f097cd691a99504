"""How much memory the container uses and may use, as the kernel sees it (control groups, version 2 or 1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

# Version 1 writes "no limit" as the largest number of pages; no machine has an exbibyte.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """The control group that this process is accounted in."""

    usage: Path
    limit: Path
    statistics: Path
    droppable: str  # field of `statistics`: file pages that the kernel takes back first

    @classmethod
    def find(cls, root: Path = Path("/")) -> Self | None:
        """Ours, or None where the system has none to be read. Inside a container its own group may be the root."""
        try:
            lines = (root / "proc/self/cgroup").read_text().splitlines()
        except OSError:
            return None
        for line in lines:
            _, controllers, path = line.split(":", 2)
            for place in (path.lstrip("/"), ""):
                if controllers == "":
                    folder = root / "sys/fs/cgroup" / place
                    group = cls(
                        folder / "memory.current", folder / "memory.max", folder / "memory.stat", "inactive_file"
                    )
                elif "memory" in controllers.split(","):
                    folder = root / "sys/fs/cgroup/memory" / place
                    usage, limit = folder / "memory.usage_in_bytes", folder / "memory.limit_in_bytes"
                    group = cls(usage, limit, folder / "memory.stat", "total_inactive_file")
                else:
                    continue
                if group.usage.exists():
                    return group
        return None

    def working_set_bytes(self) -> float | None:
        """What is used and can't simply be dropped, which is what counts against the limit (as kubelet counts it)."""
        try:
            used = int(self.usage.read_text())
            fields = dict(line.split() for line in self.statistics.read_text().splitlines())
        except (OSError, ValueError):
            return None
        return float(max(0, used - int(fields.get(self.droppable, 0))))

    def limit_bytes(self) -> float | None:
        """None: there is no limit."""
        try:
            limit = int(self.limit.read_text())
        except (OSError, ValueError):  # version 2 writes "max"
            return None
        return float(limit) if limit < _NO_LIMIT else None
