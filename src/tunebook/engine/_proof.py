"""The proof of a plan on its model: the comparison, what became of each op's predicted gain, and the repair of a losing plan."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunebook.engine._phases import PhaseRequest
from tunebook.engine._report import TuneReport, timer
from tunebook.measure import Budget
from tunebook.plan import (
    EFFECT_ROUNDS,
    OVERDRAFT,
    UNCHANGED,
    Choices,
    Knowledge,
    Room,
    Serving,
    Step,
    expected,
    holdings,
    install,
    loses,
    measure_effects,
    prepare,
    repair,
    seconds_a_round,
    unchanged,
    verify,
    without,
)
from tunebook.records import DEFAULT, Plan, Tactic
from tunebook.tuner import PINNED, Progress

if TYPE_CHECKING:
    from tunebook.engine._runner import ModelRunner

logger = logging.getLogger("tunebook.engine")


@dataclass(frozen=True)
class Planned:
    """A plan that is installed and not yet proven, with what it was made from and the room that it had."""

    plan: Plan
    choices: Choices
    known: Knowledge
    room: Room


def remembered(choices: Choices, known: Knowledge, former: Plan | None, room: Room) -> tuple[Choices, dict[str, str]]:
    """The choices without what an earlier proof gave back, as long as the same tactic would serve."""
    if former is None or choices.numerics or not ((former.verified and former.active) or former.planned_from):
        return choices, {}
    same = {key: name for key, name in former.reverted.items() if key in choices.tactics}
    same = {key: name for key, name in same.items() if choices.tactics[key].name == name}
    return without(choices, same, known, room), same


def prove(
    runner: ModelRunner,
    planned: Planned,
    former: Plan | None,
    wanted: Sequence[PhaseRequest],
    total: Budget,
    report: TuneReport,
    progress: Progress | None,
) -> tuple[Plan, Choices]:
    """The plan with what the whole model says of it, repaired where it loses; and what it serves now.

    What is known of the very same plan from an earlier start (`former`) is not measured again.
    """
    plan, choices = planned.plan, planned.choices
    report.seconds["verify"] = 0.0
    if former is not None and former.verified and (former.tactics, former.requested) == (plan.tactics, plan.requested):
        return _again(plan, former), choices
    if all(name == DEFAULT.name for name in plan.tactics.values()):  # the same code: there is nothing to compare
        same = tuple(unchanged(r.phase, r.batch, r.tokens, report.steps[r] * 1e3, 1) for r in wanted)
        return plan.replace(verified=True, phases=same, overall=UNCHANGED), choices
    spent = timer(runner.device)
    steps = [Step(r.phase, r.batch, r.tokens, runner.step(r)) for r in wanted]
    proven = _compared(runner, planned, steps, total, progress)
    report.seconds["verify"] = spent()
    return proven


def proven_as(plan: Plan, former: Plan) -> Plan:
    """A plan with what was proven of another one that serves the same tactics."""
    return plan.replace(
        verified=former.verified,
        active=former.active,
        phases=former.phases,
        overall=former.overall,
        effects=former.effects,
        reverted=former.reverted,
    )


def _again(plan: Plan, former: Plan) -> Plan:
    """The former plan, unless the terms have changed."""
    terms = ("layouts", "sources", "limit", "mix", "batch_invariant")
    if former.profile and all(getattr(plan, name) == getattr(former, name) for name in terms):
        return former
    return proven_as(plan, former)


class _GivingBack:
    """Gives problems of a plan back so that what serves instead still fits the memory limit; remembers each such plan."""

    def __init__(self, planned: Planned) -> None:
        self._planned = planned
        self.made = [planned.choices]

    def __call__(self, tactics: Mapping[str, Tactic], keys: Collection[str]) -> Mapping[str, Tactic]:
        now = self.serving(tactics)
        tuned = {key for key in keys if now.tactics.get(key, DEFAULT) != DEFAULT}
        self.made.append(without(now, tuned, self._planned.known, self._planned.room))
        return self.made[-1].tactics

    def serving(self, tactics: Mapping[str, Tactic]) -> Choices:
        """The plan with just these tactics."""
        return next(choices for choices in reversed(self.made) if choices.tactics == tactics)


def _compared(
    runner: ModelRunner, planned: Planned, steps: Sequence[Step], total: Budget, progress: Progress | None
) -> tuple[Plan, Choices]:
    plan, choices, rng = planned.plan, planned.choices, random.Random(0)
    pinned = {key for key, verdict in planned.known.verdicts.items() if verdict.note == PINNED}
    proof = verify(steps, runner.scope, runner.device, total, rng, progress, reserve=EFFECT_ROUNDS)
    if proof is None:
        logger.warning("the whole-model comparison did not fit the budget: the plan serves unverified")
        return plan, choices
    serving = Serving(runner.scope, runner.device)
    limit = (OVERDRAFT if loses(proof) else 1.0) * total.seconds
    if total.spent() + EFFECT_ROUNDS * seconds_a_round(proof) <= limit:
        shares = expected(choices, planned.known)
        effects = measure_effects(steps, serving, choices.tactics, shares, rng, progress)
        plan = plan.replace(effects=effects)
    else:
        logger.warning("what each op gains in the model was not measured: it did not fit the budget")
    for effect in plan.effects:
        if effect.missing:
            logger.warning("%s in %s: predicted gain of %.3g ms a step, measured %.3g ms [%.3g, %.3g]",
                           effect.problem, effect.phase, effect.predicted_ms,
                           effect.measured_ms, effect.low_ms, effect.high_ms)  # fmt: skip
    if loses(proof) and not plan.batch_invariant:
        giving = _GivingBack(planned)
        repaired = repair(
            steps,
            runner.scope,
            serving,
            choices.tactics,
            proof,
            [effect for effect in plan.effects if effect.problem not in pinned],
            runner.device,
            total,
            rng,
            progress,
            giving,
        )
        proof, choices = repaired.proof, giving.serving(repaired.tactics)
        install(runner.scope, choices, planned.known.families)
        plan = plan.replace(
            tactics={key: choices.tactics.get(key, DEFAULT).name for key in plan.tactics},
            layouts=dict(sorted(choices.layouts.items())),
            bytes=prepare(choices, planned.known.families),
            holdings=holdings(choices, planned.known),
            reverted={**plan.reverted, **{key: plan.tactics[key] for key in sorted(repaired.reverted)}},
        )
    phases, overall = proof
    active = overall.outcome != "slower" or plan.batch_invariant or bool(pinned)
    if overall.outcome == "slower" and active:
        why = "one result whatever the batch" if plan.batch_invariant else "what is pinned"
        logger.warning("the plan for %s is slower than the default; it serves for %s", plan.model, why)
    return plan.replace(verified=True, active=active, phases=phases, overall=overall), choices
