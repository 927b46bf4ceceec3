"""A plan for another memory limit or mix, made of the verdicts and frontiers in the cache, without measuring."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunebook.dispatch import Binding
from tunebook.engine._phases import PhaseRequest
from tunebook.engine._proof import proven_as, remembered
from tunebook.engine._stale import plan_key, releasable, staleness
from tunebook.engine._terms import Terms, room, unattached_bytes
from tunebook.plan import Knowledge, holdings, make
from tunebook.records import DEFAULT, Plan, Problem
from tunebook.tuner import Session

if TYPE_CHECKING:
    from tunebook.engine._runner import ModelRunner

logger = logging.getLogger("tunebook.engine")


def replannable(plan: Plan) -> str:
    """Why a plan for other terms cannot be made of what is known, or an empty string."""
    if not plan.profile:
        return "the cache does not say how long each phase took"
    if not plan.active or not (plan.verified or plan.planned_from):
        return "the cached plan is slower than the default"
    return ""


def decide(runner: ModelRunner, session: Session, wanted: Sequence[PhaseRequest], terms: Terms) -> tuple[str, str]:
    """Why a dummy run is needed (empty: it is not), and in words what a start without one does."""
    stale = staleness(runner, session, wanted, terms)
    plan = session.recall.plan_of(plan_key(runner, terms))
    differs = terms.differs(plan) if plan is not None else ""
    if stale or plan is None or not differs:
        return stale, f"the cache {session.location.cache} answers everything"
    why_not = replannable(plan)
    if why_not:
        return f"the plan is to be made for {differs}, and {why_not}", ""
    return "", f"the cache {session.location.cache} answers everything; planned anew for {differs}, without measuring"


def _known(runner: ModelRunner, session: Session, plan: Plan, terms: Terms) -> Knowledge:
    """What the cache knows of a plan's problems, weighted by its profile."""
    known, bindings = Knowledge(), runner.attachment.bindings
    by_family: dict[str, Binding] = {}
    for name, families in plan.modules.items():
        known.families[bindings[name]] = families
        by_family |= dict.fromkeys(families, bindings[name])
    for key in plan.tactics:
        binding = by_family[Problem.parse(key).family]
        answer = session.recall.known(key, binding.spec, binding.default_version)
        verdict = session.recall.verdict_of(key)
        if answer is not None and verdict is not None and answer.members:
            known.verdicts[key], known.members[key] = verdict, answer.members
    if terms.batch_invariant:
        known.forget({b.spec.name for b in by_family.values() if not session.selection.takes_op(b.spec.name)})
    known.weigh(plan.profile, terms.mix_of(plan))
    return known


def replanned(runner: ModelRunner, session: Session, plan: Plan, terms: Terms, differs: str) -> Plan:
    """A plan for other terms, of the verdicts and frontiers in the cache. Its proof is the former one's if it serves the
    same; else it has none."""
    limit, mix = terms.limit_of(plan), terms.mix_of(plan)
    known = _known(runner, session, plan, terms)
    allowed = room(runner, limit)
    choices = make(known, allowed, invariant=terms.batch_invariant)
    choices, reverted = remembered(choices, known, plan, allowed)
    made = plan.replace(
        tactics={key: choices.tactics.get(key, DEFAULT).name for key in plan.tactics},
        layouts=dict(sorted(choices.layouts.items())),
        bytes=choices.prepared,
        model_bytes=unattached_bytes(runner),
        holdings=holdings(choices, known),
        limit=str(limit),
        mix=mix,
        verified=False,
        phases=(),
        overall=None,
        effects=(),
        reverted=reverted,
        planned_from=f"the plan for a memory limit of {plan.limit}",
    )
    logger.info("%s is planned anew for %s, of what the cache knows; nothing was measured", runner.name, differs)
    if made.tactics == plan.tactics:
        return proven_as(made, plan).replace(planned_from=plan.planned_from)
    return made


def fits(runner: ModelRunner, plan: Plan, terms: Terms) -> bool:
    """Whether a plan keeps the memory limit that is asked for."""
    limit = terms.limit_of(plan)
    return plan.bytes - releasable(runner, plan) <= limit.beside(unattached_bytes(runner))
