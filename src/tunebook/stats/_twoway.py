"""The robust two-way fit: what each tactic takes and how fast the machine was in each round, outliers left out of both."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tunebook.stats._paired import Matrix

#: Residuals beyond this many scales count for nothing (Tukey's biweight; 95 % efficient under normal noise).
REJECTION = 4.685
#: Residuals beyond this many scales are counted as outliers.
OUTLYING = 3.0
#: Of an independent value's worth, what it adds to a scale from the median absolute deviation under normal noise.
MAD_EFFICIENCY = 0.37
#: Rounds are taken as dependent only where there are so many to tell it by.
DEPENDENCE_ROUNDS = 8
#: The correlation of neighbouring rounds is taken as no more than this.
MOST_CORRELATION = 0.9
_ITERATIONS = 6
_TO_SIGMA = 1.4826  # the median absolute deviation of a normal variable is its standard deviation over this
_LEAST = 1e-9
_LEAST_SLOPE = 0.2


class Fit(NamedTuple):
    """Log times [tactics, rounds] as effect + level + residual.

    `effects` [tactics] are log times without the round's `levels` [rounds], up to a common constant; `scale` is the noise of
    one sample and `freedom` the degrees of freedom that this scale is known with; `influence` [tactics, rounds] is what each
    sample moves its tactic's effect by; `outliers` is the share of samples far from the fit; `inflation` is how much more
    the effects vary, in variance, than they would if rounds were independent.
    """

    effects: Matrix
    levels: Matrix
    residuals: Matrix
    influence: Matrix
    scale: float
    freedom: float
    outliers: float
    inflation: float

    @property
    def leader(self) -> int:
        return int(self.effects.argmin())

    @property
    def caution(self) -> float:
        """What to multiply the scale by, one standard error of its own and the dependence of rounds taken in."""
        return math.sqrt(self.inflation) * (1 + 1 / math.sqrt(self.freedom))


def two_way(logs: Matrix) -> Fit:
    """Fit log times [tactics, rounds] by Tukey's biweight, from the median polish of each round and each tactic.

    Beaton & Tukey, "The fitting of power series, meaning polynomials, illustrated on band-spectroscopic data",
    Technometrics 16(2), 1974; the scale from the absolute residuals of the polish without the least, as many as parameters:
    Hill & Holland, "Two robust alternatives to least-squares regression", JASA 72(360), 1977; influence and its variance
    after Huber & Ronchetti, Robust Statistics, 2nd edition, 2009.
    Where noise is normal it needs two thirds of the rounds that medians need for the same precision.
    """
    tactics, rounds = logs.shape
    levels = np.median(logs, axis=0)
    effects = np.median(logs - levels, axis=1)
    residuals = logs - levels - effects[:, None]
    free = max(1, (tactics - 1) * (rounds - 1))
    spread = np.sort(np.abs(residuals), axis=None)[-free:]  # the polish fits as many as it has parameters exactly
    scale = max(_TO_SIGMA * float(np.median(spread)), _LEAST)
    for _ in range(_ITERATIONS):
        weights = np.square(1 - np.minimum(np.square(residuals / (REJECTION * scale)), 1)) + _LEAST
        levels = ((logs - effects[:, None]) * weights).sum(axis=0) / weights.sum(axis=0)
        effects = ((logs - levels) * weights).sum(axis=1) / weights.sum(axis=1)
        residuals = logs - levels - effects[:, None]
    part = np.square(residuals / (REJECTION * scale))
    inside = part < 1
    pull = np.where(inside, residuals * np.square(1 - part), 0.0)
    slope = max(float(np.where(inside, (1 - part) * (1 - 5 * part), 0.0).mean()), _LEAST_SLOPE)
    correction = math.sqrt(rounds / max(1, rounds - 1))  # an effect takes its part of the noise; levels cancel in pairs
    return Fit(
        effects=effects,
        levels=levels,
        residuals=residuals,
        influence=pull * (correction / (slope * rounds)),
        scale=scale,
        freedom=max(1.0, MAD_EFFICIENCY * free),
        outliers=float((np.abs(residuals) > OUTLYING * scale).mean()),
        inflation=inflation(pull),
    )


def inflation(pull: Matrix) -> float:
    """(1+ρ)/(1−ρ), the inflation of a mean's variance where noise [tactics, rounds] is autoregressive; ρ is pooled over all."""
    if pull.shape[1] < DEPENDENCE_ROUNDS:
        return 1.0
    total = float(np.square(pull).sum())
    if total <= 0:
        return 1.0
    rho = min(MOST_CORRELATION, float((pull[:, 1:] * pull[:, :-1]).sum()) / total)
    return max(1.0, (1 + rho) / (1 - rho))


def expected_losses(fit: Fit, rng: np.random.Generator, draws: int = 150) -> Matrix:
    """What choosing each tactic now is expected to cost, in log time: a value a tactic, at least 0.

    In each draw the rounds get random normal weights, which moves every effect as new rounds might (the multiplier
    bootstrap: van der Vaart & Wellner, Weak Convergence and Empirical Processes, 1996, section 2.9); the loss is the mean
    distance to that draw's least effect: Chick & Inoue's opportunity cost (Operations Research 49, 2001). Each draw counts
    with its mirror image, so that losses differ exactly as the effects do. After a single round nothing is known of the
    noise, and the loss of each is its distance to the slowest.
    """
    rounds = fit.influence.shape[1]
    if rounds < 2:
        return np.asarray(fit.effects.max() - fit.effects, dtype=float)
    moves = fit.influence @ (rng.standard_normal((rounds, draws)) * fit.caution)
    least = ((fit.effects[:, None] + moves).min(axis=0) + (fit.effects[:, None] - moves).min(axis=0)).mean() / 2
    return np.asarray(np.maximum(fit.effects - least, 0.0), dtype=float)
