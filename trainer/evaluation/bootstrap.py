"""How sure a figure is: resampling of patients, because slices of one patient are alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

# Percentile bootstrap (Efron 1979): 2,000 resamples put the interval's ends within about 1 % of its width.
RESAMPLES = 2000


class Figure(BaseModel):
    """A mean over `n` slices of `groups` patients, with its 95 % bootstrap interval by patient."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float
    n: int
    groups: int


class Difference(BaseModel):
    """The second minus the first, paired slice by slice, with its 95 % interval by patient.

    `p` is the two-sided bootstrap probability of a difference of the other sign.
    """

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float
    p: float
    n: int

    @property
    def real(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    def sentence(self, name: str) -> str:
        """For example: "dice: the second is better by 0.012 (0.004 – 0.021, p = 0.003): a real difference"."""
        direction = "better" if self.value > 0 else "worse" if self.value < 0 else "as good"
        by = "" if self.value == 0 else f" by {abs(self.value):.4f}"
        said = "a real difference" if self.real else "no more than chance would give"
        return f"{name}: the second is {direction}{by} ({self.low:+.4f} – {self.high:+.4f}, p = {self.p:.3f}): {said}"


def figure(values: Sequence[float], groups: Sequence[str]) -> Figure | None:
    """Mean of `values` and its interval; None if there is nothing to average."""
    if not values:
        return None
    means, count = _resampled(values, groups)
    low, high = np.percentile(means, (2.5, 97.5))
    return Figure(value=float(np.mean(values)), low=float(low), high=float(high), n=len(values), groups=count)


def difference(first: Sequence[float], second: Sequence[float], groups: Sequence[str]) -> Difference | None:
    """Compare two models on the same slices, in the same order."""
    changes = [after - before for before, after in zip(first, second, strict=True)]
    if not changes:
        return None
    means, _ = _resampled(changes, groups)
    low, high = np.percentile(means, (2.5, 97.5))
    # One more of each than counted: a bootstrap of 2,000 can't say that the probability is zero.
    tail = min((means <= 0).sum(), (means >= 0).sum()) + 1
    p = min(1.0, 2 * float(tail) / (RESAMPLES + 1))
    return Difference(value=float(np.mean(changes)), low=float(low), high=float(high), p=p, n=len(changes))


def _resampled(values: Sequence[float], groups: Sequence[str]) -> tuple[NDArray[np.float64], int]:
    """Means of resamples of whole groups, with a fixed seed; and the number of groups."""
    of_group: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        of_group.setdefault(group, []).append(value)
    sums = np.array([sum(members) for members in of_group.values()])
    counts = np.array([len(members) for members in of_group.values()])
    picks = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    return sums[picks].sum(axis=1) / counts[picks].sum(axis=1), len(sums)
