"""The dashboard for the wall: do scans get through, in time, and if not, where do they wait?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from deploy.monitoring.boards.frame import frame, row
from deploy.monitoring.boards.panels import AMBER, BLUE, GREEN, GREY, RED, Query, number, over_time, states
from deploy.monitoring.boards.parts import where_it_goes_now, where_time_goes
from workers.messages import Lane, Status
from workers.metrics import OBJECTIVE_SHARE, OBJECTIVES_S

UID = "mristream-operations"
WAITING = "Where do scans wait?"
JOB = 'job=~"$job"'
STATUS_COLORS: dict[str, str] = {
    Status.SEGMENTED: GREEN,
    Status.NO_TUMOR: "light-green",
    Status.NOT_BRAIN_MRI: BLUE,
    Status.UNCERTAIN: AMBER,
    Status.REJECTED: RED,
}
LANE_COLORS: dict[str, str] = {Lane.STAT: RED, Lane.ROUTINE: BLUE, Lane.REPLAY: GREY}
_PROMISES = [(None, GREEN), *((seconds, RED) for seconds in OBJECTIVES_S.values())]
# The burn rates at which the alerts of rules/objectives.yaml page and file a ticket.
_PAGE_AT, _TICKET_AT = 14.4, 3.0


def operations() -> dashboard.Dashboard:
    """All of it."""
    board = frame(UID, "mristream: operations", "Do scans get through, in time, and if not, where do they wait?")
    _at_a_glance(board)
    _flow(board)
    _latency(board)
    row(board, WAITING, where_time_goes(), where_it_goes_now())
    _steps(board)
    _dependencies(board)
    _saturation(board)
    return board


def _at_a_glance(board: dashboard.Dashboard) -> None:
    row(
        board,
        "Is it healthy?",
        number(
            "Results a second",
            "Scans with a published final result.",
            Query(f"sum(rate(mristream_scans_total{{{JOB}}}[$__rate_interval]))"),
            unit="none",
            decimals=1,
        ),
        number(
            "Oldest scan without a result",
            "By its Kafka timestamp; red beyond the objective of its lane. Replayed history has no hurry.",
            Query(f'max by (lane) (mristream_consumer_lag_seconds{{{JOB}, lane!="replay"}})', "{{lane}}"),
            unit="s",
            decimals=1,
            width=5,
            levels_of={lane: [(None, GREEN), (seconds, RED)] for lane, seconds in OBJECTIVES_S.items()},
        ),
        number(
            "In time, last hour",
            f"Scans whose result came within the objective of their lane; {OBJECTIVE_SHARE:.0%} is what is promised.",
            Query("1 - mristream:scans_late:ratio_rate1h", "{{lane}}"),
            unit="percentunit",
            decimals=2,
            width=5,
            levels=[(None, RED), (OBJECTIVE_SHARE, GREEN)],
        ),
        number(
            "Rejected, last hour",
            "Share of scans that could not be read. The alert is at 10 % of a quarter of an hour.",
            Query(
                f'sum(increase(mristream_scans_total{{{JOB}, status="rejected"}}[1h]))'
                f" / sum(increase(mristream_scans_total{{{JOB}}}[1h]))"
            ),
            unit="percentunit",
            decimals=1,
            levels=[(None, GREEN), (0.05, AMBER), (0.1, RED)],
        ),
        number(
            "Workers",
            "Workers that answer Prometheus. None: nobody knows how many scans wait.",
            Query(f"count(up{{{JOB}}} == 1) or vector(0)"),
            unit="none",
            width=2,
            levels=[(None, RED), (1, GREEN)],
        ),
        number(
            "Down",
            "Dependencies that at least one worker waits for. No scan is lost meanwhile.",
            Query(f"count(min by (dependency) (mristream_dependency_up{{{JOB}}}) == 0) or vector(0)"),
            unit="none",
            levels=[(None, GREEN), (1, RED)],
        ),
        number(
            "Alerts",
            "Alerts of deploy/monitoring/rules that fire. Each has a page in docs/runbooks.",
            Query('count(ALERTS{alertstate="firing", alertname=~"(Mristream|Triton).+"}) or vector(0)'),
            unit="none",
            levels=[(None, GREEN), (1, RED)],
        ),
    )


def _flow(board: dashboard.Dashboard) -> None:
    row(
        board,
        "Flow",
        over_time(
            "Results a second, by status",
            "Scans with a published final result.",
            Query(f"sum by (status) (rate(mristream_scans_total{{{JOB}}}[$__rate_interval]))", "{{status}}"),
            unit="none",
            width=7,
            stacked=True,
            colors=STATUS_COLORS,
        ),
        over_time(
            "Results a second, by lane",
            "How the scans came in: urgent, routine, or replayed history.",
            Query(f"sum by (lane) (rate(mristream_scans_total{{{JOB}}}[$__rate_interval]))", "{{lane}}"),
            unit="none",
            width=5,
            colors=LANE_COLORS,
        ),
        over_time(
            "Rejected, by reason",
            "Scans that could not be read, each a message on the dead topic: `mristream dead list`.",
            Query(
                f"sum by (step, reason) (increase(mristream_rejects_total{{{JOB}}}[$__rate_interval])) > 0",
                "{{step}}: {{reason}}",
            ),
            unit="short",
            bars=True,
            shades_of=RED,
            none="none",
        ),
        over_time(
            "What a person should look at",
            "Flags on results: the class says tumour and the mask is empty or the reverse; a result after its deadline.",
            Query(f"sum by (flag) (rate(mristream_flags_total{{{JOB}}}[$__rate_interval])) * 60", "{{flag}} a minute"),
            unit="none",
        ),
    )


def _latency(board: dashboard.Dashboard) -> None:
    objectives = ", ".join(f"{seconds:g} s ({lane})" for lane, seconds in OBJECTIVES_S.items())
    row(
        board,
        "Lag, and latency against the objective",
        over_time(
            "Scans without a result",
            "In Kafka, or taken and not yet published. Stands still while a worker takes nothing: the age does not.",
            Query(
                f"sum by (lane) (max by (lane, topic, partition) (mristream_consumer_lag_scans{{{JOB}}}))", "{{lane}}"
            ),
            width=4,
            colors=LANE_COLORS,
        ),
        over_time(
            "Age of the oldest of them",
            f"By its Kafka timestamp. The lines are the objectives: {objectives}.",
            Query(f"max by (lane) (mristream_consumer_lag_seconds{{{JOB}}})", "{{lane}}"),
            unit="s",
            width=5,
            lines_at=_PROMISES,
            colors=LANE_COLORS,
        ),
        over_time(
            "From Kafka to the result",
            f"Half of the scans, and 99 of 100, are quicker. The lines are the objectives: {objectives}. Dots are single "
            "scans with a trace.",
            *(
                Query(
                    f"histogram_quantile({share}, sum by (le, lane) "
                    f'(rate(mristream_end_to_end_seconds_bucket{{{JOB}, lane!="replay"}}[$__rate_interval])))',
                    f"{{{{lane}}}} {name}",
                )
                for share, name in ((0.99, "p99"), (0.5, "p50"))
            ),
            unit="s",
            log=True,
            width=6,
            lines_at=_PROMISES,
            exemplars=True,
            colors={
                "stat p99": RED,
                "stat p50": "light-red",
                "routine p99": BLUE,
                "routine p50": "light-blue",
            },
        ),
        over_time(
            "In time",
            f"Share of scans within the objective ({objectives}), over 5 minutes. The line is the promise.",
            Query("1 - mristream:scans_late:ratio_rate5m", "{{lane}}"),
            unit="percentunit",
            width=4,
            most=1,
            lines_at=[(None, RED), (OBJECTIVE_SHARE, GREEN)],
            colors=LANE_COLORS,
        ),
        over_time(
            "How fast error budgets burn",
            "1 spends a month's budget in a month. The lines are where alerts file a ticket and page. Complete: scans that "
            "get a result that says something of them, and not of us.",
            Query(f"mristream:scans_late:ratio_rate1h / {1 - OBJECTIVE_SHARE:g}", "{{lane}} in time"),
            Query("mristream:scans_failed:ratio_rate1h / 0.001", "complete"),
            unit="none",
            width=5,
            lines_at=[(None, GREEN), (_TICKET_AT, AMBER), (_PAGE_AT, RED)],
            colors={"stat in time": RED, "routine in time": BLUE, "complete": GREEN},
        ),
    )


def _steps(board: dashboard.Dashboard) -> None:
    row(
        board,
        "What takes long?",
        over_time(
            "Steps: nine of ten are quicker",
            "Read and decode of a scan; classify, segment and store of a batch; commit of a checkpoint. Waiting for what is "
            "down is part of it.",
            Query(
                f"histogram_quantile(0.9, sum by (le, step) (rate(mristream_step_seconds_bucket{{{JOB}}}[$__rate_interval])))",
                "{{step}}",
            ),
            unit="s",
            log=True,
        ),
        over_time(
            "Calls to Triton and the store: nine of ten are quicker",
            "Each attempt, whatever it gave.",
            Query(
                "histogram_quantile(0.9, sum by (le, dependency, operation) "
                f"(rate(mristream_call_seconds_bucket{{{JOB}}}[$__rate_interval])))",
                "{{dependency}}: {{operation}}",
            ),
            unit="s",
            log=True,
        ),
        over_time(
            "Calls that failed, and repeats",
            "A minute. Failed: gone, overloaded, an error or too late.",
            Query(
                f'sum by (dependency, operation) (rate(mristream_call_seconds_count{{{JOB}, outcome="failed"}}'
                "[$__rate_interval])) * 60 > 0",
                "{{dependency}}: {{operation}} failed",
            ),
            Query(
                f"sum by (dependency) (rate(mristream_retries_total{{{JOB}}}[$__rate_interval])) * 60",
                "{{dependency}} repeated",
            ),
            unit="none",
        ),
        over_time(
            "Scans in a batch, and in a checkpoint",
            "Means. Batches grow by themselves when scans wait.",
            *(
                Query(
                    f"sum(rate(mristream_{what}_scans_sum{{{JOB}}}[$__rate_interval]))"
                    f" / (sum(rate(mristream_{what}_scans_count{{{JOB}}}[$__rate_interval])) > 0)",
                    what,
                )
                for what in ("batch", "checkpoint")
            ),
            unit="none",
        ),
    )


def _dependencies(board: dashboard.Dashboard) -> None:
    row(
        board,
        "Is everything there?",
        states(
            "What workers depend on",
            "Circuit breakers, the worst of all workers. Open: all wait, and Kafka keeps the scans.",
            Query(f"max by (dependency) (mristream_breaker_state{{{JOB}}})", "{{dependency}}"),
            says={0: ("there", GREEN), 1: ("is tried", AMBER), 2: ("down", RED)},
            width=6,
        ),
        over_time(
            "Waited for",
            "How long a dependency has been missed; 0 while it answers.",
            Query(
                f"max by (dependency) ((time() - mristream_dependency_down_since_timestamp_seconds{{{JOB}}})"
                f" * (mristream_dependency_down_since_timestamp_seconds{{{JOB}}} > bool 0))",
                "{{dependency}}",
            ),
            unit="s",
            width=4,
        ),
        over_time(
            "Done again",
            "Scans given up to another worker, or sent again after a rejection; checkpoints that Kafka did not take; "
            "partitions whose last worker died. No scan is lost, and none has two results.",
            *(
                Query(f"sum(increase({metric}{{{JOB}{more}}}[$__rate_interval]))", name)
                for metric, more, name in (
                    ("mristream_scans_left_to_others_total", "", "left to others"),
                    ("mristream_resent_scans_total", "", "sent again"),
                    ("mristream_checkpoint_failures_total", "", "checkpoint failed"),
                    ("mristream_partitions_opened_total", ', found="left_open"', "worker died"),
                    ("mristream_partitions_opened_total", ', found="suspect"', "workers die"),
                )
            ),
            unit="short",
            width=5,
        ),
        states(
            "Alerts",
            "Pending and firing. Each has a page in docs/runbooks.",
            Query(
                'max by (alertname) (ALERTS{alertname=~"(Mristream|Triton).+", alertstate="firing"} * 2'
                ' or ALERTS{alertname=~"(Mristream|Triton).+", alertstate="pending"})',
                "{{alertname}}",
            ),
            says={1: ("pending", AMBER), 2: ("fires", RED)},
            width=9,
            none="none",
        ),
    )


def _saturation(board: dashboard.Dashboard) -> None:
    row(
        board,
        "Saturation",
        over_time(
            "Scans in workers",
            "Taken and not yet finished, and taken and not yet published.",
            Query(f"sum(mristream_scans_in_flight{{{JOB}}})", "in flight"),
            Query(f"sum(mristream_scans_unpublished{{{JOB}}})", "unpublished"),
            width=5,
        ),
        over_time(
            "Bytes in workers",
            "Message bytes of scans without a published result; what a worker may hold is `worker.bytes_in_flight`.",
            Query(f"mristream_bytes_in_flight{{{JOB}}}", "{{instance}}"),
            unit="bytes",
            width=5,
        ),
        over_time(
            "Memory of the container",
            "Decoders included, without file pages that can be dropped; and its limit, where there is one.",
            Query(f"mristream_memory_working_set_bytes{{{JOB}}}", "{{instance}}"),
            Query(f"mristream_memory_limit_bytes{{{JOB}}}", "{{instance}} limit"),
            unit="bytes",
            width=5,
        ),
        over_time(
            "Cores in use",
            "Of the worker's process, without its decoders.",
            Query(f"rate(process_cpu_seconds_total{{{JOB}}}[$__rate_interval])", "{{instance}}"),
            unit="none",
            width=5,
        ),
        over_time(
            "Longest turn of the poll loop",
            "Since the worker started. Kafka throws out a consumer that does not poll for minutes.",
            Query(f"mristream_longest_turn_seconds{{{JOB}}}", "{{instance}}"),
            unit="s",
            width=4,
        ),
    )
