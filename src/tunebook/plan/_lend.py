"""Tactics of one size lent to another: where original weights are released, something must serve what was not measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from tunebook.ops import OpSpec, Runner
from tunebook.records import Member, Problem, Tactic, Verdict

#: Rejections that speak against all tactics of a runner for a problem.
_WRONG = ("correctness", "runtime", "compile", "crash")


def distance(one: Problem, other: Problem) -> float:
    """How far two sizes of a family are apart, on a logarithmic scale."""
    return sum(abs(math.log(max(a.size, 1) / max(b.size, 1))) for a, b in zip(one.dims, other.dims, strict=True))


class Lender:
    """Finds what other sizes' tactics could serve a problem: of runners that promise to serve every shape, or equal bits.

    Nothing is promised for what was not measured: a lent tactic is taken to be no faster than the default, and as slow as
    its layout is on the worst size that is known.
    """

    def __init__(
        self,
        members: Mapping[str, tuple[Member, ...]],
        verdicts: Mapping[str, Verdict],
        specs: Mapping[str, OpSpec],
    ) -> None:
        self._members, self._verdicts, self._specs = members, verdicts, specs
        self._problems = {key: Problem.parse(key) for key in members}
        self._families: dict[str, list[str]] = {}
        for key, problem in self._problems.items():
            self._families.setdefault(problem.family, []).append(key)

    def to(self, key: str) -> tuple[Member, ...]:
        """The nearest size's member of each layout, and class of equal bits, for which this problem has none of its own."""
        problem, verdict = self._problems[key], self._verdicts[key]
        own = {self._kind(key, member) for member in self._members[key]}
        found: dict[tuple[str, str], tuple[float, str, Member]] = {}
        worst: dict[str, float] = {}
        for donor in self._families[problem.family]:
            for member in self._members[donor] if donor != key else ():
                runner = self._runner(donor, member)
                if runner is None or not (runner.restore or runner.bits):
                    continue
                relative = member.ratio / self._verdicts[donor].speedup
                worst[member.layout] = max(worst.get(member.layout, 1.0), relative)
                kind = self._kind(donor, member)
                near = (distance(problem, self._problems[donor]), donor, member)
                if kind not in own and near < found.get(kind, (math.inf,)) and _fits(runner, member, problem, verdict):
                    found[kind] = near
        return tuple(_lent(member, worst[member.layout] * verdict.speedup) for _, _, member in found.values())

    def numerics(self, key: str, members: Iterable[Member]) -> dict[str, str]:
        """By tactic, what gives equal bits whatever the batch."""
        found = {}
        for member in members:
            runner = self._runner(key, member)
            name = runner.numerics(Tactic.parse(member.tactic)) if runner is not None else None
            if name is not None:
                found[member.tactic] = name
        return found

    def _kind(self, key: str, member: Member) -> tuple[str, str]:
        return member.layout, self.numerics(key, (member,)).get(member.tactic, "")

    def _runner(self, key: str, member: Member) -> Runner | None:
        spec = self._specs.get(self._problems[key].op)
        return spec.runner_of(Tactic.parse(member.tactic)) if spec is not None else None


def _fits(runner: Runner, member: Member, problem: Problem, verdict: Verdict) -> bool:
    """Whether a tactic may serve a problem that it was not measured on: nothing there spoke against it."""
    tactic = Tactic.parse(member.tactic)
    for rejected in verdict.rejected:
        if rejected.tactic == member.tactic:
            return False
        if rejected.reason in _WRONG and Tactic.parse(rejected.tactic).runner == tactic.runner:
            return False
    return runner.refusal(tactic, problem) is None


def _lent(member: Member, ratio: float) -> Member:
    return Member(tactic=member.tactic, ratio=ratio, low=ratio, high=ratio, bytes=member.bytes, layout=member.layout)
