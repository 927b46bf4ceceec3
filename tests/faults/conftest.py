"""Fault scenarios: each test records its figures, which are printed at the end; a missed one fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.append(str(BENCHMARKS))

from _faults import Figure  # noqa: E402 - found beside the benchmarks, which share the scenarios


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Iterator[Callable[[Iterable[Figure]], None]]:
    """Keep figures for the summary, in the test's report; the test fails where one is not met."""
    mine: list[Figure] = []

    def keep(figures: Iterable[Figure]) -> None:
        for figure in figures:
            mine.append(figure)
            record_property("figure", str(figure) + ("" if figure.met else f"   MISSED, goal: {figure.goal}"))

    yield keep
    missed = [f"{figure} (goal: {figure.goal})" for figure in mine if not figure.met]
    assert mine, "the scenario gave no figure"
    assert not missed, "; ".join(missed)
