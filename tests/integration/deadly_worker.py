"""A worker that some scans kill, as a fault in a native decoder would: `python -m tests.integration.deadly_worker`.

No real file is known to do this, so its decoder is told to: a scan that begins with `DEADLY` kills the process.
"""

from __future__ import annotations

import os
import signal

from workers.cli import LOG_FORMAT
from workers.decoding import DecodedScan, Decoder
from workers.service import run_worker
from workers.settings import load_settings

DEADLY = b"DEADLY"


def main() -> None:
    """Work until told to stop, or dead."""
    import logging

    decode = Decoder.decode

    def deadly(self: Decoder, data: bytes) -> DecodedScan:
        if data.startswith(DEADLY):
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(self, data)

    Decoder.decode = deadly  # type: ignore[method-assign]
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    run_worker(load_settings())


if __name__ == "__main__":
    main()
