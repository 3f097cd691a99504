"""Notices that Kafka is gone also while nothing is to be published: else an outage would show with the next scan only."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaError

from workers.kafka import find_topics
from workers.retry import GaveUp, Patience
from workers.settings import KafkaSettings


class KafkaWatch:
    """Asks for Kafka on a thread of its own, from when a client has lost all brokers until one answers.

    Meanwhile `kafka` is one of the dependencies that are down, with all that shows it. A context manager; it ends after
    `patience.stop`.
    """

    def __init__(self, settings: KafkaSettings, patience: Patience) -> None:
        self._settings = settings
        self._patience = patience
        self._lost = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._watch, name="kafka-watch", daemon=True)

    def heard(self, error: KafkaError) -> None:
        """What a client has to say, which it has logged and may be about a single broker. For `error_cb`; returns at once."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._lost.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._lost.set()

    def _watch(self) -> None:
        while self._lost.wait() and not self._closing:
            self._lost.clear()
            try:
                # A client also says so when it has but let an idle connection go: then the first answer comes at once.
                self._patience.insist("kafka", lambda: find_topics(self._settings, [self._settings.scans_topic]))
            except GaveUp:
                return
