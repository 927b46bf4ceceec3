"""Figures as people read them, with their units."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """``850 ns``, ``12.3 µs``, ``4.56 ms``, ``7.8 s``, ``3,600 s``"""
    for limit, factor, unit in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.1f} s" if seconds < 1000 else f"{seconds:,.0f} s"


def size(count: float) -> str:
    """``512 B``, ``1.5 MB``, ``2.75 GB`` (powers of ten)"""
    for limit, factor, unit in ((1e3, 1.0, "B"), (1e6, 1e3, "kB"), (1e9, 1e6, "MB")):
        if count < limit:
            return f"{count / factor:.3g} {unit}"
    return f"{count / 1e9:,.2f} GB"
