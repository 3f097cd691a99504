from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from workers.http import HUNG_AFTER_S, HealthServer
from workers.metrics import Metrics


def get(server: HealthServer, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as problem:
        return problem.code, problem.read()


def test_metrics_and_health_are_served() -> None:
    metrics, missing = Metrics(), {"triton": 12.34}
    metrics.scans.labels("segmented", "stat").inc(3)
    server = HealthServer("127.0.0.1", 0, metrics=metrics, turned_at=time.monotonic, not_ready=lambda: missing)
    with server:
        assert b'mristream_scans_total{lane="stat",status="segmented"} 3.0' in get(server, "/metrics")[1]
        assert get(server, "/healthz")[0] == 200
        status, body = get(server, "/readyz")
        assert (status, json.loads(body)) == (
            503,
            {"ready": False, "waiting_for": ["triton"], "for_s": {"triton": 12.3}},
        )
        missing.clear()
        assert get(server, "/readyz")[0] == 200
        assert get(server, "/other")[0] == 404


def test_prometheus_gets_openmetrics_with_the_trace_of_a_scan_and_others_the_plain_format() -> None:
    metrics = Metrics()
    metrics.end_to_end.labels("stat").observe(0.2, {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"})
    server = HealthServer("127.0.0.1", 0, metrics=metrics, turned_at=time.monotonic, not_ready=dict)
    with server:
        request = urllib.request.Request(
            f"http://127.0.0.1:{server.port}/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"}
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
        plain = get(server, "/metrics")[1]

    found = [sample.exemplar for sample in families["mristream_end_to_end_seconds"].samples if sample.exemplar]
    assert [exemplar.labels for exemplar in found] == [{"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}]
    assert not [name for name in families if name.endswith("_created")]
    assert b"trace_id" not in plain


def test_a_loop_that_hangs_is_not_alive() -> None:
    stuck = time.monotonic() - HUNG_AFTER_S - 1
    server = HealthServer("127.0.0.1", 0, metrics=Metrics(), turned_at=lambda: stuck, not_ready=dict)
    with server:
        assert get(server, "/healthz")[0] == 503


def test_how_the_worker_is_can_be_seen_and_read_by_programs() -> None:
    missing = {"triton": 12.34}
    server = HealthServer("127.0.0.1", 0, metrics=Metrics(), turned_at=time.monotonic, not_ready=lambda: missing)
    with server, urllib.request.urlopen(f"http://127.0.0.1:{server.port}/", timeout=5) as page:
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert page.headers["Content-Security-Policy"].startswith("default-src 'none';")
        assert b"Waits</b> for triton" in page.read()
        status = json.loads(get(server, "/status.json")[1])

    assert (status["ready"], status["waiting_for"], status["hangs_s"]) == (False, {"triton": 12.34}, None)
    assert status["worker"].endswith(f":{server.port}")
