"""The C library's memory: kept between batches, and given back between files."""

from __future__ import annotations

import ctypes

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# A batch's request to Triton is one piece of 1 MiB, or 4 MiB with batches of 64.
_KEPT_PIECE_BYTES = 8 * 1024 * 1024
_KEPT_BYTES = 64 * 1024 * 1024
# A small image and all that is made of it is in smaller pieces; the pages of a larger one cost little beside decoding it.
_RETURNED_PIECE_BYTES = 1024 * 1024


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, up to 64 MiB, instead of giving it back and asking for it again at once.

    The kernel clears every page that it gives: for a batch of 16, building and serialising the request to Triton takes
    0.12 ms with memory that was kept, 2.3 ms with fresh memory. Other C libraries are left as they are.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, _KEPT_PIECE_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def return_freed_memory() -> None:
    """Have glibc give large pieces back to the kernel when they are freed, however many have been freed before.

    By itself it begins to keep them, in sizes of up to 32 MiB, as soon as the first one is freed.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, _RETURNED_PIECE_BYTES)
