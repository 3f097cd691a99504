"""Prometheus as a child process: it loads our rules, scrapes whom it is told to, and keeps what it has seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.prometheus import TRITON, WORKERS, Prometheus
from deploy.local.server import ServerError
from tests.conftest import wait_for
from tests.test_local_server import processes_in


def test_it_scrapes_whom_it_is_told_to_while_it_runs_and_keeps_what_it_saw(tmp_path: Path) -> None:
    with Prometheus(tmp_path, scrape_interval_s=0.5) as server:
        assert server.query("up") == []
        server.scrape(TRITON, [f"{server.url}/metrics"])
        server.scrape(WORKERS, ["http://127.0.0.1:1/metrics"])
        wait_for(lambda: len(server.query("up")) == 2, "both jobs")
        states = {sample["metric"]["job"]: sample["value"][1] for sample in server.query("up")}
        wait_for(lambda: "MristreamNoWorker" in {a["alertname"] for a in server.alerts("pending")}, "the pending alert")
        assert server.alerts() == []
        server.scrape(WORKERS, [])
        wait_for(lambda: len(server.query("up")) == 1, "one job")

    assert states == {TRITON: "1", WORKERS: "0"}
    assert processes_in(tmp_path) == []
    with server:
        assert len(server.query("max_over_time(up[10m])")) == 2


def test_what_is_no_promql_is_an_error_that_says_where(tmp_path: Path) -> None:
    with Prometheus(tmp_path) as server, pytest.raises(ServerError, match=r"1:4: parse error"):
        server.query("up{")


def test_rules_that_are_none_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("groups: [{name: g, rules: [{alert: a, expr: 'up{'}]}]")

    with pytest.raises(ServerError, match=r"(?s)rules\.yaml.*parse error"):
        Prometheus(tmp_path, rules=[rules]).start()
