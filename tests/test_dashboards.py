"""The Grafana dashboards: up to date, about metrics and labels that exist, and complete."""

from __future__ import annotations

import logging
import re
from functools import cache
from itertools import combinations
from typing import Any

import pytest
import yaml

from deploy.monitoring.boards.__main__ import dashboards
from deploy.monitoring.boards.asking import DASHBOARDS, read_dashboards, targets
from tests.test_monitoring import PAGES as RUNBOOKS
from tests.test_monitoring import known_metrics, metrics_in
from tests.test_monitoring import rules as read_rules
from tests.triton_metrics import TRITON_GPU_METRICS, TRITON_LABELS, TRITON_METRICS
from workers.logs import JsonLines
from workers.metrics import Metrics

BOARDS = read_dashboards()
GRAFANA = DASHBOARDS.parent / "grafana"
PANELS = [
    pytest.param(panel, id=f"{uid}: {panel['title']}" if panel["title"] else uid)
    for uid, board in BOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
]
QUERIES = [
    pytest.param(target, id=f"{uid}: {panel['title']} {target['refId']}")
    for uid, board in BOARDS.items()
    for panel, target in targets(board)
]
RULES = [rule for rule in read_rules() if "record" in rule]
KNOWN = known_metrics()
DEFINITIONS = {definition.name: definition for definition in Metrics().catalogue.definitions}
# What a ConfigMap may hold is 1 MiB; Grafana's own sidecar needs some of it.
MOST_BYTES = 500_000
# Prometheus adds these to whatever it scrapes, and those to alerts.
SCRAPED = {"job", "instance"}
ALERTS = {"alertname", "alertstate", "severity"}
NOT_ON_THE_WALL = {
    "nv_energy_consumption": "power over time is on the wall, in watts",
    "nv_inference_request_duration_us": "its parts are: the queue and the model",
}


@cache
def labels_of(metric: str) -> dict[str, set[str] | None]:
    """The labels that samples of that name have, and their values where these are few."""
    name = re.sub(r"_(bucket|count|sum)$", "", metric)
    definition = DEFINITIONS.get(metric) or DEFINITIONS.get(name)
    if definition:
        found: dict[str, set[str] | None] = {
            label.name: set(label.values) if label.values else None for label in definition.labels
        }
        if metric.endswith("_bucket"):
            found["le"] = {f"{bound:g}" for bound in definition.upper_bounds}
        return found | dict.fromkeys(SCRAPED)
    if recorded := [rule for rule in RULES if rule["record"] == metric]:
        grouped = {label for rule in recorded for label in by(rule["expr"])}
        fixed: dict[str, set[str] | None] = {}
        for label, value in ((label, value) for rule in recorded for label, value in rule.get("labels", {}).items()):
            fixed[label] = (fixed.get(label) or set()) | {value}
        return dict.fromkeys(grouped, None) | fixed
    if metric == "ALERTS":
        return dict.fromkeys(ALERTS)
    return dict.fromkeys(SCRAPED | (TRITON_LABELS if metric.startswith("nv_") else set()))


def by(expr: str) -> set[str]:
    """Labels that an expression groups by."""
    return {label for labels in re.findall(r"\bby \(([^)]*)\)", expr) for label in labels.split(", ")}


def named(expr: str) -> set[str]:
    """Everything that an expression asks Prometheus for."""
    return metrics_in(expr) | set(re.findall(r"\b(?:up|ALERTS)\b", expr))


def test_dashboards_are_up_to_date() -> None:
    written = {path.name: path.read_text() for path in DASHBOARDS.glob("*")}

    assert written == dashboards(), "run `make docs`"


@pytest.mark.parametrize("uid", BOARDS)
def test_a_dashboard_fits_into_a_config_map_and_is_called_as_its_file(uid: str) -> None:
    assert BOARDS[uid]["uid"] == uid
    assert len((DASHBOARDS / f"{uid}.json").read_bytes()) < MOST_BYTES


