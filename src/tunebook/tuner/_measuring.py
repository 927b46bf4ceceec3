"""Measuring what is to be measured: how much memory that may take, where first runs take place, and one budget for all of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunebook.devices import Device, give_back
from tunebook.dispatch import tensor_bytes
from tunebook.envs import envs
from tunebook.measure import Budget, Effort, memory_limit
from tunebook.records import Verdict
from tunebook.tuner._collect import Collection
from tunebook.tuner._entrants import Selection
from tunebook.tuner._held import Held, held_bytes
from tunebook.tuner._isolation import FirstRuns, Isolate, Tally
from tunebook.tuner._passes import Passes, Progress, Report, Todo
from tunebook.tuner._run_record import RunRecord
from tunebook.tuner._tune import ProblemTuner

if TYPE_CHECKING:
    from tunebook.tuner._ranks import Ranks


@dataclass
class Measuring:
    """How a session measures. What it measures goes to `record`, line by line; `first_runs` counts what workers did."""

    device: Device
    rng: random.Random
    effort: Effort
    selection: Selection
    isolate: Isolate
    record: RunRecord
    continuing: bool
    first_runs: Tally

    def __post_init__(self) -> None:
        self._passes: Passes | None = None

    def settle(
        self,
        todo: Sequence[Todo],
        collection: Collection,
        standing: dict[str, Verdict],
        budget_s: float | None,
        report: Callable[[Report], None],
        progress: Progress | None,
        ranks: Ranks | None,
    ) -> None:
        """Settle all of `todo`, each as soon as it is in a `report`; `standing` are the verdicts that stand already.

        Of several `ranks` each measures in its turns.
        """
        if not todo:
            return
        writer = self.record.writer()
        layers = [layer.constants for family in collection.families.values() for layer in family.layers]
        inputs = [observation.inputs for observation in collection.observations]
        give_back()
        free, asked = self.device.free_memory(), envs.TUNEBOOK_MEMORY_LIMIT_GB.get()
        held = Held(held_bytes(memory_limit(free, None), tensor_bytes(layers)), tensor_bytes(inputs))
        limit = held.room(0) if asked is None else memory_limit(free, asked)
        first_runs = FirstRuns(self.isolate, self.device, limit, self.first_runs)
        tuner = ProblemTuner(
            self.device if ranks is None else ranks.device,
            self.rng,
            memory_limit=limit,
            held=held,
            effort=self.effort,
            run=writer.path.name if writer.path else "",
            journal=self.record.journal,
            first_runs=first_runs,
        )
        budget = Budget(budget_s, self.device)
        if ranks is not None:
            tuner, budget = ranks.in_turns(tuner, budget_s)
        self._passes = Passes(tuner, budget, self.selection, report, progress, continuing=self.continuing)
        try:
            first_runs.expect({item.task.spec.name: item.task.spec for item in todo}.values())
            self._passes.run(list(todo), standing)
        finally:
            first_runs.close()
        self._passes = None

    def by_now(self) -> Report | None:
        """What may be said of the race that an interruption ended, if that is anything new."""
        return self._passes.by_now() if self._passes is not None else None
