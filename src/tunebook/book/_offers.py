"""What else differs: environments and versions field by field, and the tactics that are new, gone or refused."""

from __future__ import annotations

from collections.abc import Iterable

from tunebook.book._source import Source
from tunebook.records import Record, Rejected, Tactic

#: So many problems of one difference are named.
NAMED = 3


class Field(Record, frozen=True, kw_only=True):
    """A fact that differs; a `hard` one means that timings of the two sides are of different machines."""

    name: str
    before: str
    after: str
    hard: bool = False


class Turn(Record, frozen=True, kw_only=True):
    """What happened to a tactic or a runner, on which problems.

    `what` is "newly rejected", "no longer rejected", "newly offered", "no longer offered", or "another version". `detail` is
    the reason of the rejection, or the two versions; `problems` names the first few of `count`.
    """

    what: str
    tactic: str
    detail: str
    count: int
    problems: tuple[str, ...]


def fields_of(before: Source, after: Source) -> tuple[Field, ...]:
    """Every field of environments and headers in which the sides differ, the hard ones first."""
    found = [
        Field(name=name, before=one.get(name, "-"), after=other.get(name, "-"), hard=hard)
        for hard, one, other in (
            (True, before.environment.hard, after.environment.hard),
            (False, before.environment.soft, after.environment.soft),
        )
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    ]
    if before.header is not None and after.header is not None:
        for name in ("model", "policy", "version", "commit", "dirty", "note"):
            one_value, other_value = getattr(before.header, name), getattr(after.header, name)
            if one_value != other_value:
                found.append(Field(name=f"run {name}", before=_shown(one_value), after=_shown(other_value)))
    return tuple(found)


def turns_of(before: Source, after: Source, problems: Iterable[str]) -> tuple[Turn, ...]:
    """What happened to tactics and runners on the problems that both sides have, one entry for all problems alike."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for problem in problems:
        for turn in _turns(before, after, problem):
            found.setdefault(turn, []).append(problem)
    turns = [
        Turn(what=what, tactic=tactic, detail=detail, count=len(keys), problems=tuple(keys[:NAMED]))
        for (what, tactic, detail), keys in found.items()
    ]
    return tuple(sorted(turns, key=lambda t: (_ORDER.index(t.what), -t.count, t.tactic, t.detail)))


_ORDER = ("newly rejected", "no longer rejected", "newly offered", "no longer offered", "another version")


def _turns(before: Source, after: Source, problem: str) -> Iterable[tuple[str, str, str]]:
    refused, refused_now = before.rejected(problem), after.rejected(problem)
    offered, offered_now = before.verdicts[problem].offered, after.verdicts[problem].offered
    for name, rejected in refused_now.items():
        if name not in refused and _runner(name) in offered:
            yield "newly rejected", name, _reason(rejected)
    for name, rejected in refused.items():
        if name not in refused_now and _runner(name) in offered_now:
            yield "no longer rejected", name, _reason(rejected)
    for name in sorted({*offered, *offered_now}):
        one, other = offered.get(name), offered_now.get(name)
        if one is None:
            yield "newly offered", name, ""
        elif other is None:
            yield "no longer offered", name, ""
        elif one.version != other.version:
            yield "another version", name, f"{one.version} ≠ {other.version}"
        elif one.space != other.space:
            tried, tried_now = before.tried(problem), after.tried(problem)
            for tactic in sorted(tried_now - tried):
                if _runner(tactic) == name:
                    yield "newly offered", tactic, ""
            for tactic in sorted(tried - tried_now):
                if _runner(tactic) == name:
                    yield "no longer offered", tactic, ""


def _reason(rejected: Rejected) -> str:
    return f"{rejected.reason}: {rejected.detail}" if rejected.detail else rejected.reason


def _runner(tactic: str) -> str:
    return Tactic.parse(tactic).runner


def _shown(value: str | bool | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else value or "-"
