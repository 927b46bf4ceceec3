"""Replicas: the layers over which a race rotates, so that caches are as cold as in service and every tactic meets the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tunebook.dispatch import Binding, tensor_bytes
from tunebook.records import Tactic

#: Rotating over this many bytes of weights leaves nothing in a core's caches; more would only cost preparation time.
ROTATION_BYTES = 128 << 20
MAX_REPLICAS = 32
#: Fewer layers than this would not show how differently they are routed.
MIN_REPLICAS = 6


def replicas(layers: Sequence[Binding]) -> list[Binding]:
    """The layers to rotate over, evenly spread through the model: each meets its own live input."""
    if len(layers) <= 1:
        return list(layers)
    each = max(1, max(tensor_bytes(layer.constants) for layer in layers))
    count = min(len(layers), MAX_REPLICAS, max(MIN_REPLICAS, -(-ROTATION_BYTES // each)))
    step = len(layers) / count
    return [layers[int(i * step)] for i in range(count)]


@dataclass(frozen=True)
class Contender:
    """A tactic bound to each replica's weights and input: what `measure` calls a candidate."""

    tactic: Tactic
    layout: str
    bytes: int
    calls: tuple[Callable[[], Any], ...]

    @property
    def name(self) -> str:
        return self.tactic.name


def contender(tactic: Tactic, layers: Sequence[Binding], inputs: Sequence[tuple[Any, ...]]) -> Contender:
    """Bind `tactic`, preparing weights where it needs them. Raises whatever the runner's `prepare` raises."""
    calls = []
    for position, layer in enumerate(layers):
        calls.append(_call(layer.bound(tactic), inputs[position % len(inputs)]))
    runner = layers[0].spec.runner_of(tactic)
    layout = runner.layout_of(tactic) if runner else ""
    return Contender(tactic, layout, layers[0].prepared.bytes_of(layout) if layout else 0, tuple(calls))


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], Any]:
    if len(args) == 1:
        (only,) = args
        return lambda: function(only)
    return lambda: function(*args)
