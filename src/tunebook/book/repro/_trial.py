"""Setting a trial up: inputs made again, weights in the tactic's layout, the output held against the default's."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunebook.devices import Device, device_of
from tunebook.dispatch import Binding, Scope, tensor_bytes
from tunebook.envs import envs
from tunebook.errors import OpError
from tunebook.measure import (
    Case,
    Finding,
    MeasurementPolicy,
    Passed,
    Reference,
    check,
    failure,
    memory_limit,
    refuse_for_memory,
)
from tunebook.ops import OpSpec, dtype_name, example_inputs
from tunebook.records import DEFAULT, Problem, Scalar, Tactic

#: Layers take turns until their weights are this much, so that each call finds its own cold, as in a model and in a tuning.
ROTATION_BYTES = 128 << 20
LEAST_LAYERS, MOST_LAYERS = 6, 512
#: All layers together take at most this share of the memory that is free.
MEMORY_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A tactic bound to the weights and the inputs of some layers: what `measure` calls a candidate.

    `args` shows the arguments of the first layer by name (``bf16[16,576]``, or the value); `weights` are the bytes of all
    layers' constants, `prepared` those of their copies in `layout`; `cold` tells whether a call finds its weights cold.
    `found` is what the check said (None for the default, which is what is right).
    """

    name: str
    problem: Problem
    device: Device
    args: Mapping[str, str]
    calls: tuple[Callable[[], Any], ...]
    weights: int
    prepared: int
    layout: str
    cold: bool
    found: Finding | Passed | None

    #: Nothing is done between calls: a profiler shall see the tactic alone.
    flush: Callable[[], None] | None = None

    @property
    def bytes(self) -> int:
        return self.prepared


def set_up(
    spec: OpSpec,
    problem: Problem,
    tactic: Tactic,
    sizes: Mapping[str, int],
    options: Mapping[str, Scalar],
    *,
    seed: int,
    layers: int | None = None,
    lone: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Trial:
    """Make the inputs, prepare the weights, check the output once.

    layers: how many take turns; by default enough for cold weights, or as memory allows. `lone`: calls outside a model have
            one layer where there are no weights.

    A wrong output is a finding. Raises OpError where there is nothing to run: the op makes no inputs or is a collective, the
    default fails on them, the tactic fails or would take too much memory; UsageError for a policy that the device cannot follow.
    """
    import torch

    if spec.communicates:
        raise OpError(
            f"op {spec.name} is a collective, which returns only when all ranks call it; profile the ranks themselves"
        )
    where = f"{tactic.name} on {problem}"

    def make(seed: int) -> tuple[Any, ...]:
        return example_inputs(spec, problem, sizes, seed, **options)

    with torch.inference_mode():
        first = make(seed)
        device = _device_of(first)
        captured = MeasurementPolicy.of(problem.policy, device) is MeasurementPolicy.CAPTURED
        dynamic, constants = spec.split(first)
        _refuse(spec, tactic, first, device, where)
        scope = Scope("repro", device=device.name.partition(":")[0])
        layer = Binding(spec, constants, scope=scope)
        call, found = _checked(spec, tactic, layer, dynamic, device, where)
        weights, each = tensor_bytes(constants), max(1, tensor_bytes([constants, dynamic]))
        runner = spec.runner_of(tactic)
        layout = runner.layout_of(tactic) if runner is not None else ""
        prepared = layer.prepared.bytes_of(layout) if layout else 0
        count = layers or _usual(weights, each + prepared, device, lone=lone)
        bound, inputs, kept = [call], [dynamic], [constants]
        for number in range(1, count):
            progress(number, count, f"layer {number + 1} of {count}")
            if number < LEAST_LAYERS:
                others, own = spec.split(make(seed + number))
                inputs.append(others)
                kept.append(own)
            else:
                own = tuple(_copy(value) for value in kept[number % LEAST_LAYERS])
            try:
                bound.append(Binding(spec, own, scope=scope).bound(tactic))
            except Exception as error:
                raise OpError(f"{where}: {failure(error, 'preparing weights').detail}") from error
        progress(count, count, "")
        calls = [_filled(one, inputs[number % len(inputs)]) for number, one in enumerate(bound)]
        if captured:
            calls = [_captured(one, device, where) for one in calls]
    cache = device.flush().bytes
    return Trial(
        name=tactic.name,
        problem=problem,
        device=device,
        args={name: _shown(value) for name, value in zip(spec.signature.parameters, first, strict=True)},
        calls=tuple(calls),
        weights=weights * count,
        prepared=prepared * count,
        layout=layout,
        cold=bool(weights) and weights * count >= cache,
        found=found,
    )


def _device_of(args: Sequence[Any]) -> Device:
    """The device of the first tensor."""
    return device_of(next((value.device for value in args if hasattr(value, "untyped_storage")), "cpu"))


def _refuse(spec: OpSpec, tactic: Tactic, args: Sequence[Any], device: Device, where: str) -> None:
    """Raise OpError for a tactic that states it needs more memory than one call may take."""
    runner = spec.runner_of(tactic)
    if runner is None or runner.workspace is None:
        return
    limit = memory_limit(device.free_memory(), envs.TUNEBOOK_MEMORY_LIMIT_GB.get())
    refusal = refuse_for_memory(functools.partial(runner.workspace, **tactic.kwargs), tuple(args), limit)
    if refusal is not None:
        raise OpError(f"{where}: {refusal.detail}; TUNEBOOK_MEMORY_LIMIT_GB sets another")


def _checked(
    spec: OpSpec, tactic: Tactic, layer: Binding, dynamic: tuple[Any, ...], device: Device, where: str
) -> tuple[Callable[..., Any], Finding | Passed | None]:
    """The tactic bound to a layer, and whether it gives the default's output there."""
    try:
        expected = layer.default(*dynamic)
    except Exception as error:
        text = failure(error, "on its example").detail
        raise OpError(f"op {spec.name}: its own function fails {text}") from error
    try:
        call = layer.bound(tactic)
    except Exception as error:
        raise OpError(f"{where}: {failure(error, 'preparing weights').detail}") from error
    if tactic == DEFAULT:
        return call, None
    reference = Reference.of([Case(dynamic, expected, "example", agree=spec.agree)], layer.constants)
    found = check(call, reference, device)
    if isinstance(found, Finding) and found.reason != "correctness":
        raise OpError(f"{where}: {found.detail}")
    return call, found


def _usual(weights: int, each: int, device: Device, *, lone: bool) -> int:
    """How many layers take turns. Without weights nothing is to be made cold: some inputs, or those of the only layer."""
    wanted = math.ceil(ROTATION_BYTES / weights) if weights else 1
    count = 1 if lone and not weights else min(max(wanted, LEAST_LAYERS), MOST_LAYERS)
    return max(1, min(count, int(MEMORY_SHARE * device.free_memory() / each)))


def _filled(call: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], Any]:
    if len(args) == 1:
        (only,) = args
        return lambda: call(only)
    return lambda: call(*args)


def _captured(call: Callable[[], Any], device: Device, where: str) -> Callable[[], Any]:
    try:
        return device.capture(call)
    except Exception as error:
        raise OpError(f"{where}: {failure(error, 'captured as a graph').detail}") from error


def _copy(value: Any) -> Any:
    return value.clone() if hasattr(value, "untyped_storage") else value


def _shown(value: Any) -> str:
    if not hasattr(value, "untyped_storage"):
        return str(value)
    return f"{dtype_name(value.dtype)}[{','.join(map(str, value.shape))}]"
