"""The dashboard about one scan: its trace and its log, and beside them what scans did at that time."""

from __future__ import annotations

from grafana_foundation_sdk.builders import common, dashboard, logs, table
from grafana_foundation_sdk.builders.loki import Dataquery as LokiQuery
from grafana_foundation_sdk.builders.tempo import Dataquery as TempoQuery
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue
from grafana_foundation_sdk.models.tempo import SearchTableType

from deploy.monitoring.boards.frame import frame, row, source
from deploy.monitoring.boards.panels import Query, data_source, over_time, words
from deploy.monitoring.boards.parts import where_time_goes

UID = "mristream-scan"
JOB = 'job=~"$job"'
HOW = """\
**Which scan?** Put its trace id into **Trace id** above: it is `trace_id` in the scan's result and in each line of the log, \
32 hexadecimal digits. Or click one of the slow scans, or a dot in a curve below.
"""


def scan() -> dashboard.Dashboard:
    """All of it."""
    board = frame(UID, "mristream: one scan", "Where was this scan when, and what did others do at that time?")
    board.with_variable(source("tempo", "Tempo"))
    board.with_variable(source("loki", "Loki"))
    board.with_variable(
        dashboard.TextBoxVariable("trace_id").label("Trace id").description("32 hexadecimal digits.").default_value("")
    )
    board.with_variable(
        dashboard.TextBoxVariable("log_stream")
        .label("Log stream")
        .description("What Loki calls the log of the workers.")
        .default_value('{container="worker"}')
    )
    _this_scan(board)
    _others(board)
    return board


def _this_scan(board: dashboard.Dashboard) -> None:
    trace = (
        dashboard.Panel()
        .type("traces")
        .title("Its way")
        .description("From submit to store: the six steps, and Triton's own spans, in one trace.")
        .datasource(data_source("tempo"))
        .span(24)
        .height(12)
        .with_target(TempoQuery().query("$trace_id").query_type("traceql"))
    )
    # What is chosen stays chosen.
    kept = "&".join(
        [
            "${__url_time_range}",
            *(f"${{{name}:queryparam}}" for name in ("prometheus", "tempo", "loki", "job", "log_stream")),
        ]
    )
    slow = (
        table.Panel()
        .title("Slow scans: click one")
        .description(
            "Scans that a worker took more than a second for; the trace id is a link that chooses it. Tempo has those that were "
            "traced (`tracing.sample_ratio`)."
        )
        .datasource(data_source("tempo"))
        .span(12)
        .height(8)
        .with_target(
            TempoQuery()
            .query('{ resource.service.name = "mristream-worker" && name = "scan" && duration > 1s }')
            .query_type("traceql")
            .table_type(SearchTableType.TRACES)
            .limit(200)
        )
        .sort_by([common.TableSortByFieldState().display_name("Duration").desc(True)])
        .override_by_name(
            "traceID",
            [DynamicConfigValue("links", [{"title": "Show", "url": f"/d/{UID}?{kept}&var-trace_id=${{__value.raw}}"}])],
        )
    )
    log = (
        logs.Panel()
        .title("Its log")
        .description("Lines with this trace id.")
        .datasource(data_source("loki"))
        .span(12)
        .height(8)
        .show_time(True)
        .wrap_log_message(True)
        .prettify_log_message(True)
        .enable_log_details(True)
        .with_target(LokiQuery().expr("$log_stream |= `$trace_id`").query_type("range"))
    )
    row(board, "This scan", words("", HOW, width=24, height=2), slow, log, trace)


def _others(board: dashboard.Dashboard) -> None:
    def slowest(metric: str, by: str) -> Query:
        return Query(
            f"histogram_quantile(0.99, sum by (le{', ' + by if by else ''}) "
            f"(rate({metric}_bucket{{{JOB}}}[$__rate_interval])))",
            f"{{{{{by}}}}}" if by else "all",
        )

    row(
        board,
        "All scans at that time",
        where_time_goes(width=24, height=9),
        over_time(
            "From Kafka to the result: 99 of 100 are quicker",
            "A dot is a scan with a trace: point at it, and follow its link.",
            slowest("mristream_end_to_end_seconds", "lane"),
            unit="s",
            log=True,
            exemplars=True,
        ),
        over_time(
            "In Kafka: 99 of 100 are quicker",
            "Until a worker took the scan.",
            slowest("mristream_wait_in_kafka_seconds", "lane"),
            unit="s",
            log=True,
        ),
        over_time(
            "Steps: 99 of 100 are quicker",
            "Read and decode of a scan; classify, segment and store of a batch; commit of a checkpoint.",
            slowest("mristream_step_seconds", "step"),
            unit="s",
            log=True,
        ),
        over_time(
            "For the checkpoint: 99 of 100 are quicker",
            "From a scan's last step to its published result.",
            slowest("mristream_wait_for_checkpoint_seconds", ""),
            unit="s",
            log=True,
        ),
    )
