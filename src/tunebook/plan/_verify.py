"""Whole-model proof: default and tuned steps interleaved, phase by phase, with an interval on every speed-up."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tunebook.dispatch import Scope
from tunebook.measure import Budget, Clock
from tunebook.records import Overall, Phase
from tunebook.stats import ratio_interval

#: Below six pairs no distribution-free 95 % interval of a median exists.
MIN_ROUNDS = 6
MAX_ROUNDS = 30
#: A phase is settled once its interval leaves 1 by this much, as a log-ratio, on one side.
CLEAR = math.log(1.01)
BOOTSTRAP_DRAWS = 2000
#: Six rounds are worth this much of the whole budget.
OVERDRAFT = 1.5


@dataclass(frozen=True)
class Step:
    """One step of the model in a phase; `run` leaves the model as it was, so that it can be repeated."""

    phase: str
    batch: int
    tokens: int
    run: Callable[[], object]


@dataclass
class _Pairs:
    step: Step
    default: list[float] = field(default_factory=list)
    tuned: list[float] = field(default_factory=list)

    def settled(self) -> bool:
        if len(self.default) < MIN_ROUNDS:
            return False
        interval = ratio_interval(self.default, self.tuned)
        return len(self.default) >= MAX_ROUNDS or math.log(interval.low) > CLEAR or math.log(interval.high) < -CLEAR


def verify(
    steps: Sequence[Step],
    scope: Scope,
    clock: Clock,
    budget: Budget,
    rng: random.Random,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[tuple[Phase, ...], Overall] | None:
    """Compare the scope's tuned plan with the default on every step.

    Rounds go over the phases that are not settled; in each, default and tuned run one after the other in random order. At
    least six rounds each are taken, up to half as much again as the budget: a comparison without an interval proves
    nothing. None where even that is not enough for six (the machine is far busier than when the budget was planned).
    The scope is left tuned.
    """
    pairs = [_Pairs(step) for step in steps]
    for pair in pairs:
        for tuned in (True, False):
            scope.switch(tuned)
            pair.step.run()
    done = 0
    while True:
        minimum = any(len(pair.default) < MIN_ROUNDS for pair in pairs)
        todo = [pair for pair in pairs if not pair.settled() and (len(pair.default) < MIN_ROUNDS or not budget.over())]
        if not todo or (budget.over() and not minimum):
            break
        if budget.spent() > OVERDRAFT * budget.seconds:
            scope.switch(True)
            return None
        for pair in todo:
            order = [True, False]
            rng.shuffle(order)
            for tuned in order:
                scope.switch(tuned)
                clock.synchronize()
                start = clock.clock()
                pair.step.run()
                clock.synchronize()
                (pair.tuned if tuned else pair.default).append(clock.clock() - start)
        done += 1
        if progress:
            progress(min(done, MIN_ROUNDS), MIN_ROUNDS, "verifying")
    scope.switch(True)
    return tuple(_phase(pair) for pair in pairs), _overall(pairs, np.random.default_rng(rng.getrandbits(64)))


def _phase(pair: _Pairs) -> Phase:
    speedup = ratio_interval(pair.default, pair.tuned)
    return Phase(
        phase=pair.step.phase,
        batch=pair.step.batch,
        tokens=pair.step.tokens,
        default_ms=float(np.median(pair.default)) * 1e3,
        tuned_ms=float(np.median(pair.tuned)) * 1e3,
        speedup=speedup.value,
        speedup_low=speedup.low,
        speedup_high=speedup.high,
        rounds=len(pair.default),
    )


def _overall(pairs: Sequence[_Pairs], rng: np.random.Generator) -> Overall:
    """The mean of the phases' log speed-ups, equal weights; its interval by a bootstrap over each phase's rounds."""
    logs = [np.log(np.array(pair.default)) - np.log(np.array(pair.tuned)) for pair in pairs]
    value = float(np.mean([np.median(phase) for phase in logs]))
    draws = np.mean(
        [np.median(phase[rng.integers(0, len(phase), (BOOTSTRAP_DRAWS, len(phase)))], axis=1) for phase in logs], axis=0
    )
    low, high = (float(bound) for bound in np.quantile(draws, (0.025, 0.975)))
    return Overall(
        speedup=math.exp(value), speedup_low=math.exp(min(low, value)), speedup_high=math.exp(max(high, value))
    )
