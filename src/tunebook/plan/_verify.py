"""Whole-model proof: default and tuned steps interleaved, phase by phase, with an interval on every speed-up."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tunebook.dispatch import Scope
from tunebook.measure import Budget, Clock
from tunebook.records import Overall, Phase, phase_name
from tunebook.stats import ratio_interval

#: Below six pairs no distribution-free 95 % interval of a median exists.
MIN_ROUNDS = 6
MAX_ROUNDS = 16
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

    @property
    def name(self) -> str:
        return phase_name(self.phase, self.batch, self.tokens)


#: What a comparison says: each phase, in the order of its steps, and all together.
Proof = tuple[tuple[Phase, ...], Overall]


@dataclass
class _Pairs:
    step: Step
    default: list[float] = field(default_factory=list)
    tuned: list[float] = field(default_factory=list)


def verify(
    steps: Sequence[Step],
    scope: Scope,
    clock: Clock,
    budget: Budget,
    rng: random.Random,
    progress: Callable[[int, int, str], None] | None = None,
    *,
    reserve: int = 0,
) -> Proof | None:
    """Compare the scope's tuned plan with the default on every step.

    After a warm-up of both, whose time says how many rounds fit the budget (6 to 16, settled before the first, since an
    interval that is looked at until it pleases is none), each round runs default and tuned of every phase one after the
    other in random order. The time of `reserve` further rounds is left over, where more than six fit. None where the machine
    is so much busier than when the budget was planned that not even six rounds fit half as much again. The scope is left
    tuned.
    """
    pairs = [_Pairs(step) for step in steps]
    try:
        complete = _compare(pairs, scope, clock, budget, rng, progress, reserve)
    finally:
        scope.switch(True)
    if not complete:
        return None
    return tuple(_phase(pair) for pair in pairs), _overall(pairs, np.random.default_rng(rng.getrandbits(64)))


def _compare(
    pairs: Sequence[_Pairs],
    scope: Scope,
    clock: Clock,
    budget: Budget,
    rng: random.Random,
    progress: Callable[[int, int, str], None] | None,
    reserve: int,
) -> bool:
    """Fill the pairs; False where not even `MIN_ROUNDS` rounds fit."""
    started = clock.clock()
    for pair in pairs:
        for tuned in (True, False):
            scope.switch(tuned)
            pair.step.run()
    clock.synchronize()
    once = max(clock.clock() - started, 1e-9)
    fits = MAX_ROUNDS if math.isinf(budget.seconds) else int(budget.left() / once) - reserve
    rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, fits))
    for done in range(rounds):
        if budget.spent() > OVERDRAFT * budget.seconds:
            return done >= MIN_ROUNDS
        for pair in pairs:
            order = [True, False]
            rng.shuffle(order)
            for tuned in order:
                scope.switch(tuned)
                clock.synchronize()
                start = clock.clock()
                pair.step.run()
                clock.synchronize()
                (pair.tuned if tuned else pair.default).append(clock.clock() - start)
        if progress:
            progress(done + 1, rounds, "verifying")
    return True


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
