"""Entering a problem: which tactics fit the memory, prepare, give the default's output, and are worth a race."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tunebook.devices import Device
from tunebook.dispatch import Binding, tensor_bytes
from tunebook.errors import OpError
from tunebook.measure import (
    Budget,
    Finding,
    Passed,
    Reference,
    check,
    failure,
    first_look,
    hopeless,
    refuse_for_memory,
    sample,
)
from tunebook.records import DEFAULT, Tactic
from tunebook.search import FINALISTS, calls_needed, halving
from tunebook.tuner._held import Held
from tunebook.tuner._lineup import Lineup, at_rest
from tunebook.tuner._replicas import Conditions, Contender, conditions, contender
from tunebook.tuner._tasks import Task

#: Checking, first looks and halving may take this share of a problem's time; tactics beyond it are not reached.
ENTRY_SHARE = 0.6
#: Halving that takes longer than was foreseen may go on until this share; then the best by then race.
HALVING_SHARE = 0.8
#: One layer's prepared weights may take this share of the memory that is free.
PREPARE_SHARE = 0.25
#: The other layers' weights, prepared for one tactic more in a race, may take this share of the memory that is free.
RACE_SHARE = 0.5


@dataclass(frozen=True)
class Ground:
    """What every tactic of a problem meets: the layers to rotate over, an input for each, and the right outputs."""

    task: Task
    layers: Sequence[Binding]
    inputs: Sequence[tuple[Any, ...]]
    device: Device
    rng: random.Random

    @property
    def first(self) -> Binding:
        return self.layers[0]

    @cached_property
    def reference(self) -> Reference:
        """What the default gives; whatever it raises is raised."""
        return Reference.of(self.task.cases(self.rng, self.first, self.device), self.first.constants)

    def contender(self, tactic: Tactic) -> Contender:
        """A tactic on every layer, as in service. Raises whatever the runner's `prepare` raises."""
        return contender(tactic, self.layers, self.inputs, self._together)

    def alone(self, tactic: Tactic) -> Contender:
        """A tactic on the first layer alone: before it is known to be worth more memory."""
        return contender(tactic, self.layers[:1], self.inputs[:1], self.on_first)

    @cached_property
    def _together(self) -> Conditions:
        return conditions(self.task.problem, self.layers, self.inputs, self.device)

    @cached_property
    def on_first(self) -> Conditions:
        return conditions(self.task.problem, self.layers[:1], self.inputs[:1], self.device)


