"""Tuning a whole model: dummy runs, the tuning of what they called, the plan, its proof on the model, the publication."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunebook.dispatch import collecting, tensor_bytes
from tunebook.engine._phases import PhaseRequest, merged
from tunebook.engine._proof import Planned, prove, remembered
from tunebook.engine._report import TuneReport, timer
from tunebook.engine._warm import activate, plan_key
from tunebook.measure import Budget
from tunebook.plan import Knowledge, extra_bytes, install, make, prepare
from tunebook.records import DEFAULT, Plan
from tunebook.tuner import Collection, Outcome, Progress, Session

if TYPE_CHECKING:
    from tunebook.engine._runner import ModelRunner

#: The budget keeps this many default steps of every phase for the whole-model proof, and at most this share of itself: a
#: warm-up and six rounds of two steps for the comparison, six rounds more for what each op gains.
VERIFY_STEPS = 26
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
    planned = _plan(runner, session, former, outcome, collection, report, wanted, progress)
    plan = prove(runner, planned, former, wanted, total, report, progress)
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
    former: Plan | None,
    outcome: Outcome,
    collection: Collection,
    report: TuneReport,
    wanted: Sequence[PhaseRequest],
    progress: Progress | None,
) -> Planned:
    """Choose layouts and tactics, install them, and prepare their weights."""
    weights = tensor_bytes(list(runner.loaded.model.parameters()))
    limit = extra_bytes(weights, runner.device.free_memory() + runner.attachment.prepared_bytes)
    known = Knowledge()
    known.learn(outcome, collection, runner.scope)
    choices, reverted = remembered(make(known, limit), known, former)
    families = known.families
    spent = timer(runner.device)
    runner.scope.switch(True)
    install(runner.scope, choices, families)
    held = prepare(choices, families, progress)
    report.seconds["prepare"] = spent()
    plan = Plan(
        model=runner.name,
        fingerprint=plan_key(runner),
        # a problem that was met but not tuned (another op was asked for) stands as the default: a later start sees it
        tactics={key: choices.tactics.get(key, DEFAULT).name for key in sorted(outcome.weights)},
        requested=tuple(str(request) for request in wanted),
        modules={name: families.get(binding, ()) for name, binding in runner.attachment.bindings.items()},
        layouts=dict(sorted(choices.layouts.items())),
        bytes=held,
        reverted=reverted,
        left_out=outcome.left_out,
        run=Path(session.run_path).name if session.run_path else "",
    )
    return Planned(plan, choices, known)
