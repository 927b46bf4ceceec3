"""The report of `tunebook diff`, on the terminal and as Markdown: the same sections in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunebook._figures import duration
from tunebook.cli._output import interval, say
from tunebook.cli._tables import table
from tunebook.cli._text import clean, markdown

if TYPE_CHECKING:
    from tunebook.book import Change, Diff, Side
    from tunebook.book.confirm import Confirmation

#: So many changes are shown; `--json` has all.
SHOWN = 20
#: So many problems of a list are named.
NAMED = 3
COMMIT = 10


@dataclass
class _Section:
    """A heading with lines and perhaps a table under it. Cells under a column of `code` are names out of files."""

    title: str = ""
    lines: list[str] = field(default_factory=list)
    columns: Sequence[str] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    code: Sequence[int] = (0,)


def print_text(found: Diff, settled: Sequence[Confirmation] | None, different: Sequence[str]) -> None:
    for section in _sections(found, settled, different):
        for line in section.lines:
            say(line)
        table(section.title, section.columns, [tuple(clean(cell) for cell in row) for row in section.rows])


def as_markdown(found: Diff, settled: Sequence[Confirmation] | None, different: Sequence[str]) -> str:
    """GitHub's Markdown, the answer first."""
    *sections, verdict = _sections(found, settled, different)
    parts = [f"**{_plain(verdict.lines[-1])}**"]
    for section in sections:
        if section.rows:
            parts.append(f"#### {_plain(section.title)}")
        parts += [_plain(line) for line in section.lines]
        if section.rows:
            names = [column.lstrip(">") for column in section.columns]
            marks = ["---:" if column.startswith(">") else "---" for column in section.columns]
            cells = [
                [markdown(cell) if i in section.code else _plain(cell) for i, cell in enumerate(row)]
                for row in section.rows
            ]
            parts.append("\n".join("| " + " | ".join(row) + " |" for row in (names, marks, *cells)))
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """Text of a report between code spans: nothing in it is markup."""
    shown = clean(text)
    for sign in "\\`*_[]<>|#":
        shown = shown.replace(sign, f"\\{sign}")
    return shown


def _sections(found: Diff, settled: Sequence[Confirmation] | None, different: Sequence[str]) -> list[_Section]:
    return [
        _Section(lines=[f"A: {_side(found.before)}", f"B: {_side(found.after)}", *_unreadable(found), _noise(found)]),
        _environment(found),
        _changes(found),
        _missing(found),
        _tactics(found),
        _phases(found),
        _confirmed(settled or ()),
        _verdict(found, settled, different),
    ]


def _side(side: Side) -> str:
    commit = side.commit[:COMMIT] + ("+" if side.dirty else "")
    facts = (side.model, side.policy, side.started.replace("T", " "), commit and f"commit {commit}", side.note)
    return clean(
        f"{side.kind} {side.path} ({', '.join(part for part in (*facts, f'{side.problems} problems') if part)})"
    )


def _unreadable(found: Diff) -> list[str]:
    sides = (("A", found.before), ("B", found.after))
    return [f"{name}: {side.unreadable} entries cannot be read; `tunebook show` names them"
            for name, side in sides if side.unreadable]  # fmt: skip


def _noise(found: Diff) -> str:
    between = found.between
    if between.restarts:
        return f"noise between runs: {between.deviation:.1%}, from {between.restarts} restarts of the same code"
    return (
        f"noise between runs: {between.deviation:.0%} are assumed, there are too few restarts of the same code to tell"
    )


def _environment(found: Diff) -> _Section:
    section = _Section(title="Environment and versions that differ", columns=("field", "A", "B"), code=(0, 1, 2))
    section.rows = [(f.name, f.before, f.after) for f in found.fields]
    if not found.comparable:
        section.lines.append("made on different machines: a change may be the machine's and not the code's")
    return section


