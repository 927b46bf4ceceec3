"""A whole model on several ranks: equal plans from equal numbers, and a proof by one of them that counts for all."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from tunebook.devices import Device
from tunebook.engine._phases import PhaseRequest
from tunebook.engine._proof import Planned
from tunebook.engine._report import TuneReport
from tunebook.engine._terms import Terms
from tunebook.engine._warm import choices_of
from tunebook.plan import Choices, install, prepare
from tunebook.records import Plan
from tunebook.tuner import Session

if TYPE_CHECKING:
    from tunebook.engine._runner import ModelRunner

logger = logging.getLogger("tunebook.engine")


class _EqualMemory:
    """A device with as much free memory as the rank that has least."""

    def __init__(self, device: Device, free: int) -> None:
        self._device = device
        self._free = free

    def free_memory(self) -> int:
        return self._free

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)


def options_of(
    runner: ModelRunner, terms: Terms, wanted: Sequence[PhaseRequest], budget_s: float | None, isolate: str
) -> dict[str, object]:
    """What the ranks of one model must be asked for alike."""
    return {
        "model": f"{runner.name} ({runner.loaded.fingerprint})",
        "budget_s": budget_s,
        "wanted": ", ".join(map(str, wanted)),
        "memory_limit": terms.limit,
        "mix": terms.mix if terms.mix_given else None,
        "batch_invariant": terms.batch_invariant,
        "isolate": isolate,
    }


def alike(runner: ModelRunner, session: Session) -> ModelRunner:
    """The runner as plans are made for it: of several ranks, with the memory that all of them have."""
    if session.ranks is None:
        return runner
    view = copy.copy(runner)
    view.device = cast("Device", _EqualMemory(runner.device, session.ranks.least(runner.device.free_memory())))
    return view


def proven(
    runner: ModelRunner,
    session: Session,
    planned: Planned,
    report: TuneReport,
    prove: Callable[[], tuple[Plan, Choices]],
) -> tuple[Plan, Choices]:
    """What `prove` gives, a plan with what the model says of it and what serves: of several ranks the leader proves it, alone.

    The others wait, so that they do not disturb it; then all serve what it found. A model with ops whose calls communicate
    cannot be stepped by one rank: its plan serves unverified.
    """
    ranks = session.ranks
    if ranks is None:
        return prove()
    plan, choices = planned.plan, planned.choices
    if ranks.communicates:
        logger.warning(
            "the plan for %s serves unverified: calls of the model communicate, and one rank alone cannot run it",
            runner.name,
        )
        report.seconds["verify"] = 0.0
        return plan, choices
    ranks.enter("proving the plan" if ranks.leads else "waiting for the proof of the plan")
    if ranks.leads:
        plan, choices = prove()
    told = ranks.tell("proof", plan, Plan)
    if not ranks.leads and (told.tactics, told.layouts) != (plan.tactics, plan.layouts):
        choices = choices_of(told)
        install(runner.scope, choices, planned.known.families)
        prepare(choices, planned.known.families)
    ranks.enter("planning")
    report.seconds.setdefault("verify", 0.0)
    return told, choices
