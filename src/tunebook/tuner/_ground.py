"""The ground of a race: the layers to rotate over, an input for each, and the right outputs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tunebook.devices import Device
from tunebook.dispatch import Binding, tensor_bytes
from tunebook.measure import Reference
from tunebook.records import Tactic
from tunebook.tuner._replicas import Conditions, Contender, conditions, contender, spread
from tunebook.tuner._tasks import Task


@dataclass(frozen=True)
class Ground:
    """What every tactic of a problem meets: the layers to rotate over, an input for each, and the right outputs.

    `narrowed` where memory allows fewer layers than there should be.
    """

    task: Task
    layers: Sequence[Binding]
    inputs: Sequence[tuple[Any, ...]]
    device: Device
    rng: random.Random
    narrowed: bool = False

    @property
    def first(self) -> Binding:
        return self.layers[0]

    @cached_property
    def reference(self) -> Reference:
        """What the default gives; whatever it raises is raised."""
        return Reference.of(self.task.cases(self.rng, self.first, self.device), self.first.constants)

    @cached_property
    def input_bytes(self) -> int:
        return tensor_bytes(self.inputs)

    def on(self, count: int) -> Ground:
        """The same on so many of its layers, the first among them."""
        if count == len(self.layers):
            return self
        places = spread(len(self.layers), count)
        layers, inputs = [self.layers[place] for place in places], [self.inputs[place] for place in places]
        return Ground(self.task, layers, inputs, self.device, self.rng, narrowed=True)

    def contender(self, tactic: Tactic) -> Contender:
        """A tactic on every layer, as in service. Raises whatever the runner's `prepare` raises."""
        return contender(tactic, self.layers, self.inputs, self._together)

    def alone(self, tactic: Tactic) -> Contender:
        """A tactic on the first layer alone: before it is known to be worth more memory."""
        return contender(tactic, self.layers[:1], self.inputs[:1], self.on_first)

    @cached_property
    def _together(self) -> Conditions:
        return conditions(self.task.problem, self.layers, self.inputs, self.device, narrowed=self.narrowed)

    @cached_property
    def on_first(self) -> Conditions:
        return conditions(self.task.problem, self.layers[:1], self.inputs[:1], self.device)
