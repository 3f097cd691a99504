"""Takes a file of any kind to the pixels that the models see."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from workers.decoding.formats import Format, identify
from workers.decoding.image import decode_jpeg, decode_png, jpeg_size, png_size
from workers.decoding.pool import ChildPool
from workers.decoding.scan import DecodedScan, check_size
from workers.errors import Reason, ScanRejected

if TYPE_CHECKING:
    from workers.settings import DecodeSettings

# JPEG and PNG up to this many pixels are decoded in this process, in 0.1 to 10 ms and 20 MB. Larger ones go to a child
# process: the way there costs nothing beside the decoding, and there the memory is limited.
IN_PROCESS_PIXELS = 1024 * 1024


class Decoder:
    """Decodes untrusted files. Thread-safe. A context manager: it owns child processes, started when first needed."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._max_bytes = settings.max_bytes
        self._max_pixels = settings.max_pixels
        self._children = ChildPool(settings)

    def __enter__(self) -> Decoder:
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

        Raises ScanRejected where the file can't be read, and RuntimeError where child processes can't be started.
        """
        if not data:
            raise ScanRejected(Reason.EMPTY, "the file has no bytes: send it again")
        if len(data) > self._max_bytes:
            raise ScanRejected(
                Reason.TOO_LARGE, f"the file has {len(data)} bytes; at most {self._max_bytes} are decoded"
            )
        match identify(data):
            case Format.JPEG if self._is_small(jpeg_size(data)):
                return decode_jpeg(data)
            case Format.PNG if self._is_small(png_size(data)):
                return decode_png(data)
            case _:
                return self._children.decode(data)

    def _is_small(self, size: tuple[int, int]) -> bool:
        rows, columns = size
        check_size(rows, columns, self._max_pixels)
        return rows * columns <= IN_PROCESS_PIXELS
