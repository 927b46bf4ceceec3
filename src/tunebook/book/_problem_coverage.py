"""The coverage of one problem: who served its calls, what they took, and whether a tuning knows it."""

from __future__ import annotations

from typing import Literal

from tunebook.records import Record

Basis = Literal["verdict", "nearest", "unknown"]


class ProblemCoverage(Record, frozen=True, kw_only=True, omit_defaults=False):
    """The calls of one problem in one model, by what served them.

    `model` is the class of the model, `tuned_as` the name under which a plan in the cache knows such a layer (empty: none
    does). `seconds` are what the calls took, `untuned_seconds` those of them that nothing tuned served: estimates from the
    problem's own verdict, or from those of the `nearest` buckets; None where the `basis` is unknown. `covered`: the cache holds a
    measured verdict; `left_out`: it holds one that the budget did not reach. `met` says whether a dummy run met the problem
    (None: there is no plan to tell). `decode` and `prefill` are the largest sizes that were seen, 0 where the calls do not tell.
    """

    problem: str
    op: str
    model: str
    tuned_as: str
    pinned: int
    tuned: int
    bucket: int
    default: int
    seconds: float | None
    untuned_seconds: float | None
    basis: Basis
    covered: bool
    left_out: bool
    met: bool | None
    decode: int
    prefill: int

    @property
    def calls(self) -> int:
        return self.pinned + self.tuned + self.bucket + self.default

    @property
    def untuned(self) -> int:
        """Calls that another bucket's tactic served, or the default because nothing was tuned."""
        return self.bucket + self.default

    @property
    def uncovered(self) -> bool:
        """Whether a tuning is lacking. What is tuned is served untuned too: with gradients, or before it was tuned."""
        return self.untuned > 0 and not self.covered
