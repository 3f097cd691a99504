"""What every mask store does."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Self

_KEY = re.compile(r"(?!\.)[A-Za-z0-9._-]+(/(?!\.)[A-Za-z0-9._-]+)*")


class MaskStore(ABC):
    """Where masks go. Thread-safe: several batches are stored at once.

    A key is one that `mask_key` made, or looks like it. Writing a key again replaces its mask, as a whole.
    """

    @abstractmethod
    def put_many(self, masks: Sequence[tuple[str, bytes]]) -> list[str]:
        """Store (key, PNG file) pairs and return their URIs, in order, when all of them are durable.

        Where a key comes twice, the last one stays. Raises Unavailable if any was not stored; then the call can be
        repeated as it is.
        """

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """The PNG file stored under `key`, or None. Raises Unavailable where the store can't tell."""

    def close(self) -> None:  # noqa: B027 - a store need not hold anything
        """Let go of connections and threads."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def mask_key(scan_id: str, file_digest: str, models_digest: str) -> str:
    """Key of a scan's mask: `<what made it, 12 hex digits>/<scan and what made it, 64 hex digits>.png`.

    `file_digest` is the SHA-256 of the scan's file: two files that were sent under one id don't overwrite each other's
    masks. `models_digest` names the models' weights and the threshold. The same scan by the same models has the same
    key; any other has another. The scan id itself, which may come from a file's or a person's name, is not in it,
    and no id, however long or odd, harms a backend. Masks of one set of models lie together.
    """
    made_by = hashlib.sha256(models_digest.encode(errors="surrogatepass")).hexdigest()[:12]
    # JSON, so that no three strings run together to the same text as three others.
    name = hashlib.sha256(json.dumps([scan_id, file_digest, models_digest]).encode()).hexdigest()
    return f"{made_by}/{name}.png"


def require_key(key: str) -> str:
    """Return `key` if it is harmless in every backend. Raises ValueError."""
    if not _KEY.fullmatch(key):
        raise ValueError("a mask's key is made of letters, digits, '.', '_', '-' and '/', and no part begins with '.'")
    return key
