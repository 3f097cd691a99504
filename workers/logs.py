"""The log: one line for each event, as JSON for programs or as text for people.

A line that concerns a scan or a batch carries its trace id. Never logged: pixels, scan ids, names and addresses of files,
header fields, and the texts of unforeseen errors, which may repeat any of these.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

from workers.progress import ScanMessage
from workers.tracing import trace_ids_here

LogFormat = Literal["json", "text"]
log = logging.getLogger(__name__)


def configure_logging(level: str, log_format: LogFormat) -> None:
    """Log to standard error from now on, unforeseen errors and the warnings of libraries included."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # Libraries explain at length what is their own business.
    for library in ("asyncio", "urllib3", "prometheus_client"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _say_last_words
    threading.excepthook = _say_that_a_thread_died


def about(messages: ScanMessage | Sequence[ScanMessage]) -> dict[str, Any]:
    """For `extra`: which scan a line is about, or which scans of a batch."""
    if isinstance(messages, ScanMessage):
        partition = messages.partition
        place = {"topic": partition.topic, "partition": partition.number, "offset": messages.offset}
        return {"facts": _ids([messages.trace.trace_id]) | place}
    return {"facts": _ids([message.trace.trace_id for message in messages])}


class Seldom(logging.Filter):
    """Passes a line of Kafka's client at once, and the same again only after `every_s`: in an outage it comes with each try."""

    def __init__(self, every_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every_s = every_s
        self._clock = clock
        self._said_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is to be logged."""
        now = self._clock()
        self._said_at = {what: at for what, at in self._said_at.items() if now - at < self._every_s}
        # What differs each time: how long it has been in that state.
        what = record.getMessage().partition(" (after ")[0]
        if what in self._said_at:
            return False
        self._said_at[what] = now
        return True


class JsonLines(logging.Formatter):
    """`time`, `level`, `logger`, `message`, and where there is something to say: `trace_id`, or `trace_ids` of several scans;
    `topic`, `partition`, `offset`; `error` and `at`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_facts(record),
        }
        return json.dumps(line)


class TextLines(logging.Formatter):
    """The same for people's eyes: time, level, logger, the (first) trace id, message."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        facts = _facts(record)
        when = datetime.fromtimestamp(record.created).astimezone().isoformat(" ", "milliseconds")
        ids = facts.get("trace_ids", [facts["trace_id"]] if "trace_id" in facts else [])
        trace = f" [{ids[0]}{f'+{len(ids) - 1}' if len(ids) > 1 else ''}]" if ids else ""
        error = f" ({facts['error']}, {' < '.join(reversed(facts['at']))})" if "error" in facts else ""
        message = " ".join(record.getMessage().splitlines())
        return f"{when} {record.levelname} {record.name}{trace}: {message}{error}"


def message_of(line: str) -> str:
    """The message of a line in either format, or the whole line if it is in neither."""
    try:
        parsed = json.loads(line)
    except ValueError:
        parsed = None
    if isinstance(parsed, dict):
        return str(parsed.get("message", line))
    head, colon, message = line.partition(": ")
    return message if colon and len(head.split()) >= 4 else line


def _ids(trace_ids: Sequence[str | None]) -> dict[str, Any]:
    known = [trace_id for trace_id in trace_ids if trace_id]
    return {"trace_ids": known} if len(known) > 1 else {"trace_id": known[0]} if known else {}


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    facts: dict[str, Any] = getattr(record, "facts", None) or _ids(trace_ids_here())
    if record.exc_info and record.exc_info[0] is not None:
        kind, _, trace = record.exc_info
        at = [f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in traceback.extract_tb(trace)]
        facts = facts | {"error": kind.__name__, "at": at}
    return facts


def _say_last_words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    log.critical(
        "the worker ends: this is our own fault, and nothing of it is committed", exc_info=(kind, error, trace)
    )


def _say_that_a_thread_died(died: threading.ExceptHookArgs) -> None:
    if died.exc_value is not None:
        name = died.thread.name if died.thread else "?"
        log.critical("the thread %s died", name, exc_info=(died.exc_type, died.exc_value, died.exc_traceback))
