"""The Prometheus rules: checked and tested by promtool, about metrics that exist, with a runbook for each alert."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local.prometheus import promtool
from tests.triton_metrics import TRITON_CACHE_METRICS, TRITON_GPU_METRICS, TRITON_METRICS
from workers.metrics import OBJECTIVES_S, Metrics

ROOT = Path(__file__).parents[1]
MONITORING = ROOT / "deploy" / "monitoring"
RUNBOOKS = ROOT / "docs" / "runbooks"
RULES = sorted((MONITORING / "rules").glob("*.yaml"))
CASES = sorted((MONITORING / "tests").glob("*.yaml"))
PAGES = sorted(path for path in RUNBOOKS.glob("*.md") if path.stem != "README")
QUESTIONS = ["What does it mean?", "How do I look?", "What do I do?", "How does it end?"]


def rules() -> list[dict[str, Any]]:
    """All rules of all files."""
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


ALERTS = [rule for rule in rules() if "alert" in rule]
RECORDED = {rule["record"] for rule in rules() if "record" in rule}


def known_metrics() -> set[str]:
    """Names of samples that a worker or Triton gives, or that a rule records."""
    names = {*RECORDED, *TRITON_METRICS, *TRITON_CACHE_METRICS, *TRITON_GPU_METRICS}
    for family in Metrics().registry.collect():
        names |= {sample.name for sample in family.samples} or {family.name}
    for definition in Metrics().catalogue.definitions:
        suffixes = ("_bucket", "_sum", "_count") if definition.kind == "histogram" else ("",)
        names |= {definition.name + suffix for suffix in suffixes}
    return names


def metrics_in(expression: str) -> set[str]:
    """Names of metrics in PromQL; what stands in quotes or names labels is none."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\b(?:by|on|ignoring|group_left|without) *\([^)]*\)", "", bare)
    bare = re.sub(r"\{[^}]*\}", "", bare)
    return set(re.findall(r"\b(?:mristream|triton|nv|process)[_:][a-zA-Z0-9_:]+", bare))


def queries(page: Path) -> list[str]:
    """Lines of the page's code blocks that are no commands."""
    lines = re.findall(r"(?m)^ {4}(\S.*)$", page.read_text())
    return [line for line in lines if not re.match(r"(curl|kafka-|mristream |nvidia-smi)", line)]


def run_promtool(*arguments: object) -> None:
    done = subprocess.run([promtool(), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_promtool_accepts_the_rules(path: Path) -> None:
    run_promtool("check", "rules", "--lint-fatal", path)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_alerts_fire_and_stay_silent_as_their_cases_say(path: Path) -> None:
    run_promtool("test", "rules", path)


def test_each_alert_has_a_case_that_fires_and_one_that_stays_silent() -> None:
    fires, silent = set[str](), set[str]()
    for path in CASES:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for query in case.get("promql_expr_test", []):
                if query["exp_samples"]:
                    fires |= set(re.findall(r'^ALERTS\{alertname="(\w+)", alertstate="firing"\}$', query["expr"]))
            silent |= {test["alertname"] for test in case.get("alert_rule_test", []) if not test["exp_alerts"]}

    assert fires == {alert["alert"] for alert in ALERTS}
    assert silent == fires


def test_each_rule_file_has_its_cases() -> None:
    assert [path.name for path in RULES] == [path.name for path in CASES]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule.get("record"))
def test_a_rule_is_about_metrics_that_exist(rule: dict[str, Any]) -> None:
    named = metrics_in(rule["expr"])

    assert named <= known_metrics()
    assert named or "up" in rule["expr"]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule.get("record"))
def test_a_rule_asks_for_labels_and_values_that_exist(rule: dict[str, Any]) -> None:
    definitions = {definition.name: definition for definition in Metrics().catalogue.definitions}
    for name, selector in re.findall(r"\b(mristream_[a-z_]+)\{([^}]*)\}", rule["expr"]):
        definition = definitions.get(name) or definitions[re.sub(r"_(bucket|count|sum)$", "", name)]
        known = {label.name: label.values for label in definition.labels}
        for label, values in re.findall(r'(\w+)[=!]~?"([^"]*)"', selector):
            if label == "le":
                assert float(values) in definition.upper_bounds
                continue
            assert label in known, f"{name} has no label {label}"
            assert set(values.split("|")) <= set(known[label] or values.split("|")), f"{name}: {values}"


def test_the_objectives_in_the_rules_are_those_of_the_code() -> None:
    objectives = (MONITORING / "rules" / "objectives.yaml").read_text()

    bounds = set(re.findall(r'_bucket\{lane="(\w+)", le="([\d.]+)"\}', objectives))

    assert bounds == {(lane.value, str(seconds)) for lane, seconds in OBJECTIVES_S.items()}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_urgent_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    annotations = alert["annotations"]

    assert alert["labels"]["severity"] in ("page", "ticket")
    assert annotations["summary"].endswith(".")
    assert annotations["description"].endswith(".")
    assert annotations["runbook_url"] == f"docs/runbooks/{alert['alert']}.md"
    page = (ROOT / annotations["runbook_url"]).read_text()
    assert re.findall(r"(?m)^## (.*)$", page) == QUESTIONS
    row = f"| [{alert['alert']}]({alert['alert']}.md) | {alert['labels']['severity']} |"
    assert row in (RUNBOOKS / "README.md").read_text()


def test_each_page_has_its_alert() -> None:
    assert {page.stem for page in PAGES} == {alert["alert"] for alert in ALERTS}


def test_queries_in_runbooks_can_be_asked(tmp_path: Path) -> None:
    asked = [query for page in PAGES for query in queries(page)]
    listed = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(asked)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "runbooks", "rules": listed}]}))

    run_promtool("check", "rules", tmp_path / "rules.yaml")

    assert len(asked) > 40
    assert {name for query in asked for name in metrics_in(query)} <= known_metrics()
