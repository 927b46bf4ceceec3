"""Collection: the dummy run's calls, noted by problem: how often, how long, on which layers, with which inputs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tunebook.devices import Device
from tunebook.dispatch import Binding, Scope, tensor_bytes
from tunebook.errors import OpError
from tunebook.records import Problem

logger = logging.getLogger("tunebook.tuner")

#: Live inputs are kept from this many layers a problem: routing is skewed differently in each.
INPUTS_PER_PROBLEM = 64
#: All live inputs together stay below this; beyond it a problem's inputs are drawn from its family's kept ones.
INPUT_BYTES = 512 << 20


@dataclass
class Observation:
    """One problem as the dummy run met it; `inputs` are live ones, by the identity of the layer's binding."""

    problem: Problem
    calls: int = 0
    seconds: float = 0.0
    sizes: Counter[tuple[tuple[str, int], ...]] = field(default_factory=Counter)
    inputs: dict[int, tuple[Any, ...]] = field(default_factory=dict)


@dataclass
class Family:
    """The problems that differ only in their dynamic sizes, and the bindings (layers) that share them."""

    name: str
    bindings: dict[int, Binding] = field(default_factory=dict)
    observed: dict[str, Observation] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[Binding, ...]:
        return tuple(self.bindings.values())

    @property
    def spec(self) -> Any:
        return self.layers[0].spec

    def largest(self) -> dict[str, int]:
        """The largest size seen of each dynamic dimension."""
        seen: dict[str, int] = {}
        for observation in self.observed.values():
            for sizes in observation.sizes:
                for name, size in sizes:
                    seen[name] = max(seen.get(name, 0), size)
        return seen


class Collection:
    """A `dispatch.Collector`: serves the default and notes the call."""

    def __init__(self, device: Device, input_bytes: int = INPUT_BYTES) -> None:
        self.device = device
        self.families: dict[str, Family] = {}
        self.skipped: Counter[str] = Counter()
        self.scopes: dict[int, Scope] = {}
        self._input_bytes = input_bytes
        self._held_bytes = 0

    def __bool__(self) -> bool:
        return bool(self.families)

    @property
    def observations(self) -> tuple[Observation, ...]:
        return tuple(o for family in self.families.values() for o in family.observed.values())

    def note(self, binding: Binding, args: tuple[Any, ...]) -> Callable[..., Any]:
        """What serves this call: the default, timed."""
        try:
            description = binding.spec.shape.describe((*args, *binding.constants))
            problem = binding.spec.shape.problem(description, binding.scope.measurement)
            self._refuse_elsewhere((*args, *binding.constants))
        except (OpError, AttributeError, TypeError, IndexError, ValueError) as error:
            if not self.skipped[str(error)]:
                logger.warning("a call of op %s is not tuned: %s", binding.spec.name, error)
            self.skipped[str(error)] += 1
            return binding.default
        if problem is None:
            self.skipped[f"op {binding.spec.name}: no bucket for this size"] += 1
            return binding.default
        family = self._family(binding, problem)
        observation = family.observed.setdefault(problem.key, Observation(problem))
        observation.sizes[tuple(description.sizes.items())] += 1
        self._keep_inputs(family, observation, binding, args)

        def timed(*call_args: Any) -> Any:
            self.device.synchronize()
            start = self.device.clock()
            result = binding.default(*call_args)
            self.device.synchronize()
            observation.seconds += self.device.clock() - start
            observation.calls += 1
            return result

        return timed

    def _refuse_elsewhere(self, values: Iterable[Any]) -> None:
        """Calls on an accelerator return before they have ended: the CPU's clock would tell nothing of them."""
        measured = "the CPU" if self.device.name == "cpu" else self.device.name
        for value in values:
            if hasattr(value, "untyped_storage") and not value.is_cpu and str(value.device) != self.device.name:
                raise OpError(
                    f"a tensor is on {value.device}, and {measured} is measured; give autotune(device={str(value.device)!r})"
                )

    def _family(self, binding: Binding, problem: Problem) -> Family:
        """The family of a problem. Layers that are measured under another policy are another one, whatever their shape."""
        name = problem.family if problem.policy == "eager" else f"{problem.family}|{problem.policy}"
        family = self.families.setdefault(name, Family(problem.family))
        family.bindings.setdefault(id(binding), binding)
        self.scopes.setdefault(id(binding.scope), binding.scope)
        return family

    def _keep_inputs(self, family: Family, observation: Observation, binding: Binding, args: tuple[Any, ...]) -> None:
        if id(binding) in observation.inputs or len(observation.inputs) >= INPUTS_PER_PROBLEM:
            return
        needed = tensor_bytes(args)
        first = not any(other.inputs for other in family.observed.values())
        if first or self._held_bytes + needed <= self._input_bytes:
            observation.inputs[id(binding)] = tuple(_copy(value) for value in args)
            self._held_bytes += needed


def _copy(value: Any) -> Any:
    """A contiguous copy: what tactics are given in service too."""
    return value.detach().clone().contiguous() if hasattr(value, "untyped_storage") else value
