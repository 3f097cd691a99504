"""A worker whose Kafka client doesn't return from a call, as librdkafka may: `python -m tests.integration.hanging_worker`.

It takes a group coordinator that goes away in the wrong moment; here the client is told to.
"""

from __future__ import annotations

import logging
import threading

from workers import checkpoint
from workers.checkpoint import TransactionalPublisher
from workers.cli import LOG_FORMAT
from workers.service import run_worker
from workers.settings import load_settings

PUBLISHED_FIRST = 3


def main() -> None:
    """Publish a few times, then hang."""
    checkpoint.CALL_HANGS_AFTER_S = 2.0
    send = TransactionalPublisher._send_offsets
    calls = 0

    def hang(self: TransactionalPublisher, *arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls > PUBLISHED_FIRST:
            self._call(threading.Event().wait)
        send(self, *arguments)  # type: ignore[arg-type]

    TransactionalPublisher._send_offsets = hang  # type: ignore[assignment]
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    run_worker(load_settings())


if __name__ == "__main__":
    main()
