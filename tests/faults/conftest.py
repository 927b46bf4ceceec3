"""Fault scenarios: each test records its figures; they are printed at the end, one line a figure, and a missed one fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.append(str(BENCHMARKS))

from _faults import Figure  # noqa: E402 - found beside the benchmarks, which share the scenarios

_FIGURES: list[Figure] = []


@pytest.fixture
def record() -> Iterator[Callable[[Iterable[Figure]], None]]:
    """Keep figures for the summary; the test fails where one is not met."""
    mine: list[Figure] = []

    def keep(figures: Iterable[Figure]) -> None:
        mine.extend(figures)

    yield keep
    _FIGURES.extend(mine)
    missed = [f"{figure} (goal: {figure.goal})" for figure in mine if not figure.met]
    assert mine, "the scenario gave no figure"
    assert not missed, "; ".join(missed)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _FIGURES:
        terminalreporter.section("faults")
        for figure in sorted(_FIGURES, key=lambda figure: figure.name):
            terminalreporter.write_line(str(figure) + ("" if figure.met else f"   MISSED, goal: {figure.goal}"))
