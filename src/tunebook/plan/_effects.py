"""Predicted against measured: what each tuned problem saves in the model's own steps, against what its verdict promised."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tunebook.plan._serving import Serving
from tunebook.plan._verify import MIN_ROUNDS, Step
from tunebook.records import DEFAULT, Arrival, Effect, Tactic
from tunebook.stats import median_interval

#: Rounds of a default and a tuned step each: as many as an interval needs.
EFFECT_ROUNDS = MIN_ROUNDS
#: A saving, predicted or measured, below this share of the step is not worth a word.
MATERIAL_SHARE = 0.01
#: A predicted gain did not arrive when the whole interval of the measured one lies below this share of it.
ARRIVED_SHARE = 0.5


def measure_effects(
    steps: Sequence[Step],
    serving: Serving,
    tactics: Mapping[str, Tactic],
    expected: Mapping[str, float],
    rng: random.Random,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Effect, ...]:
    """Time the calls of every tuned problem inside the steps, default and tuned in turns, in random order.

    `expected` is what a tactic takes of the default's time by its verdict (0.5: half). The prediction is that share of what
    the default takes here, so that it is about the model's own calls and sizes. The costliest problems come first in each
    phase.
    """
    rounds: list[dict[bool, list[_Taken]]] = [{False: [], True: []} for _ in steps]
    for done in range(EFFECT_ROUNDS):
        for step, taken in zip(steps, rounds, strict=True):
            order = [True, False]
            rng.shuffle(order)
            for tuned in order:
                seconds = serving.run(step, tactics if tuned else {}, timed=True)
                taken[tuned].append(_Taken(seconds, serving.seconds, serving.calls))
        if progress:
            progress(done + 1, EFFECT_ROUNDS, "measuring each op in the model")
    effects: list[Effect] = []
    for step, taken in zip(steps, rounds, strict=True):
        met = {key for one in (*taken[False], *taken[True]) for key in one.by_problem}
        tuned_keys = [key for key in met if tactics.get(key, DEFAULT) != DEFAULT]
        of_step = [_effect(step, key, tactics[key], expected.get(key, 1.0), taken) for key in tuned_keys]
        effects += sorted(of_step, key=lambda effect: (-effect.default_ms, effect.problem))
    return tuple(effects)


@dataclass(frozen=True)
class _Taken:
    """One timed step: its seconds, and by problem the seconds and the number of its calls."""

    seconds: float
    by_problem: Mapping[str, float]
    calls: Counter[str]


def _effect(step: Step, key: str, tactic: Tactic, expected: float, taken: Mapping[bool, Sequence[_Taken]]) -> Effect:
    defaults, tuned = ([one.by_problem.get(key, 0.0) for one in taken[state]] for state in (False, True))
    default = float(np.median(defaults))
    predicted = default * (1 - expected)
    saved = median_interval([one - other for one, other in zip(defaults, tuned, strict=True)])
    material = MATERIAL_SHARE * float(np.median([one.seconds for one in taken[False]]))
    return Effect(
        problem=key,
        phase=step.name,
        tactic=tactic.name,
        calls=max(one.calls[key] for state in taken.values() for one in state),
        default_ms=default * 1e3,
        predicted_ms=predicted * 1e3,
        measured_ms=saved.value * 1e3,
        low_ms=saved.low * 1e3,
        high_ms=saved.high * 1e3,
        outcome=_arrival(predicted, saved.value, saved.high, material),
    )


def _arrival(predicted: float, measured: float, high: float, material: float) -> Arrival:
    """What became of a predicted saving; `high` is the upper end of the measured one's interval."""
    if high < 0 and measured <= -material:
        return "slower"
    if predicted < material:
        return "immaterial"
    return "did not arrive" if high < ARRIVED_SHARE * predicted else "arrived"
