"""A warm start: is the cached plan still right for this model, and serving it without a single dummy run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunebook.engine._phases import PhaseRequest
from tunebook.engine._report import TuneReport, timer
from tunebook.plan import Choices, install, prepare
from tunebook.records import Plan, Tactic
from tunebook.tuner import Outcome, Progress, Session, available_runners

if TYPE_CHECKING:
    from tunebook.engine._runner import ModelRunner

logger = logging.getLogger("tunebook.engine")


def plan_key(runner: ModelRunner) -> str:
    """What a plan is filed under: the model, and the runners that are offered here (with ``--with``, another plan)."""
    specs = {binding.spec.name: binding.spec for binding in runner.attachment.bindings.values()}
    offered = sorted(f"{op}/{name}" for op, spec in specs.items() for name in available_runners(spec))
    return f"{runner.loaded.fingerprint}-{hashlib.sha256(' '.join(offered).encode()).hexdigest()[:8]}"


def staleness(runner: ModelRunner, session: Session, wanted: Sequence[PhaseRequest]) -> str:
    """Why the cached plan does not answer what is wanted, or an empty string."""
    plan = session.plan_of(plan_key(runner))
    bindings = runner.attachment.bindings
    if plan is None:
        return f"the cache {session.location.cache} holds no plan for {runner.name}"
    lacking = [str(request) for request in wanted if str(request) not in plan.requested]
    if lacking:
        return f"the cached plan was not made for {', '.join(lacking)}"
    if set(plan.modules) != set(bindings):
        return "the cached plan is about other modules"
    by_family = {plan.modules[name]: binding for name, binding in bindings.items()}
    for key, name in plan.tactics.items():
        binding = by_family.get(key.rpartition("|")[0])
        if binding is None:
            return f"{key}: no module of this model has this problem"
        known = session.known(key, binding.spec, binding.default_version)
        if known is None and not session.selection.takes_op(binding.spec.name):
            continue
        if known is None or not known.complete:
            return f"{key}: " + ("; ".join(known.notes) if known else "the cache holds no verdict")
        if name not in [member.tactic for member in known.members]:
            return f"{key}: {name} is not a tactic that its verdict offers"
    return ""


def start_from(runner: ModelRunner, session: Session, report: TuneReport, progress: Progress | None) -> None:
    """Serve the cached plan; without a usable one every call runs the default, and the log says why."""
    plan = session.plan_of(plan_key(runner))
    stale = staleness(runner, session, ())
    report.seconds["prepare"] = 0.0
    if plan is None or stale:
        logger.warning("nothing of the cache serves %s: %s", runner.name, stale)
        runner.scope.switch(False)
        return
    tactics = {key: Tactic.parse(name) for key, name in plan.tactics.items()}
    choices = Choices(tactics, dict(plan.layouts), plan.bytes, 0.0)
    families = {binding: plan.modules[name] for name, binding in runner.attachment.bindings.items()}
    report.outcome = Outcome(seen=len(tactics), cached=len(tactics))
    for key in tactics:
        verdict = session.verdict_of(key)
        if verdict is not None:
            report.outcome.verdicts[key] = verdict
            report.outcome.members[key] = tuple(m for m in verdict.frontier if m.tactic == plan.tactics[key])
    install(runner.scope, choices, families)
    if plan.active:
        spent = timer(runner.device)
        prepare(runner.scope, choices, families, progress)
        report.seconds["prepare"] = spent()
    activate(runner, plan)
    report.plan = plan


def activate(runner: ModelRunner, plan: Plan) -> None:
    """Serve the plan, or the defaults where the whole-model comparison found it slower."""
    runner.scope.switch(plan.active)
    if plan.active:
        return
    logger.warning(
        "the plan for %s is slower than the default on the whole model and is not activated; this is remembered",
        runner.name,
    )
    for binding in runner.scope.bindings:
        binding.prepared.clear()
        binding.forget()
