"""A warm start: serving the cached plan without a single dummy run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tunebook.dispatch import Binding
from tunebook.engine._replan import fits, replannable, replanned
from tunebook.engine._report import TuneReport, timer
from tunebook.engine._stale import plan_key, staleness
from tunebook.engine._terms import Terms, room
from tunebook.errors import UsageError
from tunebook.plan import Choices, Knowledge, Room, install, make, prepare, release
from tunebook.records import Plan, Problem, Tactic
from tunebook.tuner import Outcome, Progress, Session

if TYPE_CHECKING:
    from tunebook.engine._runner import ModelRunner

logger = logging.getLogger("tunebook.engine")

Families = Mapping[Binding, tuple[str, ...]]


def start_from(
    runner: ModelRunner, session: Session, terms: Terms, report: TuneReport, progress: Progress | None
) -> None:
    """Serve the cached plan; without a usable one what single verdicts can serve does, and the log says why.

    Where another memory limit or mix is asked for, a plan is made for it of what the cache knows; nothing is measured.
    """
    plan = session.recall.plan_of(plan_key(runner, terms))
    stale = staleness(runner, session, (), terms)
    report.seconds["prepare"] = 0.0
    differs = terms.differs(plan) if plan is not None else ""
    if plan is not None and not stale and differs:
        if not replannable(plan):
            plan = replanned(runner, session, plan, terms, differs)
        elif plan.active and not fits(runner, plan, terms):
            stale = f"the cached plan was not made for {differs}"
    if plan is None or stale:
        _serve_verdicts(runner, session, terms, report, stale)
        return
    choices = choices_of(plan)
    families = {binding: plan.modules[name] for name, binding in runner.attachment.bindings.items()}
    report.outcome = Outcome(seen=len(plan.tactics), cached=len(plan.tactics), left_out=plan.left_out)
    for key in plan.tactics:
        verdict = session.recall.verdict_of(key)
        if verdict is not None:
            report.outcome.verdicts[key] = verdict
            report.outcome.members[key] = tuple(m for m in verdict.frontier if m.tactic == plan.tactics[key])
    install(runner.scope, choices, families)
    if plan.active:
        spent = timer(runner.device)
        held = prepare(choices, families, progress, releasing=True, failed=_not_prepared)
        report.seconds["prepare"] = spent()
        if plan.bytes != held and differs:
            plan = plan.replace(bytes=held)
    report.plan = plan
    activate(runner, plan, choices, families)
    if differs:
        session.publish(report.outcome, plan)


def _not_prepared(binding: Binding, error: Exception) -> None:
    """A runner's own `prepare` failed: dispatch meets it again and serves the default."""
    logger.warning(
        "preparing weights of %s failed, what needs them runs the default: %s: %s",
        binding.name,
        type(error).__name__,
        error,
    )


def choices_of(plan: Plan) -> Choices:
    """What a plan serves. Problems that were not to be tuned are the default's."""
    return Choices(
        tactics={key: Tactic.parse(name) for key, name in plan.tactics.items()},
        layouts=dict(plan.layouts),
        bytes=plan.bytes - plan.released,
        seconds=0.0,
        prepared=plan.bytes,
        sources={family: Tactic.parse(name) for family, name in plan.sources.items()},
        numerics={holding.family: holding.numerics for holding in plan.holdings if holding.numerics},
    )


def _serve_verdicts(runner: ModelRunner, session: Session, terms: Terms, report: TuneReport, why: str) -> None:
    """Without a plan: the verdicts of this model's ops serve as far as they can, layouts chosen under the memory limit.

    Raises UsageError where one result whatever the batch is asked for: that takes a plan.
    """
    if terms.batch_invariant:
        raise UsageError(
            f"{runner.name} has no plan for one result whatever the batch ({why}); make one with "
            "`tunebook tune --batch-invariant`"
        )
    specs = {b.spec.name: (b.spec, b.default_version) for b in runner.attachment.bindings.values()}
    found, misses = session.recall.serving(specs)
    known = Knowledge()
    for key, members in found.items():
        verdict = session.recall.verdict_of(key)
        if verdict is not None:
            known.verdicts[key], known.members[key] = verdict, members
            known.weights[key] = verdict.seconds * verdict.speedup
    for binding in runner.attachment.bindings.values():
        mine = dict.fromkeys(Problem.parse(key).family for key in found if Problem.parse(key).op == binding.spec.name)
        known.families[binding] = tuple(mine)
    allowed = Room(room(runner, terms.limit_of(None)).bytes, release=False)
    choices = make(known, allowed)
    install(runner.scope, choices, known.families)
    runner.scope.switch(True)
    report.outcome = Outcome(seen=len(found), cached=len(found), misses=misses, members=known.members)
    logger.warning("%s is served without a plan: %s; %d single verdicts may serve", runner.name, why, len(found))


def activate(runner: ModelRunner, plan: Plan, choices: Choices, families: Families) -> None:
    """Serve the plan, its unneeded original weights released; or the defaults where the comparison found it slower."""
    runner.scope.switch(plan.active)
    if plan.active:
        release(choices, families)
        return
    logger.warning(
        "the plan for %s is slower than the default on the whole model and is not activated; this is remembered",
        runner.name,
    )
    for binding in runner.scope.bindings:
        binding.restore(last=True)
        binding.prepared.clear()
        binding.forget()
