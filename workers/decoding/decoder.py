"""Takes a file of any kind to the pixels that the models see."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from workers.decoding.formats import identify
from workers.decoding.pool import ChildPool
from workers.decoding.scan import DecodedScan
from workers.errors import Reason, ScanRejected

if TYPE_CHECKING:
    from workers.settings import DecodeSettings


class Decoder:
    """Decodes untrusted files, none of them in this process. Thread-safe. A context manager: it owns child processes.

    They start when it is entered, and are ready about a second later.
    """

    def __init__(self, settings: DecodeSettings) -> None:
        self._max_bytes = settings.max_bytes
        self._children = ChildPool(settings)

    def __enter__(self) -> Self:
        self._children.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child processes, after the files they are at."""
        self._children.close()

    def decode(self, data: bytes) -> DecodedScan:
        """Decode a whole file: JPEG, PNG or single-frame DICOM, told by its bytes and never by its stated content type.

        Raises ScanRejected where the file can't be read, and Unavailable where child processes can't be started.
        """
        if not data:
            raise ScanRejected(Reason.EMPTY, "the file has no bytes: send it again")
        if len(data) > self._max_bytes:
            raise ScanRejected(
                Reason.TOO_LARGE, f"the file has {len(data)} bytes; at most {self._max_bytes} are decoded"
            )
        identify(data)  # what is of no known format costs no child's time
        return self._children.decode(data)