@pytest.mark.parametrize("uid", BOARDS)
def test_data_sources_are_chosen_in_grafana(uid: str) -> None:
    board = BOARDS[uid]
    chosen = {f"${{{v['name']}}}" for v in board["templating"]["list"] if v["type"] == "datasource"}
    asked = [variable["datasource"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    asked += [panel["datasource"] for panel in board["panels"] if panel.get("targets")]

    assert {source["uid"] for source in asked} <= chosen
    assert not any("datasource" in target for panel in board["panels"] for target in panel.get("targets", []))


@pytest.mark.parametrize("uid", BOARDS)
def test_panels_lie_beside_each_other_and_fill_their_lines(uid: str) -> None:
    places = [panel["gridPos"] for panel in BOARDS[uid]["panels"]]

    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, f"{one} {other}"
    assert sum(place["w"] * place["h"] for place in places) == 24 * max(place["y"] + place["h"] for place in places)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    if panel["type"] == "text":
        assert panel["options"]["content"]
        return
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["targets"]


@pytest.mark.parametrize("target", QUERIES)
def test_a_query_is_about_metrics_that_exist(target: dict[str, Any]) -> None:
    assert named(target["expr"])
    assert metrics_in(target["expr"]) <= KNOWN


@pytest.mark.parametrize("target", QUERIES)
def test_a_query_names_labels_and_values_that_exist(target: dict[str, Any]) -> None:
    expr = target["expr"]
    for metric, selector in re.findall(r"\b([a-zA-Z_:]+)\{([^}]*)\}", expr):
        known = labels_of(metric)
        for label, values in re.findall(r'(\w+)[=!]~?"([^"]*)"', selector):
            assert label in known, f"{metric} has no label {label}"
            if not values.startswith("$") and (allowed := known[label]):
                assert set(values.split("|")) <= allowed, f"{metric}: {label} is never {values}"
    every = {label for metric in named(expr) for label in labels_of(metric)}
    assert by(expr) <= every

    left = by(expr) or every
    assert set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", ""))) <= left


def test_what_an_operator_wants_to_see_is_on_a_dashboard() -> None:
    shown = set[str]()
    found = {name for board in BOARDS.values() for _, target in targets(board) for name in metrics_in(target["expr"])}
    while found:
        shown |= found
        found = {name for rule in RULES if rule["record"] in found for name in metrics_in(rule["expr"])} - shown
    shown |= {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown}

    missing = {*DEFINITIONS, *TRITON_METRICS, *TRITON_GPU_METRICS} - shown

    assert missing == NOT_ON_THE_WALL.keys()


def test_what_the_dashboards_link_to_is_there() -> None:
    linked = re.findall(r"/d/([\w-]+)", "".join(path.read_text() for path in DASHBOARDS.glob("*.json")))

    assert linked
    assert set(linked) <= BOARDS.keys()


def test_each_runbook_names_the_row_to_look_at() -> None:
    titles = {
        (uid.removeprefix("mristream-"), panel["title"])
        for uid, board in BOARDS.items()
        for panel in board["panels"]
        if panel["type"] == "row"
    }

    for page in RUNBOOKS:
        named = re.findall(r"(?m)^Dashboard \[(\w+)\]\(\.\./monitoring\.md#\1\), row \*(.+)\*\.$", page.read_text())
        assert len(named) == 1, page.name
        assert set(named) <= titles, page.name


def test_the_example_of_data_sources_links_to_what_it_names() -> None:
    sources = yaml.safe_load((GRAFANA / "datasources.yaml").read_text())["datasources"]
    linked = re.findall(r"datasourceUid: (\w+)", (GRAFANA / "datasources.yaml").read_text())
    line = logging.LogRecord("x", logging.INFO, "x", 0, "x", None, None)
    line.facts = {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}
    (regex,) = (field["matcherRegex"] for source in sources for field in source["jsonData"].get("derivedFields", []))

    found = re.search(regex, JsonLines().format(line))

    assert set(linked) <= {source["uid"] for source in sources}
    assert {source["type"] for source in sources} == {"prometheus", "tempo", "loki"}
    assert found
    assert found.group(1) == line.facts["trace_id"]


def test_grafana_is_told_of_a_folder() -> None:
    (provider,) = yaml.safe_load((GRAFANA / "dashboards.yaml").read_text())["providers"]

    assert provider["type"] == "file"
    assert provider["options"]["path"] in (DASHBOARDS.parent / "README.md").read_text()
