"""A scan with the outline of its mask: as an image file, and as the parts that a web page draws itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# Twice what the models see, so that a line two pixels wide hides no more than one of their pixels.
OVERLAY_SIDE = 512
# BGR. A yellow that no gray can hide, in a dark casing that keeps it apart from white.
_LINE, _CASING = (40, 210, 255), (0, 0, 0)
_LINE_WIDTH, _CASING_WIDTH = 2, 5
# At 256 x 256 about 9 KB a scan, without artefacts that a person would take for tissue.
_SCAN_JPEG = (cv2.IMWRITE_JPEG_QUALITY, 82)
# At 512 x 512 about 40 KB, in 1 ms where a PNG takes 17 ms and 140 KB. Full colour resolution, for the thin line.
_OVERLAY_JPEG = (
    *(cv2.IMWRITE_JPEG_QUALITY, 92),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
)
# A real outline has 300 to 2,000 characters. A mask made of noise is drawn coarsely, or a page of them had 100 MB.
_LONGEST_PATH = 8_000

# int32 in fact; OpenCV's own annotations don't tell.
Polygon = NDArray[Any]


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

    def overlay_jpeg(self) -> bytes:
        """The scan with its outline, anti-aliased, of `size`, in colour."""
        height, width = self.size
        gray = cv2.resize(self.pixels, (width, height), interpolation=cv2.INTER_CUBIC)
        drawing = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
        for colour, line_width in ((_CASING, _CASING_WIDTH), (_LINE, _LINE_WIDTH)):
            cv2.polylines(
                drawing, self.outlines, isClosed=True, color=colour, thickness=line_width, lineType=cv2.LINE_AA
            )
        return _jpeg(drawing, _OVERLAY_JPEG)

    def scan_jpeg(self) -> bytes:
        """The scan alone, as the models see it, gray."""
        return _jpeg(self.pixels, _SCAN_JPEG)

    def svg_path(self) -> str:
        """The outlines as the `d` of an SVG path in the drawing's coordinates; empty where there are none."""
        polygons, tolerance = self.outlines, 2.0
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
    # A mask comes from 256 x 256 decisions, so each of them is two pixels wide here: none is lost.
    drawn = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    contours, _ = cv2.findContours(drawn, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    # Half a decision: takes the stairs off slanted edges.
    return [cv2.approxPolyDP(contour, 1.0, closed=True) for contour in contours]


def _subpath(polygon: Polygon) -> str:
    return "M" + " ".join(f"{x},{y}" for x, y in polygon[:, 0].tolist()) + "z"


def _jpeg(image: NDArray[Any], options: tuple[int, ...]) -> bytes:
    done, file = cv2.imencode(".jpg", image, options)
    if not done:
        raise RuntimeError(f"an image of {image.shape} could not be encoded")
    content: bytes = file.tobytes()
    return content
