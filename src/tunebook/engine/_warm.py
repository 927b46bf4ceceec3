"""A warm start: is the cached plan still right for this model, and serving it without a single dummy run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunebook.dispatch import tensor_bytes
from tunebook.engine._phases import PhaseRequest
from tunebook.engine._report import TuneReport, timer
from tunebook.plan import FREE_SHARE, Choices, Knowledge, extra_bytes, install, make, prepare
from tunebook.records import Plan, Problem, Tactic
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
    if not plan.verified:
        return "the cached plan was not compared with the default on the whole model yet"
    if set(plan.modules) != set(bindings):
        return "the cached plan is about other modules"
    room = FREE_SHARE * runner.device.free_memory()
    if plan.active and plan.bytes > room:
        return f"the cached plan's weights take {plan.bytes / 1e9:.2f} GB, and there is room for {room / 1e9:.2f} GB"
    by_family = {family: bindings[name] for name, families in plan.modules.items() for family in families}
    for key, name in plan.tactics.items():
        binding = by_family.get(Problem.parse(key).family)
        if binding is None:
            return f"{key}: no module of this model has this problem"
        if not session.selection.takes_op(binding.spec.name):
            continue
        known = session.known(key, binding.spec, binding.default_version)
        if known is None or not known.complete:
            return f"{key}: " + ("; ".join(known.notes) if known else "the cache holds no verdict")
        if name not in [member.tactic for member in known.members]:
            return f"{key}: {name} is not a tactic that its verdict offers"
    return ""


def start_from(runner: ModelRunner, session: Session, report: TuneReport, progress: Progress | None) -> None:
    """Serve the cached plan; without a usable one what single verdicts can serve does, and the log says why."""
    plan = session.plan_of(plan_key(runner))
    stale = staleness(runner, session, ())
    report.seconds["prepare"] = 0.0
    if plan is None or stale:
        _serve_verdicts(runner, session, report, stale)
        return
    tactics = {key: Tactic.parse(name) for key, name in plan.tactics.items()}
    choices = Choices(tactics, dict(plan.layouts), plan.bytes, 0.0)
    families = {binding: plan.modules[name] for name, binding in runner.attachment.bindings.items()}
    report.outcome = Outcome(seen=len(tactics), cached=len(tactics), left_out=plan.left_out)
    for key in tactics:
        verdict = session.verdict_of(key)
        if verdict is not None:
            report.outcome.verdicts[key] = verdict
            report.outcome.members[key] = tuple(m for m in verdict.frontier if m.tactic == plan.tactics[key])
    install(runner.scope, choices, families)
    report.plan = plan
    if plan.active:
        spent = timer(runner.device)
        try:
            prepare(choices, families, progress)
        except Exception as error:  # noqa: BLE001 - a runner's own `prepare`: dispatch meets it again and serves the default
            logger.warning(
                "preparing weights failed, what needs them runs the default: %s: %s", type(error).__name__, error
            )
        report.seconds["prepare"] = spent()
    activate(runner, plan)


def _serve_verdicts(runner: ModelRunner, session: Session, report: TuneReport, why: str) -> None:
    """Without a plan: the verdicts of this model's ops serve as far as they can, layouts chosen under the memory limit."""
    specs = {b.spec.name: (b.spec, b.default_version) for b in runner.attachment.bindings.values()}
    found, misses = session.serving(specs)
    known = Knowledge()
    for key, members in found.items():
        verdict = session.verdict_of(key)
        if verdict is not None:
            known.verdicts[key], known.members[key] = verdict, members
            known.weights[key] = verdict.seconds * verdict.speedup
    for binding in runner.attachment.bindings.values():
        mine = dict.fromkeys(Problem.parse(key).family for key in found if Problem.parse(key).op == binding.spec.name)
        known.families[binding] = tuple(mine)
    weights = tensor_bytes(list(runner.loaded.model.parameters()))
    choices = make(known, extra_bytes(weights, runner.device.free_memory()))
    install(runner.scope, choices, known.families)
    runner.scope.switch(True)
    report.outcome = Outcome(seen=len(found), cached=len(found), misses=misses, members=known.members)
    logger.warning("%s is served without a plan: %s; %d single verdicts may serve", runner.name, why, len(found))


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
