"""Ratios and counts in words, and text out of files made fit to be shown."""

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


def count(number: int, one: str, many: str = "") -> str:
    """``1 problem``, ``2 problems``"""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
