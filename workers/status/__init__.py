"""How one worker is, for those without Grafana: a page to look at, and the same as JSON.

All of it comes from the worker's metrics, and like them it carries nothing of a scan but where its message lies.
"""

from workers.status.history import History
from workers.status.page import SECURITY_POLICY, render
from workers.status.state import State, state_of

__all__ = ["SECURITY_POLICY", "History", "State", "render", "state_of"]
