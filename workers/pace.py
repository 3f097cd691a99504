"""How large batches may be: as large as pays, and no larger than the models take a moment for."""

from __future__ import annotations

# A batch above this time is felt: by a STAT scan that comes behind it, by whoever waits for a worker to drain. Below half of
# it, twice as many scans still take no longer than this.
AIM_S = 0.75
# Where large batches would hurt, two or three of this size don't yet; from here it is two steps to what a GPU likes.
_FIRST = 16


class Pace:
    """The size of the next batch, from what earlier ones took. Belongs to the poll loop's thread.

    Large batches spread the cost of a request, and a GPU is made for them; but while 64 slices go through models on two
    CPU cores a second passes. So the size doubles while full batches are quick, and halves when one is slow.
    """

    def __init__(self, most: int) -> None:
        """`most` scans are never exceeded."""
        self._most = most
        self.scans = min(_FIRST, most)

    def note(self, scans: int, seconds: float) -> None:
        """A batch of `scans` took `seconds` from its beginning to its end, however much of that it waited for others."""
        if seconds > AIM_S:
            # Of the batches in flight, only one is to be heard: the others were begun at the same old size.
            if scans >= self.scans:
                self.scans = max(1, scans // 2)
        elif scans >= self.scans and seconds < AIM_S / 2:
            self.scans = min(self._most, self.scans * 2)
