"""A store whose writing is timed."""

from __future__ import annotations

from collections.abc import Sequence

from workers.metrics.calls import Heard, timed
from workers.stores.base import MaskStore


class TimedStore(MaskStore):
    """Another store, of whose every `put_many` somebody hears as `put`."""

    def __init__(self, store: MaskStore, heard: Heard) -> None:
        self._store = store
        self._heard = heard

    def put_many(self, masks: Sequence[tuple[str, bytes]]) -> list[str]:
        """As the store does it."""
        with timed(self._heard, "put"):
            return self._store.put_many(masks)

    def get(self, key: str) -> bytes | None:
        """As the store does it; only tests read masks."""
        return self._store.get(key)

    def close(self) -> None:
        """Close the store."""
        self._store.close()
