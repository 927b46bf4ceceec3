"""What the changes are expected to make of each phase of the model, from what a plan's dummy run met there."""

from __future__ import annotations

import math

from tunebook.book._change import CONFIDENCE, tuned
from tunebook.book._restarts import Spread
from tunebook.book._source import Source
from tunebook.records import DEFAULT, Phase, Profile, Record, Verdict
from tunebook.stats import t_quantile


class PhaseChange(Record, frozen=True, kw_only=True, omit_defaults=False):
    """One phase: how many times as fast its step is expected to be with the second side's tactics as with the first's.

    `low` to `high` is the 95 % interval that the verdicts' own intervals give; `share` is the part of the default's step that
    the compared problems take. `before` and `after` are the speed-ups over the default that were verified on the whole
    model, as (value, low, high), where they were.
    """

    phase: str
    ratio: float
    low: float
    high: float
    share: float
    before: tuple[float, float, float] | None = None
    after: tuple[float, float, float] | None = None


def phase_changes(before: Source, after: Source, spread: Spread) -> tuple[PhaseChange, ...]:
    """For each phase of the second side's profile, else of the first's; nothing where neither has one.

    A step takes the default's time less what each problem's tactic saves of it; a problem that one side lacks is left as it
    is. Both sides' tactics are put into the same profile, so that no time of one run is held against one of the other.
    """
    plan, other = after.plan, before.plan
    source = plan if plan is not None and plan.profile else other
    if source is None:
        return ()
    verified = [
        {phase.name: phase for phase in side.phases} if side is not None and side.verified else {}
        for side in (other, plan)
    ]
    return tuple(_phase(profile, before, after, spread, verified) for profile in source.profile if profile.seconds > 0)


def _phase(
    profile: Profile, before: Source, after: Source, spread: Spread, verified: list[dict[str, Phase]]
) -> PhaseChange:
    both = {key: seconds for key, seconds in profile.taken.items() if key in before.verdicts and key in after.verdicts}
    one, other = (_step(profile, both, side) for side in (before, after))
    variance = 0.0
    for key, seconds in both.items():
        if _unchanged(before, after, key):
            continue
        for side, total in ((before, one), (after, other)):
            known = tuned(side, key, spread)
            part = seconds * _takes(side, key) / total  # by how much the step's logarithm moves with this one's
            variance += part * part * known.variance.value
    half = t_quantile(CONFIDENCE, math.inf) * math.sqrt(variance)
    value = math.log(one) - math.log(other)
    name = _file_name(profile.phase)
    found = [_speedup(phases.get(name)) for phases in verified]
    return PhaseChange(
        phase=profile.phase,
        ratio=math.exp(value),
        low=math.exp(value - half),
        high=math.exp(value + half),
        share=min(1.0, sum(both.values()) / profile.seconds),
        before=found[0],
        after=found[1],
    )


def _step(profile: Profile, taken: dict[str, float], side: Source) -> float:
    """Seconds of the phase's step with a side's tactics; at least a thousandth of what it took with the defaults."""
    saved = sum(seconds * (1 - _takes(side, key)) for key, seconds in taken.items())
    return max(profile.seconds - saved, profile.seconds / 1000)


def _takes(side: Source, key: str) -> float:
    """What takes the place of the default's time: the tactic that the plan serves, else the winner; as a share of it."""
    verdict = side.verdicts[key]
    served = side.plan.tactics.get(key, verdict.winner) if side.plan is not None else verdict.winner
    return share_of(verdict, served)


def share_of(verdict: Verdict, tactic: str) -> float:
    """The time of a tactic over the default's by this verdict; the winner's for one that its frontier does not hold."""
    if tactic == DEFAULT.name:
        return 1.0
    ratio = next((member.ratio for member in verdict.frontier if member.tactic == tactic), 1.0)
    return ratio / verdict.speedup


def _unchanged(before: Source, after: Source, key: str) -> bool:
    one, other = before.verdicts[key], after.verdicts[key]
    return one == other or one.winner == other.winner == DEFAULT.name


def _speedup(phase: Phase | None) -> tuple[float, float, float] | None:
    return (phase.speedup, phase.speedup_low, phase.speedup_high) if phase is not None else None


def _file_name(asked: str) -> str:
    """``decode_16`` for ``decode 16``: what a verified phase is called."""
    return asked.replace(" ", "_", 1)
