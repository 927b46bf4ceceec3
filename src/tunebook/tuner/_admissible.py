"""What of a file may serve: only a problem that the op can have, numbers that can be reckoned with, tactics that it offers."""

from __future__ import annotations

from collections.abc import Mapping

from tunebook.ops import OpSpec, Runner
from tunebook.records import DEFAULT, Member, Problem, Tactic, Verdict

#: Times that differ by more than this factor are no measurements; with less, sums and products stay ordinary numbers.
_LARGEST_RATIO = 1e9
#: The longest call, in seconds.
_LONGEST_CALL_S = 1e6
#: The most that one layer's prepared weights may be said to take, in bytes: 256 TiB.
_LARGEST_WEIGHTS = 1 << 48


def foreign(problem: Problem, spec: OpSpec) -> str | None:
    """Why no call of the op as it is declared here can be this problem, or None."""
    for dim in problem.dims:
        rule = spec.shape.by_name.get(dim.name)
        if rule is None:
            return f"the op has no dimension {dim.name}"
        if (dim.rounding, dim.rule) != (rule.rounding, rule.rule):
            return f"dimension {dim.name} is rounded {rule.rounding} by {rule.rule} here"
    return None


def incredible(verdict: Verdict) -> str | None:
    """Why a verdict's numbers are none of a measurement, or None."""
    bounds = (verdict.low, verdict.high, *(ratio for member in verdict.frontier for ratio in (member.low, member.high)))
    if min(bounds) * _LARGEST_RATIO < 1 or max(bounds) > _LARGEST_RATIO:
        return "one of its ratios is beyond all measure"
    if verdict.seconds > _LONGEST_CALL_S:
        return "a call is said to take longer than any does"
    if any(member.bytes > _LARGEST_WEIGHTS for member in verdict.frontier):
        return "a member of its frontier takes more memory than there is"
    return None


def not_offered(tactic: Tactic, problem: Problem, spec: OpSpec, runners: Mapping[str, Runner]) -> str | None:
    """Why the op, with these `runners` available, does not offer a tactic for a problem today, or None."""
    if tactic == DEFAULT:
        return None
    runner = runners.get(tactic.runner)
    if runner is None:
        known = spec.runners.get(tactic.runner)
        why = known.requirement.reason() if known else None
        return f"runner {tactic.runner} is not available: {why}" if why else f"runner {tactic.runner} is not offered"
    if not runner.offers(tactic):
        return "the op does not offer this tactic"
    return runner.refusal(tactic, problem)


def misplaced(member: Member, tactic: Tactic, runners: Mapping[str, Runner]) -> str | None:
    """Why a member does not name its tactic as that is named, or another weight layout than the tactic's; or None."""
    if member.tactic != tactic.name:
        return f"the tactic's name is {tactic.name}"
    layout = "" if tactic == DEFAULT else runners[tactic.runner].layout_of(tactic)
    return None if member.layout == layout else f"its weight layout is {layout or 'the original one'}"
