"""Merging two caches or runs into a third: of two winners on one problem the better supported one is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunebook.book._source import Source
from tunebook.errors import StoreError
from tunebook.records import DEFAULT, Environment, Plan, Record, Verdict
from tunebook.store import MAX_CACHE_BYTES, better_supported
from tunebook.store._text import one_line
from tunebook.store.cache import describe_differences, encode_document

Letter = Literal["A", "B"]
#: So many runners whose versions differ are named.
NAMED = 3
_LATER = "it counts as the later one"


class Conflict(Record, frozen=True, kw_only=True, omit_defaults=False):
    """A problem on which the two sides differ: the winner that was kept, the one that gave way (perhaps the same), and why."""

    problem: str
    kept: Letter
    winner: str
    instead: str
    why: str


class PlanConflict(Record, frozen=True, kw_only=True, omit_defaults=False):
    """A model for which the two sides have different plans."""

    model: str
    fingerprint: str
    kept: Letter
    why: str


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What two sides hold together. `only_a` and `only_b` are problems that one side alone has, `equal` those alike in both."""

    environment: Environment
    verdicts: Mapping[str, Verdict]
    plans: Mapping[str, Plan]
    only_a: int
    only_b: int
    equal: int
    conflicts: tuple[Conflict, ...]
    plan_conflicts: tuple[PlanConflict, ...]

    def of(self, side: Letter) -> int:
        """How many winners come from that side, those that are equal in both apart."""
        kept = sum(conflict.kept == side for conflict in self.conflicts)
        return kept + (self.only_a if side == "A" else self.only_b)

    def document(self, path: Path) -> bytes:
        """The bytes of a cache. Raises StoreError, which names `path`, where they are more than a cache may have."""
        data = encode_document(self.environment, dict(self.verdicts), dict(self.plans))
        if len(data) > MAX_CACHE_BYTES:
            raise StoreError(
                f"{one_line(path)} is not written: it would be {len(data)} bytes, more than the {MAX_CACHE_BYTES} that are read"
            )
        return data


def merge(a: Source, b: Source) -> Merged:
    """Put two sides together.

    Of two verdicts on one problem the better supported stays, by the rule by which results of several processes share a cache:
    about the same runners, versions and tactics a better status does, then more tactics tried, then more rounds. Where neither is
    better supported B's stays, which counts as the later one; but what was left out without being measured never replaces what
    was. Raises StoreError, with each hard field that differs, for sides of different environments.
    """
    if (differences := describe_differences(a.environment, b.environment)) is not None:
        fields = differences.partition(": ")[2]
        raise StoreError(
            f"{one_line(a.path)} and {one_line(b.path)} are of different environments (A ≠ B): {fields}; what is fastest in one "
            "says nothing about the other, so they stay two files"
        )
    verdicts: dict[str, Verdict] = {}
    conflicts: list[Conflict] = []
    equal = 0
    for key in sorted({*a.verdicts, *b.verdicts}):
        one, other = a.verdicts.get(key), b.verdicts.get(key)
        if one is None or other is None or one == other:
            found = other or one
            assert found is not None
            verdicts[key] = found
            equal += one == other
            continue
        kept, why = judge(one, other)
        verdicts[key], instead = (one, other) if kept == "A" else (other, one)
        conflicts.append(Conflict(problem=key, kept=kept, winner=verdicts[key].winner, instead=instead.winner, why=why))
    plans, plan_conflicts = _plans(a.plans, b.plans, verdicts)
    return Merged(
        environment=Environment(hard=b.environment.hard, soft=b.environment.soft),
        verdicts=verdicts,
        plans=plans,
        only_a=len(a.verdicts.keys() - b.verdicts.keys()),
        only_b=len(b.verdicts.keys() - a.verdicts.keys()),
        equal=equal,
        conflicts=tuple(conflicts),
        plan_conflicts=plan_conflicts,
    )


def judge(a: Verdict, b: Verdict) -> tuple[Letter, str]:
    """Which of two different verdicts on one problem is kept, and why."""
    if bool(a.rounds) != bool(b.rounds):
        return "A" if a.rounds else "B", "the other was not measured"
    if better_supported(a, b):
        return "A", _more(a, b)
    if better_supported(b, a):
        return "B", _more(b, a)
    if a.offered != b.offered:
        return "B", f"{_offers(a, b)}; {_LATER}"
    return "B", f"as well supported; {_LATER}"


def _more(kept: Verdict, other: Verdict) -> str:
    """What a better supported verdict has more of."""
    if kept.status != other.status:
        return f"{kept.status}, the other is {other.status}"
    if kept.seen > other.seen:
        return f"{kept.seen} tactics tried, the other {other.seen}"
    return f"{kept.rounds} rounds, the other {other.rounds}"


def _offers(a: Verdict, b: Verdict) -> str:
    """In which runners two verdicts are about different things."""
    names = [name for name in sorted({*a.offered, *b.offered}) if a.offered.get(name) != b.offered.get(name)]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"what was offered differs: {', '.join(names[:NAMED])}{more}"


def _plans(
    a: Mapping[str, Plan], b: Mapping[str, Plan], verdicts: Mapping[str, Verdict]
) -> tuple[dict[str, Plan], tuple[PlanConflict, ...]]:
    """Of two plans for one model the one that fits the verdicts that were kept, then one that was verified, then B's."""
    plans: dict[str, Plan] = {}
    conflicts: list[PlanConflict] = []
    for key in sorted({*a, *b}):
        one, other = a.get(key), b.get(key)
        if one is None or other is None or one == other:
            found = other or one
            assert found is not None
            plans[key] = found
            continue
        kept: Letter = "B"
        why = _LATER
        for told, (mine, theirs) in {
            "its tactics are those of the winners that were kept": (_fits(one, verdicts), _fits(other, verdicts)),
            "it was compared with the default on the whole model": (one.verified, other.verified),
        }.items():
            if mine != theirs:
                kept, why = ("A" if mine else "B"), told
                break
        plans[key] = one if kept == "A" else other
        conflicts.append(PlanConflict(model=plans[key].model, fingerprint=key, kept=kept, why=why))
    return plans, tuple(conflicts)


def _fits(plan: Plan, verdicts: Mapping[str, Verdict]) -> bool:
    """Whether each tactic of a plan is one that the verdict of its problem names."""
    return all(
        name == DEFAULT.name or (key in verdicts and name in {member.tactic for member in verdicts[key].frontier})
        for key, name in plan.tactics.items()
    )
