"""What the log's lines say, and what they never say."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import scan_message
from workers.logs import JsonLines, Seldom, TextLines, about, message_of
from workers.messages import Lane
from workers.tracing import NO_TRACING, ScanTrace

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def record(
    message: str, *arguments: object, extra: dict[str, Any] | None = None, error: bool = False
) -> logging.LogRecord:
    return logging.getLogger("workers.test").makeRecord(
        "workers.test", logging.WARNING, "f.py", 1, message, arguments, sys.exc_info() if error else None, extra=extra
    )


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    text = JsonLines().format(made)
    assert "\n" not in text
    line: dict[str, Any] = json.loads(text)
    return line


def test_a_line_about_a_scan_has_its_trace_id_and_its_place() -> None:
    message = replace(scan_message(17, partition=2, ce_id="DOE^JOHN"), trace=ScanTrace(TRACE))

    line = as_json(record("a scan is rejected: %s", "damaged", extra=about(message)))

    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "workers.test",
        "message": "a scan is rejected: damaged",
        "trace_id": TRACE,
        "topic": "scans",
        "partition": 2,
        "offset": 17,
    }


def test_a_line_from_work_on_a_batch_or_about_one_has_the_trace_ids_of_all_its_scans() -> None:
    messages = [replace(scan_message(n), trace=ScanTrace(f"{n:032x}")) for n in (1, 2)]

    with NO_TRACING.batch(Lane.ROUTINE, [message.trace for message in messages]):
        inside = as_json(record("waiting for triton"))

    assert inside["trace_ids"] == [message.trace.trace_id for message in messages]
    assert as_json(record("left", extra=about(messages)))["trace_ids"] == inside["trace_ids"]
    assert f" [{messages[0].trace.trace_id}+1]: " in TextLines().format(record("left", extra=about(messages)))
    assert "trace_id" not in as_json(record("assigned"))


def test_of_an_unforeseen_error_the_kind_and_the_place_are_logged_and_not_its_text() -> None:
    try:
        int("DOE^JOHN")
    except ValueError:
        line = as_json(record("it failed", error=True))
        text = TextLines().format(record("it failed", error=True))

    assert line["error"] == "ValueError"
    assert "test_of_an_unforeseen_error" in line["at"][-1]
    assert "test_of_an_unforeseen_error" in text
    assert "DOE" not in json.dumps(line) + text


@pytest.mark.parametrize("extra", [None, about(replace(scan_message(0), trace=ScanTrace(TRACE)))])
def test_the_message_is_found_again_in_a_line_of_either_format(extra: dict[str, Any] | None) -> None:
    made = record("waiting for store: it says: no", extra=extra)

    assert message_of(JsonLines().format(made)) == message_of(TextLines().format(made)) == made.getMessage()
    assert message_of("Traceback (most recent call last):") == "Traceback (most recent call last):"
    assert message_of("[1]") == "[1]"


def test_a_worker_that_ends_by_our_fault_says_so_in_one_line_without_the_errors_text() -> None:
    program = (
        "import threading, warnings; from workers.logs import configure_logging; configure_logging('INFO', 'json')\n"
        "warnings.warn('look here')\n"
        "thread = threading.Thread(target=lambda: {}['DOE^JOHN']); thread.start(); thread.join()\n"
        "int('DOE^JOHN')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)

    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [line["level"] for line in lines] == ["warning", "critical", "critical"]
    assert [line.get("error") for line in lines] == [None, "KeyError", "ValueError"]
    assert "DOE" not in ended.stderr
    assert ended.returncode == 1


def test_kafkas_client_is_heard_again_after_a_minute_and_at_once_with_something_else() -> None:
    now = 0.0
    seldom = Seldom(60, clock=lambda: now)

    def passes(client: str, reason: str, state_ms: int) -> bool:
        return seldom.filter(record(f"FAIL [{client}]: Connect failed: {reason} (after {state_ms}ms in state CONNECT)"))

    assert passes("consumer-1", "Connection refused", 0)
    assert not passes("consumer-1", "Connection refused", 3)
    assert passes("consumer-2", "Connection refused", 0)
    assert passes("consumer-1", "No route to host", 0)
    now = 60.0
    assert passes("consumer-1", "Connection refused", 0)
