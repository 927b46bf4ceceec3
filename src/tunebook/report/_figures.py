"""Figures with their units, and text out of files made fit to be shown."""

from __future__ import annotations

#: A space at which no line is broken.
HELD = "\u00a0"


def clean(text: object) -> str:
    """The text without control characters and those that turn the direction of writing; they are spelt out."""
    return "".join(c if c.isprintable() or c == HELD else c.encode("unicode_escape").decode() for c in str(text))


def times(value: float) -> str:
    """``1.84×``; large ratios with fewer digits."""
    return f"{value:.2f}×" if value < 100 else f"{value:.3g}×"


def interval(value: float, low: float, high: float) -> str:
    """``1.84× [1.79, 1.90]``, which may be broken before the bracket alone."""
    return f"{times(value)} [{times(low)[:-1]},{HELD}{times(high)[:-1]}]"


def duration(seconds: float) -> str:
    """``850 ns``, ``12.3 µs``, ``4.56 ms``, ``7.8 s``"""
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


def count(number: int, one: str, many: str = "") -> str:
    """``1 problem``, ``2 problems``"""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
