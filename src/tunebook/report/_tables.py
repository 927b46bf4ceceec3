"""The rows of the page's tables: problems, time by op, weights, environment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tunebook.book import measured
from tunebook.records import DEFAULT, Environment, Plan, Problem, Tactic, Verdict


@dataclass(frozen=True, kw_only=True)
class Row:
    """One problem, as the table of problems shows it; `anchor` is its row's."""

    anchor: str
    verdict: Verdict
    op: str
    runner: str
    result: str
    remark: str

    @property
    def measured(self) -> bool:
        return measured(self.verdict)


#: What a problem came to; the page filters by it.
RESULTS = ("faster", "no difference", "default kept", "left out")


def rows_of(verdicts: Iterable[Verdict], plans: Sequence[Plan]) -> list[Row]:
    """The rows in the order of the keys."""
    return [
        Row(
            anchor=f"p{number}",
            verdict=verdict,
            op=Problem.parse(verdict.problem).op,
            runner=Tactic.parse(verdict.winner).runner,
            result=result_of(verdict),
            remark=_remark(verdict, plans),
        )
        for number, verdict in enumerate(verdicts)
    ]


def result_of(verdict: Verdict) -> str:
    if not measured(verdict):
        return "left out"
    if verdict.winner == DEFAULT.name:
        return "default kept"
    return "faster" if verdict.low > 1 else "no difference"


def _remark(verdict: Verdict, plans: Sequence[Plan]) -> str:
    loss = verdict.status != "proven" and verdict.loss
    ended = [plan for plan in plans if verdict.problem in plan.reverted]
    parts = (
        f"ties with {len(verdict.ties)}" if verdict.ties else "",
        f"expected loss {math.expm1(min(verdict.loss, 5.0)):.1%}" if loss else "",
        f"saw {verdict.seen:,} of {verdict.space:,} tactics"
        if 0 < verdict.seen < verdict.space and "saw " not in verdict.note
        else "",
        f"{len(verdict.rejected)} rejected" if verdict.rejected else "",
        f"reverted in the plan: the model serves {ended[0].tactics.get(verdict.problem, DEFAULT.name)}"
        if ended
        else "",
        verdict.note,
    )
    return ", ".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What the problems of one op took to settle, and what became of them."""

    op: str
    problems: int
    faster: int
    seconds: float
    share: float
    rounds: int
    typical: float | None


def spent_of(rows: Sequence[Row]) -> list[Spent]:
    """By op, the dearest first; `typical` is the geometric mean of the speed-ups of what was measured."""
    total = sum(row.verdict.measured for row in rows)
    found = []
    for op in dict.fromkeys(row.op for row in rows):
        mine = [row for row in rows if row.op == op]
        logs = [math.log(row.verdict.speedup) for row in mine if row.measured]
        seconds = sum(row.verdict.measured for row in mine)
        found.append(
            Spent(
                op=op,
                problems=len(mine),
                faster=sum(row.result == "faster" for row in mine),
                seconds=seconds,
                share=seconds / total if total > 0 else 0.0,
                rounds=sum(row.verdict.rounds for row in mine),
                typical=math.exp(sum(logs) / len(logs)) if logs else None,
            )
        )
    return sorted(found, key=lambda spent: -spent.seconds)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One layout of one family in a plan."""

    family: str
    layers: int
    layout: str
    bytes: int
    buys: float | None
    released: int
    numerics: str


def weights_of(plan: Plan) -> list[Weights]:
    """A row a layout; what its family releases stands in the family's first row."""
    return [
        Weights(
            family=held.family,
            layers=held.layers,
            layout=name or "the model's own",
            bytes=count,
            buys=held.buys.get(name),
            released=held.released if first else 0,
            numerics=held.numerics,
        )
        for held in plan.holdings
        for first, (name, count) in _firsts(held.layouts.items() or [("", 0)])
    ]


def _firsts(items: Iterable[tuple[str, int]]) -> Iterable[tuple[bool, tuple[str, int]]]:
    return ((place == 0, item) for place, item in enumerate(items))


def fields_of(environment: Environment | None) -> list[tuple[str, str, str]]:
    """Name, value, and what a field is for."""
    if environment is None:
        return []
    return [(name, value, "the machine") for name, value in environment.hard.items()] + [
        (name, value, "recorded") for name, value in environment.soft.items()
    ]
