"""How the C library's allocator deals with memory that is freed."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_MMAP_THRESHOLD = 32 << 20  # that glibc takes


def keep_freed_memory() -> None:
    """Lets the process keep the memory that it frees, for its next step.

    Each step and each batch of an evaluation takes and frees the same megabytes. glibc would hand blocks of
    that size back to the system, which clears every page again when it is touched. Nothing changes where the
    C library is another one, or the user has settings of the allocator (`MALLOC_…`).
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
