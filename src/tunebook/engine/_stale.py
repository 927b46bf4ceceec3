"""Whether a cached plan still answers what is wanted of this model, or why not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunebook.dispatch import Binding
from tunebook.engine._phases import PhaseRequest
from tunebook.engine._terms import Terms
from tunebook.plan import FREE_SHARE
from tunebook.records import DEFAULT, Plan, Problem, Tactic
from tunebook.tuner import Session, available_runners

if TYPE_CHECKING:
    from tunebook.engine._runner import ModelRunner


def plan_key(runner: ModelRunner, terms: Terms) -> str:
    """What a plan is filed under: the model, the runners that are offered here (with ``--with``, another plan), and whether
    the batch may change results."""
    specs = {binding.spec.name: binding.spec for binding in runner.attachment.bindings.values()}
    offered = sorted(f"{op}/{name}" for op, spec in specs.items() for name in available_runners(spec))
    key = f"{runner.loaded.fingerprint}-{hashlib.sha256(' '.join(offered).encode()).hexdigest()[:8]}"
    return f"{key}-invariant" if terms.batch_invariant else key


def staleness(runner: ModelRunner, session: Session, wanted: Sequence[PhaseRequest], terms: Terms) -> str:
    """Why the cached plan does not answer what is wanted, or an empty string."""
    plan = session.recall.plan_of(plan_key(runner, terms))
    bindings = runner.attachment.bindings
    if plan is None:
        return f"the cache {session.location.cache} holds no plan for {runner.name}"
    lacking = [str(request) for request in wanted if str(request) not in plan.requested]
    if lacking:
        return f"the cached plan was not made for {', '.join(lacking)}"
    if not plan.verified and not plan.planned_from:
        return "the cached plan was not compared with the default on the whole model yet"
    if plan.planned_from and session.continuing:
        return "the cached plan was made without measuring"
    if set(plan.modules) != set(bindings):
        return "the cached plan is about other modules"
    if plan.active:
        short = _memory(runner, plan)
        if short:
            return short
    by_family = {family: bindings[name] for name, families in plan.modules.items() for family in families}
    for key, name in plan.tactics.items():
        binding = by_family.get(Problem.parse(key).family)
        if binding is None:
            return f"{key}: no module of this model has this problem"
        known = session.recall.known(key, binding.spec, binding.default_version)
        if known is not None and known.pin and name != known.members[0].tactic:
            return f"{key} is pinned to {known.members[0].tactic}, the cached plan serves {name}"
        if key in plan.pinned and not (known is not None and known.pin):
            return f"{key} is not pinned to {name} any more"
        if not session.selection.takes_op(binding.spec.name):  # it is not tuned now, and serves what it did if that may
            if name != DEFAULT.name and (known is None or name not in [member.tactic for member in known.members]):
                return f"{key}: {name} is not a tactic that its verdict offers"
            continue
        if known is None or not known.complete:
            return f"{key}: " + ("; ".join(known.notes) if known else "the cache holds no verdict")
        if name not in [member.tactic for member in known.members] and not _lent(plan, key, binding, name):
            return f"{key}: {name} is not a tactic that its verdict offers"
    for family, name in plan.sources.items():
        if family not in by_family or not _general(by_family[family], name):
            return f"{family}: {name} is not a tactic that could make released weights again"
    return ""


def _memory(runner: ModelRunner, plan: Plan) -> str:
    """Why the plan's weights do not fit, or an empty string."""
    beside = plan.bytes - releasable(runner, plan)
    free = FREE_SHARE * runner.device.free_memory()
    if beside - runner.attachment.prepared_bytes + runner.attachment.released_bytes > free:
        return f"the cached plan's weights take {beside / 1e9:.2f} GB, and there is room for {free / 1e9:.2f} GB"
    if plan.released and beside > plan.bytes - plan.released:
        return "the cached plan releases weights that cannot be released here"
    return ""


def releasable(runner: ModelRunner, plan: Plan) -> int:
    """What the plan would release of this model, in bytes."""
    bindings = runner.attachment.bindings
    return sum(
        bindings[name].releasable
        for name, families in plan.modules.items()
        if len(families) == 1 and families[0] in plan.sources
    )


def _lent(plan: Plan, key: str, binding: Binding, name: str) -> bool:
    """Whether the tactic is another size's, which serves where the default cannot."""
    runner = binding.spec.runner_of(Tactic.parse(name))
    if runner is None:
        return False
    released = Problem.parse(key).family in plan.sources
    return runner.restore is not None if released else plan.batch_invariant and runner.bits is not None


def _general(binding: Binding, name: str) -> bool:
    runner = binding.spec.runner_of(Tactic.parse(name))
    return runner is not None and runner.restore is not None
