"""How far a race goes before its choice is taken: the usual effort, and a thorough one."""

from __future__ import annotations

from dataclasses import dataclass

from tunebook.measure._race import ACCEPTED_LOSS, MAX_ROUNDS

#: Rounds of one race at most in a thorough tuning, and in one that goes on: as many as before would tell no more.
THOROUGH_ROUNDS = 200
#: A thorough race goes on until choosing is expected to cost no more than this, as a log-ratio.
THOROUGH_LOSS = 0.001


@dataclass(frozen=True, kw_only=True)
class Effort:
    """`max_rounds` of one race in all, and the expected loss, a log-ratio, at which it may end before."""

    max_rounds: int = MAX_ROUNDS
    accepted_loss: float = ACCEPTED_LOSS


USUAL = Effort()
CONTINUED = Effort(max_rounds=THOROUGH_ROUNDS)
THOROUGH = Effort(max_rounds=THOROUGH_ROUNDS, accepted_loss=THOROUGH_LOSS)
