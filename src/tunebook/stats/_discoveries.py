"""Many tests at once: which are significant while few of those that are called so are false."""

from __future__ import annotations

from collections.abc import Sequence


def adjusted(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for a false discovery rate, in the order given: those at most q are significant at rate q.

    The step-up procedure of Benjamini & Hochberg, "Controlling the false discovery rate", JRSS B 57(1), 1995: of the tests
    with an adjusted value of at most q, a share of at most q is false on average, for tests that are independent or
    positively dependent. The least p times m / rank over all ranks from a test's own on, and at most 1.
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise ValueError(f"{p} is not a p-value")
    count = len(p_values)
    found, least = [1.0] * count, 1.0
    for rank, place in zip(range(count, 0, -1), sorted(range(count), key=lambda i: -p_values[i]), strict=True):
        least = min(least, p_values[place] * (count / rank))
        found[place] = least
    return found
