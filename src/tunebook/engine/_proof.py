"""The proof of a plan on its model: the comparison, what became of each op's predicted gain, and the repair of a losing plan."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunebook.engine._phases import PhaseRequest
from tunebook.engine._report import TuneReport, timer
from tunebook.measure import Budget
from tunebook.plan import (
    EFFECT_ROUNDS,
    OVERDRAFT,
    Choices,
    Knowledge,
    Serving,
    Step,
    expected,
    install,
    loses,
    measure_effects,
    repair,
    seconds_a_round,
    verify,
    without,
)
from tunebook.records import DEFAULT, Overall, Phase, Plan
from tunebook.tuner import Progress

if TYPE_CHECKING:
    from tunebook.engine._runner import ModelRunner

logger = logging.getLogger("tunebook.engine")


@dataclass(frozen=True)
class Planned:
    """A plan that is installed and not yet proven, with what it was made from."""

    plan: Plan
    choices: Choices
    known: Knowledge


def remembered(choices: Choices, known: Knowledge, former: Plan | None) -> tuple[Choices, dict[str, str]]:
    """The choices without what an earlier proof gave back to the default, as long as the same tactic would serve."""
    if former is None or not (former.verified and former.active):
        return choices, {}
    same = {key: name for key, name in former.reverted.items() if key in choices.tactics}
    same = {key: name for key, name in same.items() if choices.tactics[key].name == name}
    return without(choices, same, known), same


def prove(
    runner: ModelRunner,
    planned: Planned,
    former: Plan | None,
    wanted: Sequence[PhaseRequest],
    total: Budget,
    report: TuneReport,
    progress: Progress | None,
) -> Plan:
    """The plan with what the whole model says of it, repaired where it loses.

    What is known of the very same plan from an earlier start (`former`) is not measured again.
    """
    plan = planned.plan
    report.seconds["verify"] = 0.0
    if former is not None and former.verified and (former.tactics, former.requested) == (plan.tactics, plan.requested):
        return former
    if all(name == DEFAULT.name for name in plan.tactics.values()):  # the same code: there is nothing to compare
        same = tuple(_unchanged(request, report.steps[request]) for request in wanted)
        return plan.replace(verified=True, phases=same, overall=Overall(speedup=1.0, speedup_low=1.0, speedup_high=1.0))
    spent = timer(runner.device)
    steps = [Step(r.phase, r.batch, r.tokens, runner.step(r)) for r in wanted]
    plan = _compared(runner, planned, steps, total, progress)
    report.seconds["verify"] = spent()
    return plan


def _compared(
    runner: ModelRunner, planned: Planned, steps: Sequence[Step], total: Budget, progress: Progress | None
) -> Plan:
    plan, choices, rng = planned.plan, planned.choices, random.Random(0)
    proof = verify(steps, runner.scope, runner.device, total, rng, progress, reserve=EFFECT_ROUNDS)
    if proof is None:
        logger.warning("the whole-model comparison did not fit the budget: the plan serves unverified")
        return plan
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
    if loses(proof):
        repaired = repair(
            steps, runner.scope, serving, choices.tactics, proof, plan.effects, runner.device, total, rng, progress
        )
        proof = repaired.proof
        choices = without(choices, repaired.reverted, planned.known)
        install(runner.scope, choices, planned.known.families)
        plan = plan.replace(
            tactics={key: choices.tactics.get(key, DEFAULT).name for key in plan.tactics},
            layouts=dict(sorted(choices.layouts.items())),
            bytes=sum(binding.prepared.bytes for binding in planned.known.families),
            reverted={**plan.reverted, **{key: plan.tactics[key] for key in sorted(repaired.reverted)}},
        )
    phases, overall = proof
    return plan.replace(verified=True, active=overall.outcome != "slower", phases=phases, overall=overall)


def _unchanged(request: PhaseRequest, seconds: float) -> Phase:
    """A phase of a plan that is the default throughout: its one measured step stands on both sides."""
    return Phase(
        phase=request.phase,
        batch=request.batch,
        tokens=request.tokens,
        default_ms=seconds * 1e3,
        tuned_ms=seconds * 1e3,
        speedup=1.0,
        speedup_low=1.0,
        speedup_high=1.0,
        rounds=1,
    )
