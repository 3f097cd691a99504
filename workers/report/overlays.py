"""A scan with the outline of its mask: as an image file, and as the parts that a web page draws itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

# Twice what the models see, so that a line two pixels wide hides no more than one of their pixels.
OVERLAY_SIDE = 512
# BGR. A yellow that no gray can hide, in a dark casing that keeps it apart from white.
_LINE, _CASING = (40, 210, 255), (0, 0, 0)
_LINE_WIDTH, _CASING_WIDTH = 2, 5
# Lossless, and 5 times as fast as the default level for files that are 10 % larger.
_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1)
# At 256 x 256 about 9 KB a scan, without artefacts that a person would take for tissue.
_JPEG = (cv2.IMWRITE_JPEG_QUALITY, 82)
# A real outline has 300 to 2,000 characters. A mask made of noise is drawn coarsely, or a page of them had 100 MB.
_LONGEST_PATH = 8_000

Polygon = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Picture:
    """A scan to look at.

    `pixels` is uint8 [height, width] without the models' padding, its longer side 256. `outlines` are int32 [n, 1, 2]
    polygons (x, y) in a drawing of `size` = (height, width), whose longer side is `OVERLAY_SIDE`.
    """

    pixels: NDArray[np.uint8]
    outlines: list[Polygon] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the drawing."""
        return drawing_size(self.pixels)

    def png(self) -> bytes:
        """The scan with its outline, anti-aliased, 8-bit RGB."""
        height, width = self.size
        gray = cv2.resize(self.pixels, (width, height), interpolation=cv2.INTER_CUBIC)
        drawing = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
        for colour, line_width in ((_CASING, _CASING_WIDTH), (_LINE, _LINE_WIDTH)):
            cv2.polylines(
                drawing, self.outlines, isClosed=True, color=colour, thickness=line_width, lineType=cv2.LINE_AA
            )
        return _encoded(".png", drawing, _PNG)

    def jpeg(self) -> bytes:
        """The scan alone, 8-bit gray."""
        return _encoded(".jpg", self.pixels, _JPEG)

    def svg_path(self) -> str:
        """The outlines as the `d` of an SVG path in the drawing's coordinates; empty where there are none."""
        polygons, tolerance = self.outlines, 1.0
        while len(path := "".join(map(_subpath, polygons))) > _LONGEST_PATH:
            coarser = (cv2.approxPolyDP(polygon, tolerance, closed=True) for polygon in polygons)
            polygons = [polygon for polygon in coarser if len(polygon) > 2]
            tolerance *= 2
        return path


def drawing_size(pixels: NDArray[np.uint8]) -> tuple[int, int]:
    """Height and width at which an image is drawn: its longer side is `OVERLAY_SIDE`."""
    scale = OVERLAY_SIDE / max(pixels.shape)
    return max(1, round(pixels.shape[0] * scale)), max(1, round(pixels.shape[1] * scale))


def outlines_of(mask: NDArray[np.uint8], size: tuple[int, int]) -> list[Polygon]:
    """Outlines of a mask, holes included, in a drawing of `size` = (height, width).

    `mask` is uint8 [height, width] of the scan's own size, 0 or 255.
    """
    height, width = size
    method = cv2.INTER_AREA if max(mask.shape) > OVERLAY_SIDE else cv2.INTER_LINEAR
    # Smoothed and cut at the half, an outline follows the mask's edge without its stairs.
    smooth = cv2.resize(mask, (width, height), interpolation=method)
    contours, _ = cv2.findContours((smooth >= 128).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return [cv2.approxPolyDP(contour, 0.5, closed=True) for contour in contours]


def _subpath(polygon: Polygon) -> str:
    return "M" + " ".join(f"{x},{y}" for x, y in polygon[:, 0].tolist()) + "z"


def _encoded(kind: str, image: NDArray[np.uint8], options: tuple[int, int]) -> bytes:
    done, file = cv2.imencode(kind, image, options)
    if not done:
        raise RuntimeError(f"an image of {image.shape} could not be encoded as {kind}")
    content: bytes = file.tobytes()
    return content
