"""The terms of a plan: its memory limit, the mix that it is weighted by, and whether the batch may change results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunebook.dispatch import is_released, tensor_bytes
from tunebook.engine._mix import EQUAL, parse_mix
from tunebook.engine._phases import PhaseRequest
from tunebook.envs import envs
from tunebook.errors import UsageError
from tunebook.plan import FREE_SHARE, REMEDY, MemoryLimit, Room
from tunebook.records import Mix, Plan
from tunebook.tuner import Selection, available_runners

if TYPE_CHECKING:
    from tunebook.engine._runner import ModelRunner


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What was asked for; what was not is as the cached plan has it. `mix` counts only where `mix_given`."""

    limit: MemoryLimit | None = None
    mix: Mix | None = None
    mix_given: bool = False
    batch_invariant: bool = False

    def limit_of(self, former: Plan | None) -> MemoryLimit:
        """The memory limit: as asked for, else the cached plan's, else the default."""
        if self.limit is not None:
            return self.limit
        with suppress(UsageError):  # a cache says what somebody wrote
            if former is not None and former.limit:
                return MemoryLimit.parse(former.limit)
        return MemoryLimit()

    def mix_of(self, former: Plan | None) -> Mix | None:
        """The mix: as asked for, else the cached plan's, else each phase alike."""
        return self.mix if self.mix_given else former.mix if former is not None else None

    def differs(self, plan: Plan) -> str:
        """In words, how what is asked for differs from what a plan was made for; empty where it does not."""
        found = []
        if self.limit is not None and str(self.limit) != plan.limit:
            found.append(f"a memory limit of {self.limit} instead of {plan.limit or 'none'}")
        if self.mix_given and self.mix != plan.mix:
            found.append(f"the mix {self.mix or EQUAL} instead of {plan.mix or EQUAL}")
        return " and ".join(found)

    def check_phases(self, wanted: Sequence[PhaseRequest]) -> None:
        """Raise UsageError for a mix that counts steps of a phase which is not tuned."""
        known = [str(request) for request in wanted]
        for name in self.mix.steps if self.mix is not None else ():
            if name not in known:
                raise UsageError(f"mix: {name} is not among the phases that are tuned: {', '.join(known)}")


def terms_of(
    runner: ModelRunner,
    memory_limit: str | None,
    mix: str | Path | Mapping[str, float] | None,
    batch_invariant: bool,
    selection: Selection | None,
) -> Terms:
    """The terms as they are given, TUNEBOOK_MEMORY_LIMIT among them.

    Raises UsageError for what cannot be used, for a limit below the model's own weights, and, where one result whatever the
    batch is asked for, for an op that has no runner with it.
    """
    limit: MemoryLimit | None = None
    if memory_limit is not None:
        limit = MemoryLimit.parse(memory_limit, "memory limit")
    elif (text := envs.TUNEBOOK_MEMORY_LIMIT.get()) is not None:
        limit = MemoryLimit.parse(text, "TUNEBOOK_MEMORY_LIMIT")
    if limit is not None:
        limit.beside(unattached_bytes(runner))
    if batch_invariant:
        _check_runners(runner, selection or Selection())
    return Terms(
        limit=limit,
        mix=None if mix is None else parse_mix(mix, runner.loaded.fingerprint),
        mix_given=mix is not None,
        batch_invariant=batch_invariant,
    )


def _check_runners(runner: ModelRunner, selection: Selection) -> None:
    for spec in {b.spec.name: b.spec for b in runner.attachment.bindings.values()}.values():
        if not selection.takes_op(spec.name):
            continue
        offered = [one for name, one in available_runners(spec).items() if selection.takes_runner(name)]
        if not any(one.bits is not None for one in offered):
            raise UsageError(f"op {spec.name}: no runner here promises one result whatever the batch; {REMEDY}")


def unattached_bytes(runner: ModelRunner) -> int:
    """What the model's own weights take, or would if none were released."""
    kept = [parameter for parameter in runner.loaded.model.parameters() if not is_released(parameter)]
    return tensor_bytes(kept) + runner.attachment.released_bytes


def room(runner: ModelRunner, limit: MemoryLimit) -> Room:
    """What a plan may hold beside the unattached model's weights: the limit allows it, and memory is free."""
    return Room(int(min(limit.beside(unattached_bytes(runner)), FREE_SHARE * free_bytes(runner))))


def free_bytes(runner: ModelRunner) -> int:
    """The memory that is free, or would be without prepared weights and with all original ones."""
    attachment = runner.attachment
    return runner.device.free_memory() + attachment.prepared_bytes - attachment.released_bytes
