"""Replicas: the layers over which a race rotates, so that caches are as cold as in service and every tactic meets the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tunebook.devices import Device, DeviceLostError
from tunebook.dispatch import Binding, tensor_bytes
from tunebook.errors import OpError
from tunebook.measure import MeasurementPolicy
from tunebook.records import Problem, Tactic

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
    return [layers[place] for place in spread(len(layers), count)]


def spread(length: int, count: int) -> list[int]:
    """So many places, evenly spread over so many, the first among them."""
    return [int(i * length / count) for i in range(count)]


@dataclass(frozen=True)
class Conditions:
    """How every tactic of a problem is called: what makes its weights cold before a turn, and what records a call as a graph.

    None of the two where layers are so many, or so large, that each finds its weights cold anyway; and where calls are eager.
    `timed` times them where the device's own events do.
    """

    flush: Callable[[], None] | None = None
    capture: Callable[[Callable[[], Any]], Callable[[], Any]] | None = None
    timed: Callable[[Sequence[Callable[[], Any]], Callable[[], Any] | None], float] | None = None


#: Called from Python, one after the other, on whatever the rotation left in the caches.
PLAIN = Conditions()


def conditions(
    problem: Problem,
    layers: Sequence[Binding],
    inputs: Sequence[tuple[Any, ...]],
    device: Device,
    *,
    narrowed: bool = False,
) -> Conditions:
    """The conditions of service for `problem`, over all the layers that are rotated over, with their inputs.

    Weights are cold in service: the rest of the model came between two calls of a layer. Where all weights of the rotation
    together are less than a flush of the device, they would stay in a cache, so they are flushed. Inputs are warm in
    service, the op before has just written them: they are read once after each flush. An op without weights needs none.

    narrowed: memory allows these layers only, fewer than leave nothing in the caches. An op may read a small part of its
    weights (those of the experts that are chosen), so that they are flushed whatever they take in all.

    Raises UsageError for a policy that the device cannot follow.
    """
    policy = MeasurementPolicy.of(problem.policy, device)
    captured = policy is MeasurementPolicy.CAPTURED
    capture = device.capture if captured else None
    # By the device's own events, what launching costs is left out, as in a served graph.
    timed = getattr(device, "seconds", None) if captured else None
    weights, flush = tensor_bytes([layer.constants for layer in layers]), device.flush()
    if not (weights and flush.bytes) or (weights >= flush.bytes and not narrowed):
        return Conditions(None, capture, timed)
    live = [value for args in inputs for value in args if hasattr(value, "untyped_storage")]

    def cold() -> None:
        flush()
        for value in live:
            value.clone()

    return Conditions(cold, capture, timed)


@dataclass(frozen=True)
class Contender:
    """A tactic bound to each replica's weights and input: what `measure` calls a candidate."""

    tactic: Tactic
    layout: str
    bytes: int
    calls: tuple[Callable[[], Any], ...]
    flush: Callable[[], None] | None = None
    timed: Callable[[Sequence[Callable[[], Any]], Callable[[], Any] | None], float] | None = None

    @property
    def name(self) -> str:
        return self.tactic.name


def contender(
    tactic: Tactic,
    layers: Sequence[Binding],
    inputs: Sequence[tuple[Any, ...]],
    conditions: Conditions = PLAIN,
) -> Contender:
    """Bind `tactic`, preparing weights where it needs them, and capture its calls where the conditions say so.

    Raises whatever the runner's `prepare` raises, and OpError for a tactic that cannot be captured.
    """
    calls = []
    for position, layer in enumerate(layers):
        call = _call(layer.bound(tactic), inputs[position % len(inputs)])
        if conditions.capture is not None:
            try:
                call = conditions.capture(call)
            except DeviceLostError:
                raise  # nothing can be measured any more: no fault of being captured
            except Exception as error:
                raise OpError(
                    f"op {layer.spec.name}: {tactic.name} cannot be captured as a graph "
                    f"({type(error).__name__}: {error}); it can be measured with the policy 'eager'"
                ) from error
        calls.append(call)
    runner = layers[0].spec.runner_of(tactic)
    layout = runner.layout_of(tactic) if runner else ""
    held = layers[0].prepared.bytes_of(layout) if layout else 0
    return Contender(tactic, layout, held, tuple(calls), conditions.flush, conditions.timed)


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], Any]:
    if len(args) == 1:
        (only,) = args
        return lambda: function(only)
    return lambda: function(*args)