def _changes(found: Diff) -> _Section:
    shown = [change for change in found.changes if change.significant or change.flipped][:SHOWN]
    section = _Section(
        columns=("problem", "A", "B", ">A over default", ">B over default", ">B over A", ">q", "remark"), code=(0, 1, 2)
    )
    count = len(found.changes)
    flips, real = len(found.flipped), len(found.significant)
    section.lines.append(
        f"{count} problems in both: {real} differ (a false discovery rate of 5 %), {flips} winners flipped"
    )
    section.title = "Changes, the surest first: speed-ups are over the default of the same run"
    if len(shown) < len({c.problem for c in (*found.significant, *found.flipped)}):
        section.title += f" (the first {len(shown)}; --json has all)"
    section.rows = [
        (
            change.problem,
            change.before.winner,
            change.after.winner,
            interval(change.before.speedup, change.before.low, change.before.high),
            interval(change.after.speedup, change.after.low, change.after.high),
            interval(change.ratio, change.low, change.high),
            f"{change.q:.2g}",
            _remark(change),
        )
        for change in shown
    ]
    return section


def _remark(change: Change) -> str:
    parts = ["different" if change.significant else ""]
    if change.default_changed:
        parts.append("the default is another one")
    if not 1 / 1.1 < change.default_ratio < 1.1:
        before, after = duration(change.before.default_s), duration(change.after.default_s)
        parts.append(f"default {before} → {after}")
    return ", ".join(part for part in parts if part)


def _missing(found: Diff) -> _Section:
    section = _Section()
    for what, keys in (
        ("only in A", found.only_before),
        ("only in B", found.only_after),
        ("left out by a budget, not compared", found.unmeasured),
    ):
        if keys:
            more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
            section.lines.append(clean(f"{what}: {len(keys)} problems: {', '.join(keys[:NAMED])}{more}"))
    if found.default_ratio is not None:
        middle, least, greatest = found.default_ratio
        section.lines.append(
            f"the defaults themselves took {middle:.2f} times as long in B ({least:.2f} to {greatest:.2f}); "
            "that is no part of any change"
        )
    return section


def _tactics(found: Diff) -> _Section:
    section = _Section(
        title="Tactics and runners", columns=("what", "name", ">problems", "first", "detail"), code=(1, 3)
    )
    section.rows = [(t.what, t.tactic, str(t.count), t.problems[0], t.detail) for t in found.turns[:SHOWN]]
    if len(found.turns) > SHOWN:
        section.title += f" (the first {SHOWN} of {len(found.turns)})"
    return section


def _phases(found: Diff) -> _Section:
    section = _Section(
        title="What the changes are expected to make of a step of the model",
        columns=("phase", ">B over A", ">compared share", ">A, whole model", ">B, whole model"),
    )
    section.rows = [
        (
            phase.phase,
            interval(phase.ratio, phase.low, phase.high),
            f"{phase.share:.0%}",
            interval(*phase.before) if phase.before else "-",
            interval(*phase.after) if phase.after else "-",
        )
        for phase in found.phases
    ]
    return section


def _confirmed(settled: Sequence[Confirmation]) -> _Section:
    section = _Section(
        title="Raced now", columns=("problem", "outcome", ">B over A", ">q", ">rounds", "detail"), code=(0,)
    )
    order = ("different", "not settled", "same", "not raced")
    section.rows = [
        (
            one.problem,
            one.outcome,
            interval(one.ratio, one.low, one.high) if one.by and one.p > 0 else "-",
            f"{one.q:.2g}" if one.by else "-",
            str(one.rounds or "-"),
            one.detail,
        )
        for one in sorted(settled, key=lambda one: (order.index(one.outcome), one.q, one.problem))
    ]
    return section


def _verdict(found: Diff, settled: Sequence[Confirmation] | None, different: Sequence[str]) -> _Section:
    if not different:
        return _Section(lines=["", "no significant difference" + (", by racing now" if settled else "")])
    more = f" and {len(different) - NAMED} more" if len(different) > NAMED else ""
    named = clean(", ".join(different[:NAMED]))
    by = ", by racing now" if settled else ""
    return _Section(lines=["", f"different{by}: {len(different)} of {len(found.changes)} problems: {named}{more}"])
