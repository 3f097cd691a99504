"""What all dashboards have in common: names, time, links to each other, and what is chosen at their top."""

from __future__ import annotations

import json

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    Panel,
    RowPanel,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from deploy.monitoring.boards.panels import data_source

TAG = "mristream"


def frame(uid: str, title: str, about: str) -> dashboard.Dashboard:
    """A dashboard without panels. `uid` is its name in addresses and that of its file; it never changes."""
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags([TAG])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .annotations([])
        .link(
            dashboard.DashboardLink("mristream")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(False)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(source("prometheus", "Prometheus"))
        .with_variable(
            _jobs("job", "Workers", "label_values(mristream_build_info, job)", "The scrape job of the workers.")
        )
    )


def source(kind: str, label: str) -> dashboard.DatasourceVariable:
    """Choice among the data sources of a kind."""
    return dashboard.DatasourceVariable(kind).label(label).type(kind)


def triton_jobs() -> dashboard.QueryVariable:
    """Choice among the jobs that scrape Triton."""
    query = "label_values(nv_inference_request_success, job)"
    return _jobs("triton_job", "Triton", query, "The scrape job of Triton.")


def row(board: dashboard.Dashboard, title: str, *panels: Builder[Panel]) -> None:
    """Panels under a title, from left to right, 24 columns a line."""
    board.with_row(dashboard.Row(title))
    for panel in panels:
        board.with_panel(panel)


def as_json(board: dashboard.Dashboard) -> str:
    """As Grafana reads it. Panels are numbered, so that links to one of them go on leading there."""
    built = board.build()
    for link in built.links or []:
        # In sight, and not in a menu, which is the library's default.
        link.placement = None  # type: ignore[assignment]
    for number, panel in enumerate(built.panels or [], start=1):
        assert isinstance(panel, (Panel, RowPanel))  # noqa: S101 - for the type checker
        panel.id_val = number
        for place, target in enumerate(panel.targets or [] if isinstance(panel, Panel) else []):
            target.ref_id = chr(ord("A") + place)  # type: ignore[attr-defined]
    return json.dumps(built, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _jobs(name: str, label: str, query: str, about: str) -> dashboard.QueryVariable:
    # All of those that there are and not `.*`: `up` has more jobs than ours.
    everything = VariableOption(text="All", value="$__all")
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .description(about)
        .datasource(data_source("prometheus"))
        .query({"query": query, "refId": name})
        .definition(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(everything)
    )
