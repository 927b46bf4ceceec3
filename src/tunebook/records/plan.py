"""The plan a model is served with, and what the whole-model comparison said of it."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from tunebook.records._base import Record, check_seconds

Outcome = Literal["faster", "no difference", "slower"]


class Phase(Record, frozen=True, kw_only=True):
    """One phase of the model, default against tuned, interleaved: medians in milliseconds a step and the 95 % interval.

    `batch` sequences are advanced by `tokens` tokens each a step: 1 when decoding, the prompt's length in a prefill.
    """

    phase: str
    batch: int
    tokens: int
    default_ms: float
    tuned_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    rounds: int = 0

    def __post_init__(self) -> None:
        _check_interval(self.phase, self.speedup_low, self.speedup, self.speedup_high)
        check_seconds(self.phase, self.default_ms)
        check_seconds(self.phase, self.tuned_ms)

    @property
    def name(self) -> str:
        return f"decode_{self.batch}" if self.phase == "decode" else f"{self.phase}_{self.tokens}"

    @property
    def outcome(self) -> Outcome:
        return outcome(self.speedup_low, self.speedup_high)


class Overall(Record, frozen=True, kw_only=True):
    """The mean of the phases' log speed-ups with its 95 % interval."""

    speedup: float
    speedup_low: float
    speedup_high: float

    def __post_init__(self) -> None:
        _check_interval("overall", self.speedup_low, self.speedup, self.speedup_high)

    @property
    def outcome(self) -> Outcome:
        return outcome(self.speedup_low, self.speedup_high)


class Plan(Record, frozen=True, kw_only=True):
    """The tactics by problem key that one model is served with.

    `requested` is what the dummy run was asked for (``decode 16``, ``prefill 512``); `modules` gives the problem families
    of each attached module; `layouts` are the prepared weights by problem family; `bytes` is what they take beyond the
    model's own; `active` is false where the comparison found the plan slower than the default.
    """

    model: str
    fingerprint: str
    tactics: dict[str, str]
    requested: tuple[str, ...] = ()
    modules: dict[str, tuple[str, ...]] = {}
    layouts: dict[str, tuple[str, ...]] = {}
    bytes: int = 0
    verified: bool = False
    active: bool = True
    phases: tuple[Phase, ...] = ()
    overall: Overall | None = None
    left_out: int = 0
    run: str = ""

    def replace(self, **changes: Any) -> Plan:
        """A copy with some fields changed."""
        return msgspec.structs.replace(self, **changes)


def outcome(low: float, high: float) -> Outcome:
    """What an interval of a speed-up shows."""
    return "faster" if low > 1 else "slower" if high < 1 else "no difference"


def _check_interval(what: str, low: float, value: float, high: float) -> None:
    if not 0 < low <= value <= high < math.inf:
        raise ValueError(f"{what}: speed-up {value} is not inside its interval [{low}, {high}]")
