"""What a race has shown of one tactic against another, as e-values: they may be looked at after every round."""

from __future__ import annotations

import math

import numpy as np

from tunebook.stats import Fit, Matrix, medians_of, shift_evidence, sign_evidence

#: An elimination shows that a tactic is more than this slower than another, as a log-ratio.
ELIMINATION_MARGIN = math.log(1.01)
#: A choice is shown where no other survivor is more than this faster, as a log-ratio.
EQUIVALENCE = math.log(1.03)
#: The chance that a race wrongly eliminates anyone (a tactic that is within the margin of every rival), and the chance that a
#: choice is wrongly taken as shown.
ALPHA = 0.05
#: Sizes of log-ratios tell nothing of their noise before so many rounds.
EVIDENCE_ROUNDS = 3
#: At least this share of log-ratios may be outliers, however few were seen.
OUTLIER_SHARE = 0.05
MOST_OUTLIERS = 0.5
#: Pairs closer than so many standard errors are not looked at more closely: no evidence could come of it.
NEAR = 2.0
#: Where rounds depend on each other so much (variance of a mean over that of independent rounds), signs of medians of
#: four rounds count, not of single ones.
DEPENDENCE = 2.0
DEPENDENT_GROUP = 4
#: Who is within so many standard errors of the leader, or within this log-ratio, is in its reach.
REACH, NEARBY = 2.0, math.log(1.03)


def slower(logs: Matrix, fit: Fit, one: int, other: int, margin: float) -> float:
    """The e-value against "`one` is at most `margin` slower than `other`", rows of `logs` [tactics, rounds].

    The mean of a sign test, which holds whatever the noise (the order in a round is random, so that equal tactics are as
    often slower as faster), and of a test of sizes with the noise of the whole field, which needs far fewer rounds.
    """
    rounds = logs.shape[1]
    scale = math.sqrt(2) * fit.scale
    if fit.effects[one] - fit.effects[other] - margin <= NEAR * scale / math.sqrt(rounds):
        return 0.0
    ratios = logs[one] - logs[other]
    signs = ratios if fit.inflation <= DEPENDENCE else np.array(medians_of(ratios.tolist(), DEPENDENT_GROUP))
    sign = sign_evidence(int((signs > margin).sum()), len(signs))
    if rounds < EVIDENCE_ROUNDS:
        return sign / 2
    # a tactic may be noisier than the field; 1.4826 makes a standard deviation of a median deviation
    own = 1.4826 * float(np.median(np.abs(ratios - np.median(ratios))))
    samples = fit.residuals.size
    outliers = 2 * (fit.outliers * samples + 1) / (samples + 1)  # either of the two may be one
    shift = shift_evidence(
        ratios,
        margin,
        scale=max(scale, own) * fit.caution,
        freedom=fit.freedom,
        outliers=min(max(outliers, OUTLIER_SHARE), MOST_OUTLIERS),
    )
    return (sign + shift) / 2


def kept(logs: Matrix, fit: Fit, offered: int) -> list[int]:
    """Who stays: all that are not shown to be slower than the leader, by more than the margin.

    The evidence needed is that of every ordered pair of the tactics `offered`, so that `ALPHA` is for the race.
    """
    needed = max(1, offered * (offered - 1)) / ALPHA
    leader = fit.leader
    return [i for i in range(len(logs)) if i == leader or slower(logs, fit, i, leader, ELIMINATION_MARGIN) < needed]


def in_reach(fit: Fit) -> set[int]:
    """The rows that may still be the fastest, as far as a few rounds tell; nothing is shown of the others."""
    rounds = fit.residuals.shape[1]
    reach = max(NEARBY, REACH * fit.caution * fit.scale * math.sqrt(2 / rounds))
    return {row for row, effect in enumerate(fit.effects) if effect - fit.effects.min() <= reach}


def shown(logs: Matrix, fit: Fit, choice: int, offered: int) -> bool:
    """Whether no other row is more than `EQUIVALENCE` faster than `choice`, at level `ALPHA` over all tactics `offered`."""
    needed = max(1, offered - 1) / ALPHA
    return all(slower(logs, fit, i, choice, -EQUIVALENCE) >= needed for i in range(len(logs)) if i != choice)
