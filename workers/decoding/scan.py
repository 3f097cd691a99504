"""What decoding a file gives, and the last steps that all formats share: exposure and fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from workers.decoding.fit import Placement, pad, resize
from workers.decoding.intensity import expose
from workers.errors import Reason, ScanRejected

# RGB with alpha. A pixel of more bytes counts for more than one pixel against the limit.
BYTES_PER_PIXEL = 4
# What the resize reads as it is; other types become float32 first.
RESIZABLE = tuple(map(np.dtype, (np.uint8, np.uint16, np.int16)))


@dataclass(frozen=True, slots=True)
class DecodedScan:
    """A scan as the models see it.

    `pixels` is uint8 [256, 256]; `placement` leads a mask back to the scan's own size; `spacing_mm` is the distance in
    millimetres between the centres of the scan's own pixels, (between rows, between columns), None where unknown.
    """

    pixels: NDArray[np.uint8]
    placement: Placement
    spacing_mm: tuple[float, float] | None = None


def check_size(rows: int, columns: int, max_pixels: int, *, bytes_per_pixel: float = BYTES_PER_PIXEL) -> None:
    """Refuse, by what its header says, an image that would take too much memory. Raises ScanRejected."""
    if rows <= 0 or columns <= 0:
        raise ScanRejected(Reason.DAMAGED, f"the file says that its image has {columns} × {rows} pixels")
    if rows * columns * max(1.0, bytes_per_pixel / BYTES_PER_PIXEL) > max_pixels:
        depth = f" of {bytes_per_pixel:g} bytes" if bytes_per_pixel > BYTES_PER_PIXEL else ""
        raise ScanRejected(
            Reason.TOO_LARGE,
            f"the file says that its image has {columns} × {rows} pixels{depth}; at most {max_pixels} are decoded",
        )


def scan_of(
    values: NDArray[Any], *, exposed: bool, inverted: bool = False, spacing_mm: tuple[float, float] | None = None
) -> DecodedScan:
    """Make a scan of an image's values, real numbers [height, width].

    `exposed` values are uint8 and already fit to be looked at; others get a window of their own. `inverted` ones are
    black where the value is highest.
    """
    placement = Placement(*values.shape)
    if values.dtype not in RESIZABLE:
        # Beyond 1e30 the averages of a resize overflow. No scanner writes such values; a damaged file may.
        values = np.clip(np.nan_to_num(values.astype(np.float32), nan=0.0), -1e30, 1e30)
    # Exposure comes after the resize, so that it costs the same for a scan of any size.
    pixels = resize(values, placement)
    if not exposed:
        pixels = expose(pixels)
    if inverted:
        pixels = cv2.bitwise_not(pixels)
    return DecodedScan(pad(pixels, placement), placement, spacing_mm)
