"""Tuning a whole model: dummy runs, the tuning of what they called, the plan, its proof on the model, the publication."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunebook.dispatch import collecting, tensor_bytes
from tunebook.engine._phases import PhaseRequest, merged
from tunebook.engine._report import TuneReport, timer
from tunebook.engine._warm import activate, plan_key
from tunebook.measure import Budget
from tunebook.plan import Knowledge, Step, extra_bytes, install, make, prepare, verify
from tunebook.records import DEFAULT, Overall, Phase, Plan
from tunebook.tuner import Collection, Outcome, Progress, Session

if TYPE_CHECKING:
    from tunebook.engine._runner import ModelRunner

logger = logging.getLogger("tunebook.engine")

#: The budget keeps this many default steps of every phase for the whole-model comparison, and at most this share of itself.
VERIFY_STEPS = 16
VERIFY_SHARE = 0.5


def tune_model(
    runner: ModelRunner,
    session: Session,
    total: Budget,
    wanted: Sequence[PhaseRequest],
    report: TuneReport,
    progress: Progress | None,
) -> None:
    """Do it all within `total`, and fill the report.

    Phases that the cached plan was made for stay in it: a plan that is asked for other sizes grows.
    """
    former = session.plan_of(plan_key(runner))
    wanted = merged(wanted, former.requested if former else ())
    collection = _collect(runner, wanted, report, progress)
    verify_s = min(VERIFY_SHARE * total.left(), VERIFY_STEPS * sum(report.steps.values()))
    outcome = session.tune(collection, total.left() - verify_s, progress)
    report.outcome, report.seconds["tune"] = outcome, outcome.seconds
    plan = _plan(runner, session, outcome, collection, report, wanted, progress)
    plan = _verify(runner, session, plan, wanted, total, report, progress)
    activate(runner, plan)
    session.publish(outcome, plan)
    session.finish()
    report.plan = plan


def _collect(
    runner: ModelRunner, wanted: Sequence[PhaseRequest], report: TuneReport, progress: Progress | None
) -> Collection:
    """A dummy run of each phase with the defaults, its calls noted."""
    spent = timer(runner.device)
    collection = Collection(runner.device)
    before = runner.scope.tuned
    runner.scope.switch(False)
    try:
        for done, request in enumerate(wanted):
            if progress:
                progress(done, len(wanted), f"dummy run: {request}")
            step = runner.step(request)  # fills the key-value cache before calls are collected
            if request.phase == "decode":  # the first call of a shape builds what later ones reuse, and is no measure
                step()
            single = timer(runner.device)
            with collecting(collection):
                step()
            report.steps[request] = single()
    finally:
        runner.scope.switch(before)
    report.seconds["collect"] = spent()
    return collection


def _plan(
    runner: ModelRunner,
    session: Session,
    outcome: Outcome,
    collection: Collection,
    report: TuneReport,
    wanted: Sequence[PhaseRequest],
    progress: Progress | None,
) -> Plan:
    """Choose layouts and tactics, install them, and prepare their weights."""
    weights = tensor_bytes(list(runner.loaded.model.parameters()))
    limit = extra_bytes(weights, runner.device.free_memory() + runner.attachment.prepared_bytes)
    known = Knowledge()
    known.learn(outcome, collection, runner.scope)
    choices, families = make(known, limit), known.families
    spent = timer(runner.device)
    runner.scope.switch(True)
    install(runner.scope, choices, families)
    held = prepare(choices, families, progress)
    report.seconds["prepare"] = spent()
    return Plan(
        model=runner.name,
        fingerprint=plan_key(runner),
        # a problem that was met but not tuned (another op was asked for) stands as the default: a later start sees it
        tactics={key: choices.tactics.get(key, DEFAULT).name for key in sorted(outcome.weights)},
        requested=tuple(str(request) for request in wanted),
        modules={name: families.get(binding, ()) for name, binding in runner.attachment.bindings.items()},
        layouts=dict(sorted(choices.layouts.items())),
        bytes=held,
        left_out=outcome.left_out,
        run=Path(session.run_path).name if session.run_path else "",
    )


def _verify(
    runner: ModelRunner,
    session: Session,
    plan: Plan,
    wanted: Sequence[PhaseRequest],
    total: Budget,
    report: TuneReport,
    progress: Progress | None,
) -> Plan:
    """The whole-model comparison. What is known of the very same plan from an earlier start is not measured again."""
    report.seconds["verify"] = 0.0
    former = session.plan_of(plan.fingerprint)
    if former is not None and former.verified and (former.tactics, former.requested) == (plan.tactics, plan.requested):
        return former
    if all(name == DEFAULT.name for name in plan.tactics.values()):  # the same code: there is nothing to compare
        same = tuple(_unchanged(request, report.steps[request]) for request in wanted)
        return plan.replace(verified=True, phases=same, overall=Overall(speedup=1.0, speedup_low=1.0, speedup_high=1.0))
    spent = timer(runner.device)
    steps = [Step(r.phase, r.batch, r.tokens, runner.step(r)) for r in wanted]
    found = verify(steps, runner.scope, runner.device, total, random.Random(0), progress)
    report.seconds["verify"] = spent()
    if found is None:
        logger.warning("the whole-model comparison did not fit the budget: the plan serves unverified")
        return plan
    phases, overall = found
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
