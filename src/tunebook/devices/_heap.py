"""Freed memory of the process, given back to the system."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def give_back() -> None:
    """Give the pages of freed blocks back to the system, where the C library can be asked to (glibc's ``malloc_trim``).

    By itself glibc keeps blocks of up to 32 MiB for the next allocation, as long as a block above them lives. Weights that
    were packed expert by expert leave gigabytes behind like that, which the process then takes beside all that follows.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; TypeError: Windows has no process-wide handle
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim
