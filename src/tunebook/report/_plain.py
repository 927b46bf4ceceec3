"""A page of facts and tables alone: for what is not tunebook's own, of which there is nothing to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class PlainTable:
    """One section with a table. Columns that begin with ``>`` are figures; the rest are keys, and may be broken."""

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def plain_view(
    *,
    title: str,
    kind: str,
    answers: Sequence[str],
    sides: Sequence[tuple[str, Sequence[tuple[str, str]]]],
    warnings: Sequence[str],
    tables: Sequence[PlainTable],
) -> dict[str, Any]:
    """What the template is given. `sides` are lists of facts, each with its heading, empty where there is one alone."""
    return {
        "title": title,
        "kind": kind,
        "answers": answers,
        "sides": sides,
        "warnings": warnings,
        "tables": [table for table in tables if table.rows],
        "data": {"charts": [], "problems": [], "texts": []},
    }
