"""A duel: given tactics raced on one problem now, interleaved, for a number of rounds that is settled beforehand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tunebook.devices import Device
from tunebook.measure import Finding, Reference, calibrate, check, failure, sample
from tunebook.records import DEFAULT, Tactic
from tunebook.tuner._replicas import Contender, conditions, contender, replicas
from tunebook.tuner._tasks import Task


@dataclass(frozen=True)
class Duel:
    """Seconds a call by tactic, one sample a round, all of the same rounds; and the tactics that could not take part."""

    samples: dict[str, list[float]]
    refused: dict[str, Finding]


def duel(
    task: Task, tactics: Sequence[Tactic], device: Device, rng: random.Random, seconds: float, rounds: tuple[int, int]
) -> Duel:
    """Race the default and `tactics` on the layers, inputs and conditions of a tuning.

    Each is checked first, as in a tuning. `rounds` are the least and the most; how many of them fit `seconds` is settled by
    the calibration, before anything is compared, and nobody is eliminated: so an interval of the samples holds what it says.
    What the default raises is the caller's.
    """
    import torch

    layers = replicas(task.family.layers)
    before = [frozenset(layer.prepared.layouts) for layer in layers]
    started = device.clock()
    refused: dict[str, Finding] = {}
    try:
        with torch.inference_mode():
            inputs = task.inputs(task.sizes, rng, layers)
            terms = conditions(task.problem, layers, inputs, device)
            reference = Reference.of(task.cases(rng, layers[0], device), layers[0].constants)
            racing: list[Contender] = [contender(DEFAULT, layers, inputs, terms)]
            for tactic in dict.fromkeys(tactics):
                if tactic == DEFAULT:
                    continue
                if task.spec.runner_of(tactic) is None:
                    refused[tactic.name] = Finding("unavailable", "the op does not offer it")
                    continue
                try:
                    found = check(layers[0].bound(tactic), reference, device)
                    if isinstance(found, Finding):
                        refused[tactic.name] = found
                    else:
                        racing.append(contender(tactic, layers, inputs, terms))
                except Exception as error:  # noqa: BLE001 - a runner's own code, or a tactic that nobody offers today
                    refused[tactic.name] = failure(error, "preparing weights")
            inner = calibrate(racing[0], device).inner
            for one in racing:  # memory that lay idle meanwhile takes long at its first touch
                for call in one.calls:
                    call()
            begun = device.clock()
            _round(racing, device, inner, rng, 0)  # it counts for nothing but what a round takes
            a_round = max(device.clock() - begun, 1e-9)
            left = seconds - (device.clock() - started)
            count = int(min(max(left / a_round, rounds[0]), rounds[1]))
            samples: dict[str, list[float]] = {one.name: [] for one in racing}
            for number in range(1, count + 1):
                for name, value in _round(racing, device, inner, rng, number * inner).items():
                    samples[name].append(value)
    finally:
        for layer, layouts in zip(layers, before, strict=True):
            layer.prepared.keep_only({*layouts})
    return Duel(samples, refused)


def _round(
    racing: Sequence[Contender], device: Device, inner: int, rng: random.Random, offset: int
) -> dict[str, float]:
    """One sample of each, in random order."""
    order = list(racing)
    rng.shuffle(order)
    return {one.name: max(sample(one, device, inner, offset), 1e-9) for one in order}
