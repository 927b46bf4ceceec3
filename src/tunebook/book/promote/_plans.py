"""What becomes of plans when verdicts are promoted: the run's own goes in, or an outdated one goes out, or all stay."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from tunebook.book._declared import why_not_offered
from tunebook.book._restarts import measured
from tunebook.ops import OpSpec
from tunebook.records import DEFAULT, Plan, Problem, Tactic, Verdict
from tunebook.store import Run


@dataclass(frozen=True, kw_only=True)
class Plans:
    """By fingerprint: `put` go in; those in the cache that are `taken_out` serve what is replaced; `stays` says why not."""

    put: Mapping[str, Plan] = field(default_factory=dict)
    taken_out: Mapping[str, Plan] = field(default_factory=dict)
    stays: Mapping[str, str] = field(default_factory=dict)


def plans_of(
    run: Run,
    put: Mapping[str, Verdict],
    same: Collection[str],
    cached: Mapping[str, Verdict],
    planned: Mapping[str, Plan],
    ops: Mapping[str, OpSpec],
) -> Plans:
    """What becomes of the run's plans and of the cached ones for its model: `put` go in over `cached`, `same` are there already.

    A plan goes in where it was compared with the default on the whole model, and rests on verdicts that are promoted or in the
    cache as they are. Where it does not, a cached plan for this model is taken out if it serves a problem whose winner
    changes: it would go on serving the former one. The next start makes a plan from the verdicts.
    """
    going_in: dict[str, Plan] = {}
    stays: dict[str, str] = {}
    for key, plan in run.plans.items():
        if plan == planned.get(key):
            continue
        why = _blocked(plan, run, {*put, *same}, cached, ops)
        if why is None:
            going_in[key] = plan
        else:
            stays[key] = why
    changed = {key for key, verdict in put.items() if key not in cached or cached[key].winner != verdict.winner}
    out = {
        key: plan
        for key, plan in planned.items()
        if key not in going_in
        and _of_model(plan, run)
        and not changed.isdisjoint(plan.tactics)
        and plan != run.plans.get(key)
    }
    return Plans(put=going_in, taken_out=out, stays=stays)


def _of_model(plan: Plan, run: Run) -> bool:
    """Whether a plan in the cache is for the model of a run, with whatever runners."""
    fingerprint = run.header.fingerprint
    return plan.fingerprint in run.plans or (bool(fingerprint) and plan.fingerprint.startswith(f"{fingerprint}-"))


def _blocked(
    plan: Plan, run: Run, adopted: Collection[str], cached: Mapping[str, Verdict], ops: Mapping[str, OpSpec]
) -> str | None:
    """Why a run's plan does not go in, or None."""
    if not plan.verified and not plan.planned_from:
        return "it was not compared with the default on the whole model"
    for key, name in plan.tactics.items():
        mine, there = run.verdicts.get(key), cached.get(key)
        if key not in adopted and mine is not None and there is not None and there != mine and measured(there):
            return f"it rests on the run's verdict on {key}, which is not promoted"
        if name == DEFAULT.name:
            continue
        if key not in adopted and there is None:
            return f"it serves {key} by {name}, and no verdict on that is promoted"
        if (why := _refused(key, name, ops)) is not None:
            return f"{key}: {name}: {why}"
    for family, name in plan.sources.items():
        spec = ops.get(family.partition("|")[0])
        if spec is None or spec.runner_of(Tactic.parse(name)) is None:
            return f"{family}: {name} is not offered"
    return None


def _refused(key: str, name: str, ops: Mapping[str, OpSpec]) -> str | None:
    problem = Problem.parse(key)
    spec = ops.get(problem.op)
    return "the op is not declared here" if spec is None else why_not_offered(spec, problem, Tactic.parse(name))
