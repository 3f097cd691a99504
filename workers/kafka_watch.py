"""Notices that Kafka is gone also while nothing is to be published: else an outage would show with the next scan only."""

from __future__ import annotations

import contextlib
import threading

from confluent_kafka import KafkaError

from workers.kafka import find_topics
from workers.retry import GaveUp, Patience
from workers.settings import KafkaSettings


class KafkaWatch:
    """Asks for Kafka on a thread of its own, from when a client has lost all brokers until one answers.

    Meanwhile `kafka` is one of the dependencies that are down, with all that shows it. The thread ends after
    `patience.stop`, and with the process.
    """

    def __init__(self, settings: KafkaSettings, patience: Patience) -> None:
        self._settings = settings
        self._patience = patience
        self._asking: threading.Thread | None = None

    def heard(self, error: KafkaError) -> None:
        """What a client has to say, which it has logged and may be about a single broker.

        For `error_cb`, on the poll loop's thread. A client says that it has no broker with each of its new starts, and also
        when it has but let an idle connection go: then the first answer comes at once.
        """
        if error.code() != KafkaError._ALL_BROKERS_DOWN or (self._asking is not None and self._asking.is_alive()):
            return
        self._asking = threading.Thread(target=self._ask, name="kafka-watch", daemon=True)
        self._asking.start()

    def _ask(self) -> None:
        with contextlib.suppress(GaveUp):
            self._patience.insist("kafka", lambda: find_topics(self._settings, [self._settings.scans_topic]))
