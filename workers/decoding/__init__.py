"""Bytes in, pixels out: one module for each family of file formats.

`decoder` has every file decoded in a `child` of the `pool`, which speaks a `protocol` with it and lives in a `sandbox`;
`image` reads JPEG and PNG, `dicom` reads DICOM; `scan`, `intensity` and `fit` bring what they read to the models' size
and scale.
"""

from workers.decoding.decoder import Decoder
from workers.decoding.scan import DecodedScan

__all__ = ["DecodedScan", "Decoder"]
