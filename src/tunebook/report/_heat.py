"""Heat maps: a value by shape, a table an op, coloured by how far it is from 1."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tunebook.records import Problem

#: From each of these ratios on a cell is a shade darker, and as much the other way below 1.
SHADES = (1.03, 1.15, 1.5, 2.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The value of one problem, None where it is not known. `target` is the row that tells more, `note` what to add to it."""

    problem: str
    value: float | None
    text: str
    target: str
    note: str = ""

    @property
    def shade(self) -> int:
        """0 for a value that is about 1; 1 to 5 above and -1 to -5 below."""
        if self.value is None:
            return 0
        shade = bisect_right(SHADES, max(self.value, 1 / self.value))
        return shade if self.value >= 1 else -shade


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """One op: families of shapes down, the sizes of one dimension across."""

    op: str
    across: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell | None]]] = field(default_factory=list)


def heat_maps(cells: Iterable[Cell]) -> list[HeatMap]:
    """A heat map for each op, in the order of their names.

    The dimension of which most sizes occur goes across; the attributes, dtypes and other dimensions name a row.
    """
    by_op: dict[str, list[tuple[Problem, Cell]]] = {}
    for cell in cells:
        problem = Problem.parse(cell.problem)
        by_op.setdefault(problem.op, []).append((problem, cell))
    return [_heat_map(op, by_op[op]) for op in sorted(by_op)]


def _heat_map(op: str, found: Sequence[tuple[Problem, Cell]]) -> HeatMap:
    sizes: dict[str, set[int]] = {}
    for problem, _ in found:
        for dim in problem.dims:
            sizes.setdefault(dim.name, set()).add(dim.size)
    across = max(sizes, key=lambda name: len(sizes[name]), default="")
    columns: dict[str, float] = {}
    rows: dict[str, dict[str, Cell]] = {}
    for problem, cell in found:
        column, place, row = _place(problem, across)
        columns[column] = place
        rows.setdefault(row, {})[column] = cell
    ordered = sorted(columns, key=lambda name: (columns[name], name))
    return HeatMap(
        op=op,
        across=across,
        columns=ordered,
        rows=[(row, [rows[row].get(column) for column in ordered]) for row in sorted(rows, key=_natural)],
    )


def _place(problem: Problem, across: str) -> tuple[str, float, str]:
    """The name of a problem's column, its place among the columns, and the name of its row."""
    column, place = "any", -math.inf
    rest = []
    for dim in problem.dims:
        if dim.name == across:
            column, place = str(dim), float(dim.size)
        else:
            rest.append(str(dim))
    _, attributes, dtypes = problem.family.split("|")
    policy = "" if problem.policy == "eager" else problem.policy
    return column, place, " ".join(part for part in (attributes, dtypes, *rest, policy) if part) or problem.op


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorts 64 before 512."""
    parts: list[tuple[int, str]] = []
    digits = ""
    for sign in [*text, ""]:
        if sign.isascii() and sign.isdigit():
            digits += sign
            continue
        if digits:
            parts.append((int(digits[:18]), ""))
            digits = ""
        parts.append((0, sign))
    return parts