class Entrance:
    """Brings tactics to the start of a race, on one device."""

    def __init__(self, device: Device, rng: random.Random, memory_limit: int, held: Held) -> None:
        self.device = device
        self.rng = rng
        self.memory_limit = memory_limit
        self.held = held

    def enter(self, lineup: Lineup, ground: Ground, budget: Budget) -> None:
        """Try tactics while there is time, at least one, and line up those that are worth a race.

        The sample of a large space grows for as long as the time also holds the halving of what was found so far.
        Weights are prepared on the first layer alone, and on the others for those only that race. Called again, it goes on
        with the tactics that were not reached.
        """
        self.held.watch(ground.layers)
        if DEFAULT.name not in lineup.looks:
            lineup.looks[DEFAULT.name] = [first_look(ground.alone(DEFAULT).calls[0], self.device)]
        emptying = self._flush_seconds(ground) if lineup.large else 0.0
        tried = False
        while lineup.seen < lineup.space:
            ahead = _halving_seconds(lineup, emptying) if lineup.large else 0.0
            if tried and budget.spent() + ahead > ENTRY_SHARE * budget.seconds:
                break
            self._try(next(lineup.order), lineup, ground)
            tried = True
            if lineup.large and self.held.over:
                self.held.trim([ground.first], self._layouts_that_fit(lineup))
        if lineup.large:
            self._halve(lineup, ground, budget)
        self._screen(lineup, ground)
        self.line_up(lineup, ground)

    def line_up(self, lineup: Lineup, ground: Ground) -> None:
        """Bind the default and all that are admitted to every layer; the best first looks have the memory first."""
        needed = {candidate.layout for candidate in lineup.admitted.values()}
        lineup.contenders = [ground.contender(DEFAULT)]
        for candidate in sorted(lineup.admitted.values(), key=lambda c: lineup.look(c.name)):
            self.held.trim(ground.layers, needed)
            lacking = sum(not layer.prepared.bytes_of(candidate.layout) for layer in ground.layers[1:])
            if candidate.bytes * lacking > RACE_SHARE * self.device.free_memory():
                size = candidate.bytes * lacking / 1e9
                detail = f"preparing weights on {lacking} more layers needs {size:.2f} GB, which is above the limit"
                lineup.reject(candidate.tactic, Finding("memory", detail))
                continue
            try:
                lineup.contenders.append(ground.contender(candidate.tactic))
            except Exception as error:  # noqa: BLE001 - a runner's own `prepare` on another layer's weights
                lineup.reject(candidate.tactic, failure(error, "preparing weights"))

    def _try(self, tactic: Tactic, lineup: Lineup, ground: Ground) -> None:
        lineup.seen += 1
        outcome = self._admit(tactic, ground)
        if isinstance(outcome, Finding):
            lineup.reject(tactic, outcome)
            return
        candidate, passed = outcome
        lineup.admitted[tactic.name] = at_rest(candidate)
        lineup.errors[tactic.name] = passed.error
        lineup.looks[tactic.name] = [passed.seconds]
        # In a large space half of them will leave by their looks, and a check is no fair one. But far off is far off.
        if lineup.large and not hopeless(passed.seconds, 2 * lineup.best):
            self._look(lineup, ground, tactic)

    def _admit(self, tactic: Tactic, ground: Ground) -> Finding | tuple[Contender, Passed]:
        first, reference = ground.first, ground.reference
        runner = ground.task.spec.runner_of(tactic)
        if runner is None:
            return Finding("constraints", "the op does not offer it")
        if runner.workspace is not None:
            sized = _partial(runner.workspace, tactic)
            for case in reference.cases:
                refusal = refuse_for_memory(sized, (*case.args, *first.constants), self.memory_limit)
                if refusal is not None:
                    return refusal
        needed = tensor_bytes(first.constants) if runner.prepare is not None else 0
        if needed > min(self.memory_limit, PREPARE_SHARE * self.device.free_memory()):
            return Finding("memory", f"preparing weights needs about {needed / 1e9:.2f} GB, which is above the limit")
        try:
            call = first.bound(tactic)
        except Exception as error:  # noqa: BLE001 - a runner's own `prepare`; its failure is the finding
            return failure(error, "preparing weights")
        found = check(call, reference, self.device)
        if isinstance(found, Finding):
            return found
        try:
            return ground.alone(tactic), found
        except OpError as error:  # it cannot be called as in service
            return Finding("constraints", str(error))

    def _look(self, lineup: Lineup, ground: Ground, tactic: Tactic) -> None:
        """A fair look, which replaces that of the check where it is less."""
        try:
            look = first_look(ground.alone(tactic).calls[0], self.device)
        except Exception as error:  # noqa: BLE001 - a tactic that passed its check and fails now
            lineup.reject(tactic, failure(error, "timed after its check"))
            return
        lineup.looks[tactic.name] = [min(look, lineup.look(tactic.name))]

    def _flush_seconds(self, ground: Ground) -> float:
        """What making the caches cold costs before each call of halving."""
        flush = ground.on_first.flush
        start = self.device.clock()
        if flush is not None:
            flush()
        return self.device.clock() - start

    def _screen(self, lineup: Lineup, ground: Ground) -> None:
        """Screen out the hopeless; a check is no fair measure, so that nobody leaves without a look of its own."""
        for candidate in list(lineup.admitted.values()):
            if not lineup.large and hopeless(lineup.look(candidate.name), lineup.best):
                self._look(lineup, ground, candidate.tactic)
        for name in [name for name in lineup.admitted if hopeless(lineup.look(name), lineup.best)]:
            lineup.screen(name)

    def _halve(self, lineup: Lineup, ground: Ground, budget: Budget) -> None:
        """Of a large space's sample, leave the best few; the incumbent races in any case."""
        names = sorted((name for name in lineup.admitted if name != lineup.incumbent), key=lineup.look)
        fitting = self._layouts_that_fit(lineup)
        if any(lineup.admitted[name].layout not in fitting for name in names[: math.ceil(len(names) / 2)]):
            names = [name for name in names if lineup.admitted[name].layout in fitting]
        bound: dict[str, Contender] = {}

        def measure(name: str) -> float | None:
            candidate = lineup.admitted[name]
            try:
                if name not in bound:
                    bound[name] = ground.alone(candidate.tactic)
                seconds = max(sample(bound[name], self.device, 1, 0), 1e-9)
            except Exception as error:  # noqa: BLE001 - a tactic that passed its check and fails now
                lineup.reject(candidate.tactic, failure(error, "timed after its check"))
                return None
            lineup.looks[name].append(seconds)
            return seconds

        found = halving(
            {name: lineup.look(name) for name in names},
            measure,
            self.rng,
            stop=lambda: budget.spent() > HALVING_SHARE * budget.seconds,
        )
        lineup.halved = found.complete
        for name in [name for name in lineup.admitted if name not in found.survivors and name != lineup.incumbent]:
            lineup.screen(name)
        bound.clear()
        self.held.trim([ground.first], {candidate.layout for candidate in lineup.admitted.values()})

    def _layouts_that_fit(self, lineup: Lineup) -> set[str]:
        """The layouts of the better half by looks, as far as they fit the memory together; the incumbent's in any case."""
        ordered = sorted(lineup.admitted, key=lambda name: (name != lineup.incumbent, lineup.look(name)))
        kept: set[str] = {""}
        held = 0
        for name in ordered[: math.ceil(len(ordered) / 2)]:
            candidate = lineup.admitted[name]
            if candidate.layout not in kept and held + candidate.bytes > self.held.limit and len(kept) > 1:
                continue
            held += candidate.bytes if candidate.layout not in kept else 0
            kept.add(candidate.layout)
        return kept


def _halving_seconds(lineup: Lineup, emptying: float) -> float:
    """What it would take to halve those that are admitted by now: calls that take about the median look."""
    if len(lineup.admitted) <= FINALISTS:
        return 0.0
    typical = statistics.median(lineup.look(name) for name in lineup.admitted)
    return calls_needed(len(lineup.admitted)) * (typical + emptying)


def _partial(workspace: Callable[..., int], tactic: Tactic) -> Callable[..., int]:
    return lambda *args: workspace(*args, **tactic.kwargs)
