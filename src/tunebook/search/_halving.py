"""Successive halving: many tactics are looked at once, the better half twice as often, until few enough are left to race."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tunebook.stats import centred_medians

#: So many tactics enter the race, beside the default and the incumbent.
FINALISTS = 12
#: Calls of each tactic in one rung, at most: beyond, the race says more for the same calls.
MAX_CALLS = 16


@dataclass(frozen=True)
class Halved:
    """Who is left, best first; after how many rungs of new calls; and whether it went on to the end."""

    survivors: tuple[str, ...]
    rungs: int
    complete: bool


def halving(
    looks: Mapping[str, float],
    measure: Callable[[str], float | None],
    rng: random.Random,
    *,
    finalists: int = FINALISTS,
    stop: Callable[[], bool] = lambda: False,
) -> Halved:
    """From the first `looks` (seconds by name) to at most `finalists` names.

    Each rung keeps the better half, calls each of them, in turns and in shuffled order, twice as often as the rung before
    (`MAX_CALLS` at most; a first look is one), and ranks them by all calls so far: by medians after each turn's own median
    was taken off, so that what drifts with the machine hits all alike. `measure(name)` is one call in seconds, or None for
    one that failed, which leaves. Once `stop()` says so, the best of the last complete turn are taken.

    Jamieson & Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016; Karnin,
    Koren & Somekh, "Almost optimal exploration in multi-armed bandits", ICML 2013. Each rung costs about the same, so that
    n tactics need a few times n calls, for log2(n / finalists) rungs.
    """
    alive = sorted(looks, key=lambda name: (looks[name], name))
    logs: dict[str, list[float]] = {name: [] for name in alive}
    calls, rungs = 1, 0
    while len(alive) > finalists:
        alive = alive[: max(finalists, -(-len(alive) // 2))]
        if len(alive) == finalists:
            break
        calls = min(2 * calls, MAX_CALLS)
        rungs += 1
        for _ in range(calls):
            turn = _turn(alive, measure, rng, stop)
            if turn is None:
                return Halved(tuple(_ranked(alive, logs)[:finalists]), rungs, complete=False)
            alive = [name for name in alive if name in turn]
            for name in alive:
                logs[name].append(turn[name])
        alive = _ranked(alive, logs)
    return Halved(tuple(alive), rungs, complete=True)


def calls_needed(count: int, finalists: int = FINALISTS) -> int:
    """How many calls, beside the first looks, `halving` makes from `count` names to its end."""
    calls, needed = 1, 0
    while count > finalists:
        count = max(finalists, -(-count // 2))
        if count == finalists:
            break
        calls = min(2 * calls, MAX_CALLS)
        needed += count * calls
    return needed


def _turn(
    alive: list[str], measure: Callable[[str], float | None], rng: random.Random, stop: Callable[[], bool]
) -> dict[str, float] | None:
    """One call of each, as log seconds, without those that failed; None where the time ended on the way."""
    found = {}
    for name in rng.sample(alive, len(alive)):
        if stop():
            return None
        seconds = measure(name)
        if seconds is not None:
            found[name] = float(np.log(seconds))
    return found


def _ranked(alive: list[str], logs: Mapping[str, list[float]]) -> list[str]:
    """Best first, by all turns so far; as they stand where there was none."""
    if not alive or not logs[alive[0]]:
        return alive
    medians = centred_medians(np.array([logs[name] for name in alive]))
    return [name for _, name in sorted(zip(medians.tolist(), alive, strict=True))]
