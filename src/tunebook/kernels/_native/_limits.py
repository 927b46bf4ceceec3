"""What the machine does at most, by the kernels' own instructions."""

from __future__ import annotations

from tunebook.kernels._native import _native
from tunebook.kernels._native._weights import Weights


def read_bandwidth(weights: Weights, *, ahead: int, threads: int) -> float:
    """Bytes a second of reading packed weights once, with `ahead` bytes prefetched (0: none).

    Raises:
        ValueError: for a view.
    """
    return _native.read_bandwidth(weights.native, ahead, threads)


def multiply_peak(isa: str, *, threads: int) -> float:
    """Floating-point operations a second of the fastest multiplication of an instruction set, on registers alone.

    Raises:
        ValueError: an instruction set that is not usable here.
    """
    return _native.multiply_peak(isa, threads)
