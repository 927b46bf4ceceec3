"""In `tunebook show`: which tactic serves each problem, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunebook.cli._output import say
from tunebook.cli._tables import table
from tunebook.cli._text import clean

if TYPE_CHECKING:
    from tunebook.book.serving import Serving
    from tunebook.records import Verdict
    from tunebook.store import CacheContents, Pins, Run

_BY = {"pin": "by a pin", "cache": "by the cache", "default": "by the default, nothing else being known"}


def served_by(found: CacheContents | Run, pins: Pins) -> list[Serving]:
    """What serves each problem of a cache; a run serves none. Only where there are pins ops are asked what they offer."""
    from tunebook.book.serving import serving
    from tunebook.store import Run

    if isinstance(found, Run):
        return []
    if not pins.tactics:
        return serving(found.verdicts, found.plans.values(), pins)
    from tunebook.book.pinning import offers_today

    return serving(found.verdicts, found.plans.values(), pins, offers_today())


def documents(rows: Sequence[Serving], wanted: Container[str]) -> list[Any]:
    import msgspec

    return [msgspec.to_builtins(row) for row in rows if row.problem in wanted]


def say_serving(rows: Sequence[Serving], verdicts: Mapping[str, Verdict]) -> None:
    """How many problems serve by what, and each that is not simply served by the winner of its verdict."""
    from tunebook.book.serving import RULE

    if not rows:
        return
    counts: Counter[str] = Counter(row.by for row in {(row.problem, row.by): row for row in rows}.values())
    say(f"\nserved: {', '.join(f'{counts[by]} {words}' for by, words in _BY.items() if counts[by])}; {RULE}")
    others = [row for row in rows if row.by == "pin" or row.refused or _differs(row, verdicts)]
    columns = ("problem", "serves", "why", "winner")
    cells = [
        (
            clean(r.problem),
            clean(r.tactic),
            _why(r),
            clean(verdicts[r.problem].winner) if r.problem in verdicts else "-",
        )
        for r in others
    ]
    table("Served by another tactic than the winner, or by a pin", columns, cells)


def say_problem(rows: Sequence[Serving], problem: str) -> None:
    for row in rows:
        if row.problem == problem:
            say(f"serves: {clean(row.tactic)}, {_why(row)}")


def _differs(row: Serving, verdicts: Mapping[str, Verdict]) -> bool:
    """Whether the cache serves something else than the winner of its verdict; of what is not known the verdicts tell."""
    known = verdicts.get(row.problem)
    return row.by == "cache" and (known is None or known.winner != row.tactic)


def _why(row: Serving) -> str:
    """In words: by what, and what stood in the way of the pin that would go before it."""
    by = row.why if row.by == "pin" else f"{row.by}: {row.why}"
    model = f" for {row.model}" if row.model else ""
    refused = f"; not served: {row.refused}" if row.refused else ""
    return clean(f"{by}{model}{refused}")
