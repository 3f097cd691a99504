"""What Grafana asks a Prometheus for a dashboard's panels: variables filled in, at one moment or over time."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).parents[1] / "dashboards"
# As many points as a panel on a wall has pixels for.
_POINTS = 240
_TIMEOUT_S = 30.0


def read_dashboards() -> dict[str, dict[str, Any]]:
    """The dashboards as Grafana gets them, by uid."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def targets(dashboard: dict[str, Any], kind: str = "prometheus") -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each panel and each query of it that goes to that kind of data source."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            if panel["datasource"]["type"] == kind:
                yield panel, target


def rows(dashboard: dict[str, Any], *, without: Sequence[str] = (), only: str | None = None) -> list[dict[str, Any]]:
    """Panels of all rows but some, or of one, moved up to where no gap is. Rows are named by their titles."""
    kept: list[dict[str, Any]] = []
    shift, keep = 0, True
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            keep = panel["title"] not in without and only in (None, panel["title"])
            bottom = max((each["gridPos"]["y"] + each["gridPos"]["h"] for each in kept), default=0)
            shift = bottom - panel["gridPos"]["y"]
        if keep:
            place = panel["gridPos"]
            kept.append(panel | {"gridPos": place | {"y": place["y"] + shift}})
    return kept


@dataclass(frozen=True, slots=True)
class View:
    """A dashboard between two Unix times, with `All` chosen for each variable."""

    url: str  # of Prometheus
    dashboard: dict[str, Any]
    start: float
    end: float
    scrape_interval_s: float

    @property
    def step_s(self) -> float:
        """Seconds between points; no more often than there is something new."""
        return max(self.scrape_interval_s, (self.end - self.start) / _POINTS)

    def variables(self) -> dict[str, str]:
        """What each variable that asks Prometheus stands for. One for which there is nothing stands for nothing."""
        values = {}
        for variable in self.dashboard["templating"]["list"]:
            if variable["type"] == "query":
                names = [re.escape(name) for name in self._label_values(variable["query"]["query"])]
                # In PromQL's quotes a backslash is written as two.
                values[variable["name"]] = "|".join(names).replace("\\", r"\\")
        return values

    def ask(self, target: dict[str, Any]) -> list[dict[str, Any]]:
        """Prometheus' result for a panel's query: series with `values`, or with the `value` of the end if it is instant."""
        expr = self.filled_in(target["expr"])
        if target.get("instant"):
            answer = self._get("query", query=expr, time=self.end)
        else:
            answer = self._get("query_range", query=expr, start=self.start, end=self.end, step=self.step_s)
        result: list[dict[str, Any]] = answer["result"]
        return result

    def exemplars(self, target: dict[str, Any]) -> list[dict[str, Any]]:
        """Single scans that the query's series have kept: each with `labels`, `value` and `timestamp`; none for most queries."""
        if not target.get("exemplar"):
            return []
        expr = self.filled_in(target["expr"])
        answer = self._get("query_exemplars", query=expr, start=self.start, end=self.end)
        return [exemplar for series in answer for exemplar in series["exemplars"]]

    def filled_in(self, expr: str) -> str:
        """The query with everything that Grafana fills in."""
        rate_s = max(self.step_s + self.scrape_interval_s, 4 * self.scrape_interval_s)
        known = {
            "__rate_interval": f"{round(rate_s * 1000)}ms",
            "__range": f"{round(self.end - self.start)}s",
            **self.variables(),
        }
        return re.sub(r"\$(\w+)", lambda match: known[match.group(1)], expr)

    def _label_values(self, query: str) -> list[str]:
        asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", query)
        if asked is None:
            raise ValueError(f"{query} is no query for a variable that we know")
        metric, label = asked.groups()
        asking = {"match[]": metric, "start": self.start, "end": self.end}
        values: list[str] = self._get(f"label/{label}/values", **asking)
        return values

    def _get(self, page: str, **asking: object) -> Any:
        address = f"{self.url}/api/v1/{page}?{urllib.parse.urlencode(asking)}"
        try:
            # Whatever proxy the environment names can't reach this very machine.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(address, timeout=_TIMEOUT_S) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as problem:
            raise ValueError(f"Prometheus can't answer {asking}: {json.load(problem)['error']}") from problem
