"""Tuning a whole model: dummy runs, the tuning of what they called, the plan, its proof on the model, the publication."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunebook.dispatch import collecting
from tunebook.engine._phases import PhaseRequest, merged
from tunebook.engine._proof import Planned, prove, remembered
from tunebook.engine._report import TuneReport, timer
from tunebook.engine._stale import plan_key
from tunebook.engine._terms import Terms, free_bytes, room, unattached_bytes
from tunebook.engine._together import alike, proven
from tunebook.engine._warm import activate
from tunebook.errors import UsageError
from tunebook.measure import Budget
from tunebook.plan import BOTH_SHARE, REMEDY, Choices, Knowledge, Room, holdings, install, make, prepare
from tunebook.records import DEFAULT, Plan, Profile
from tunebook.tuner import PINNED, Collection, Outcome, Progress, Session

if TYPE_CHECKING:
    from tunebook.engine._runner import ModelRunner

logger = logging.getLogger("tunebook.engine")

#: The budget keeps this many default steps of every phase for the whole-model proof, and at most this share of itself: a
#: warm-up and six rounds of two steps for the comparison, six rounds more for what each op gains.
VERIFY_STEPS = 26
VERIFY_SHARE = 0.5


def tune_model(
    runner: ModelRunner,
    session: Session,
    total: Budget,
    wanted: Sequence[PhaseRequest],
    terms: Terms,
    report: TuneReport,
    progress: Progress | None,
) -> None:
    """Do it all within `total`, and fill the report.

    Phases that the cached plan was made for stay in it: a plan that is asked for other sizes grows.
    """
    former = session.recall.plan_of(plan_key(runner, terms))
    wanted = merged(wanted, former.requested if former else ())
    for binding in runner.scope.bindings:  # the defaults are what everything is compared with
        binding.restore()
    collection, profile = _collect(runner, wanted, report, progress)
    verify_s = min(VERIFY_SHARE * total.left(), VERIFY_STEPS * sum(report.steps.values()))
    outcome = session.tune(collection, total.left() - verify_s - session.spent, progress)
    report.outcome, report.seconds["tune"] = outcome, outcome.seconds
    if session.ranks is not None:
        profile = session.ranks.tell("profile", profile, tuple[Profile, ...])
    planned = _plan(alike(runner, session), session, former, outcome, collection, profile, terms, report, progress)
    session.propose(planned.plan)
    proof = functools.partial(prove, runner, planned, former, wanted, total, report, progress)
    plan, choices = proven(runner, session, planned, report, proof)
    spent = timer(runner.device)
    activate(runner, plan, choices, planned.known.families)
    report.seconds["prepare"] += spent()
    session.publish(outcome, plan)
    session.finish()
    report.plan = plan


def _collect(
    runner: ModelRunner, wanted: Sequence[PhaseRequest], report: TuneReport, progress: Progress | None
) -> tuple[Collection, tuple[Profile, ...]]:
    """A dummy run of each phase with the defaults, its calls noted; and what each phase took, by problem."""
    spent = timer(runner.device)
    collection = Collection(runner.device)
    profile: list[Profile] = []
    before = runner.scope.tuned
    runner.scope.switch(False)
    try:
        for done, request in enumerate(wanted):
            if progress:
                progress(done, len(wanted), f"dummy run: {request}")
            step = runner.step(request)  # fills the key-value cache before calls are collected
            if request.phase == "decode":  # the first call of a shape builds what later ones reuse, and is no measure
                step()
            former = _noted(collection)
            single = timer(runner.device)
            with collecting(collection):
                step()
            report.steps[request] = single()
            profile.append(_profile(request, report.steps[request], former, _noted(collection)))
    finally:
        runner.scope.switch(before)
    report.seconds["collect"] = spent()
    return collection, tuple(profile)


_Noted = Mapping[str, tuple[int, float]]


def _noted(collection: Collection) -> _Noted:
    """Calls and seconds of each problem so far."""
    return {o.problem.key: (o.calls, o.seconds) for o in collection.observations}


def _profile(request: PhaseRequest, seconds: float, before: _Noted, after: _Noted) -> Profile:
    """What one phase added."""
    added = {key: (calls - before.get(key, (0, 0.0))[0], taken - before.get(key, (0, 0.0))[1])
             for key, (calls, taken) in after.items()}  # fmt: skip
    met = {key: pair for key, pair in added.items() if pair[0]}
    return Profile(
        phase=str(request),
        seconds=seconds,
        calls={key: calls for key, (calls, _) in met.items()},
        taken={key: max(0.0, taken) for key, (_, taken) in met.items()},
    )


def _plan(
    runner: ModelRunner,
    session: Session,
    former: Plan | None,
    outcome: Outcome,
    collection: Collection,
    profile: tuple[Profile, ...],
    terms: Terms,
    report: TuneReport,
    progress: Progress | None,
) -> Planned:
    """Choose layouts and tactics, install them, and prepare their weights; the originals stay for the comparison."""
    limit, mix = terms.limit_of(former), terms.mix_of(former)
    known = Knowledge()
    known.learn(outcome, collection, runner.scope)
    if terms.batch_invariant:
        _check_settled(known, session)
    known.weigh(profile, mix)
    allowed, choices = _choose(runner, known, room(runner, limit), terms)
    choices, reverted = remembered(choices, known, former, allowed)
    families = known.families
    spent = timer(runner.device)
    runner.scope.switch(True)
    install(runner.scope, choices, families)
    held = prepare(choices, families, progress)
    report.seconds["prepare"] = spent()
    plan = Plan(
        model=runner.name,
        fingerprint=plan_key(runner, terms),
        # a problem that was met but not tuned (another op was asked for) stands as the default: a later start sees it
        tactics={key: choices.tactics.get(key, DEFAULT).name for key in sorted(outcome.weights)},
        requested=tuple(profiled.phase for profiled in profile),
        profile=profile,
        modules={name: families.get(binding, ()) for name, binding in runner.attachment.bindings.items()},
        layouts=dict(sorted(choices.layouts.items())),
        bytes=held,
        model_bytes=unattached_bytes(runner),
        holdings=holdings(choices, known),
        limit=str(limit),
        mix=mix,
        batch_invariant=terms.batch_invariant,
        reverted=reverted,
        pinned=tuple(sorted(key for key, verdict in known.verdicts.items() if verdict.note == PINNED)),
        left_out=outcome.left_out,
        run=Path(session.run_path).name if session.run_path else "",
    )
    return Planned(plan, choices, known, allowed)


def _choose(runner: ModelRunner, known: Knowledge, allowed: Room, terms: Terms) -> tuple[Room, Choices]:
    """The plan, and the room that it was made for: original weights stay where there is no memory to compare both."""
    choices = make(known, allowed, invariant=terms.batch_invariant)
    free = free_bytes(runner)
    if choices.sources and choices.prepared > BOTH_SHARE * free:
        logger.warning(
            "preparing %.2f GB beside the model's weights, to compare both, does not fit into the %.2f GB that are free: "
            "no original weights are released",
            choices.prepared / 1e9,
            free / 1e9,
        )
        allowed = Room(allowed.bytes, release=False)
        choices = make(known, allowed, invariant=terms.batch_invariant)
    return allowed, choices


def _check_settled(known: Knowledge, session: Session) -> None:
    """For one result whatever the batch: ops that are left out keep the default, and of the others each family is known.

    Raises UsageError that names a family without a verdict.
    """
    named = {family.partition("|")[0] for names in known.families.values() for family in names}
    known.forget({op for op in named if not session.selection.takes_op(op)})
    for family in sorted({family for names in known.families.values() for family in names}):
        op = family.partition("|")[0]
        if session.selection.takes_op(op) and not any(key.startswith(f"{family}|") for key in known.members):
            raise UsageError(
                f"op {op}, {family}: nothing is known of it, so that it cannot give one result whatever the batch; "
                f"give a larger --budget; {REMEDY}"
            )
