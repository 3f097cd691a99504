"""What a worker tells Prometheus: every metric is named once, in `worker` or in `quality`, with its help text.

`docs/metrics.md` is written from these definitions. No label ever carries a scan, a patient or a file name: each label
declares the values that it can have (`labels`), and a test holds samples against that.
"""

from __future__ import annotations

from workers.metrics.lag import Lag
from workers.metrics.worker import OBJECTIVE_SHARE, OBJECTIVES_S, BreakerState, Metrics, Reject

__all__ = ["OBJECTIVES_S", "OBJECTIVE_SHARE", "BreakerState", "Lag", "Metrics", "Reject"]
