"""Two runs or caches as the page compares them: what changed, whether it is real, and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunebook._figures import duration
from tunebook.book import Change, Diff, Side
from tunebook.records import Problem
from tunebook.report._charts import MOST_BARS, change_bars
from tunebook.report._figures import count, times
from tunebook.report._heat import Cell, heat_maps


@dataclass(frozen=True, kw_only=True)
class ChangeRow:
    """One problem that both sides have, as the table of changes shows it."""

    anchor: str
    change: Change
    op: str
    result: str
    remark: str


#: What became of a problem; the page filters by it.
RESULTS = ("better", "worse", "not shown")


def comparison_page(found: Diff) -> dict[str, Any]:
    """What the template of a comparison is given."""
    rows = [
        ChangeRow(
            anchor=f"p{number}",
            change=change,
            op=Problem.parse(change.problem).op,
            result=_result(change),
            remark=_remark(change),
        )
        for number, change in enumerate(found.changes)
    ]
    between = found.between
    return {
        "title": " and ".join(dict.fromkeys(side.model or side.kind for side in (found.before, found.after))),
        "sides": [_facts(side) for side in (found.before, found.after)],
        "answers": _answers(found),
        "warnings": _warnings(found),
        "found": found,
        "rows": rows,
        "ops": sorted({row.op for row in rows}),
        "results": [result for result in RESULTS if any(row.result == result for row in rows)],
        "maps": heat_maps(_cell(row) for row in rows),
        "noise": (
            f"{between.deviation:.1%} between runs, from {between.restarts} restarts of the same code"
            if between.restarts
            else f"{between.deviation:.0%} between runs are assumed: there are too few restarts of the same code to tell"
        ),
        "most_bars": MOST_BARS,
        "data": {"charts": [change_bars(found.changes)] if rows else [], "problems": [], "texts": []},
    }


def _result(change: Change) -> str:
    if not change.significant:
        return "not shown"
    return "better" if change.ratio > 1 else "worse"


def _remark(change: Change) -> str:
    moved = not 1 / 1.1 < change.default_ratio < 1.1
    parts = (
        "another winner" if change.flipped else "",
        "the default is another one" if change.default_changed else "",
        f"default {duration(change.before.default_s)} → {duration(change.after.default_s)}" if moved else "",
    )
    return ", ".join(part for part in parts if part)


def _facts(side: Side) -> list[tuple[str, str]]:
    commit = side.commit[:12] + (" (with changes that are not committed)" if side.dirty else "")
    facts = (
        ("File", side.path),
        ("Kind", side.kind),
        ("Model", side.model),
        ("Started", side.started.replace("T", " ")),
        ("Policy", side.policy),
        ("Problems", f"{side.problems:,}"),
        ("Commit", commit),
        ("Note", side.note),
    )
    return [(what, value) for what, value in facts if value]


def _answers(found: Diff) -> list[str]:
    real, total = len(found.significant), len(found.changes)
    if not total:
        return ["The two have no measured problem in common."]
    if not real:
        first = f"No significant difference in {count(total, 'problem')}."
    else:
        worse = sum(change.ratio < 1 for change in found.significant)
        first = f"{real} of {count(total, 'problem')} differ: {real - worse} better in B, {worse} worse."
    flips = len(found.flipped)
    second = f"{count(flips, 'winner')} flipped; the false discovery rate is held at 5 %."
    phases = [phase for phase in found.phases if not phase.low <= 1 <= phase.high]
    expected = [f"A step of {phase.phase} is expected to be {times(phase.ratio)} as fast with B's choices as with A's."
                for phase in phases]  # fmt: skip
    return [first, second, *expected]


def _warnings(found: Diff) -> list[str]:
    warnings = []
    if not found.comparable:
        warnings.append("Made on different machines: a change may be the machine's and not the code's.")
    for name, side in (("A", found.before), ("B", found.after)):
        if side.unreadable:
            warnings.append(f"{count(side.unreadable, 'entry', 'entries')} of {name} cannot be read.")
    for what, keys in _lists(found):
        warnings.append(f"{what}: {count(len(keys), 'problem')}.")
    return warnings


def _lists(found: Diff) -> list[tuple[str, Sequence[str]]]:
    lists = (
        ("Only in A", found.only_before),
        ("Only in B", found.only_after),
        ("Left out by a budget and not compared", found.unmeasured),
    )
    return [(what, keys) for what, keys in lists if keys]


def _cell(row: ChangeRow) -> Cell:
    change = row.change
    return Cell(
        problem=change.problem,
        value=change.ratio if change.significant else 1.0,
        text=f"{change.ratio:.2f}",
        target=row.anchor,
        note="" if change.significant else "not shown",
    )
