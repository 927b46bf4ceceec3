"""The plan a model is served with, and what the whole-model comparison said of it."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from tunebook.records._base import Record, check_count, check_seconds
from tunebook.records.mix import Mix, Profile
from tunebook.records.problem import Problem
from tunebook.records.tactic import Tactic

Outcome = Literal["faster", "no difference", "slower"]
#: What became of a predicted gain in the model itself; "slower" is a gain that became a loss.
Arrival = Literal["arrived", "did not arrive", "slower", "immaterial"]


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
        for count in (self.batch, self.tokens, self.rounds):
            check_count(f"{self.phase}: a count", count)
        check_seconds(self.phase, self.default_ms)
        check_seconds(self.phase, self.tuned_ms)

    @property
    def name(self) -> str:
        return phase_name(self.phase, self.batch, self.tokens)

    @property
    def outcome(self) -> Outcome:
        return outcome(self.speedup_low, self.speedup_high)


class Effect(Record, frozen=True, kw_only=True):
    """What one tuned problem was predicted to save in a step of one phase, and what it saved there.

    All times are milliseconds a step, over all `calls` of the problem in it: `default_ms` is what the default takes in the
    model, `predicted_ms` the saving that the verdict promises on that, `measured_ms` the median saving of interleaved rounds
    with its 95 % interval `low_ms` to `high_ms` (negative: a loss). `phase` is a `Phase.name`.
    """

    problem: str
    phase: str
    tactic: str
    calls: int
    default_ms: float
    predicted_ms: float
    measured_ms: float
    low_ms: float
    high_ms: float
    outcome: Arrival

    def __post_init__(self) -> None:
        Problem.parse(self.problem)
        Tactic.parse(self.tactic)
        check_count(f"{self.problem}: its calls", self.calls)
        check_seconds(self.problem, self.default_ms)
        if not -math.inf < self.low_ms <= self.measured_ms <= self.high_ms < math.inf:
            raise ValueError(
                f"{self.problem}: saving {self.measured_ms} ms is not inside its interval [{self.low_ms}, {self.high_ms}]"
            )
        if not math.isfinite(self.predicted_ms):
            raise ValueError(f"{self.problem}: a predicted saving of {self.predicted_ms} ms")

    @property
    def missing(self) -> bool:
        """Whether a gain was predicted that is not there, or a loss came instead."""
        return self.outcome in ("did not arrive", "slower")


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


class Holding(Record, frozen=True, kw_only=True):
    """What the plan prepares for one family of layers, what that costs, and what it buys.

    `layouts` gives the bytes that each layout takes over all `layers`; `buys`, how many times as long the expected mix of
    steps would take without that layout (1.2: a fifth longer); `released`, the bytes of original weights that are given
    back, and `source`, the tactic whose layout they can be made from again (empty: they are kept); `numerics` names what its
    tactics have in common that give equal bits whatever the batch, where that was asked for.
    """

    family: str
    layers: int
    layouts: dict[str, int]
    buys: dict[str, float] = {}
    released: int = 0
    source: str = ""
    numerics: str = ""

    def __post_init__(self) -> None:
        for count in (self.layers, self.released, *self.layouts.values()):
            check_count(f"{self.family}: a number of layers or bytes", count)
        if any(not 0 < factor < math.inf for factor in self.buys.values()):
            raise ValueError(f"{self.family}: {self.buys} are not ratios of times")
        if self.source:
            Tactic.parse(self.source)


class Plan(Record, frozen=True, kw_only=True):
    """The tactics by problem key that one model is served with.

    `requested` is what the dummy run was asked for (``decode 16``, ``prefill 512``), and `profile` what it met there;
    `modules` gives the problem families of each attached module; `layouts` are the prepared weights by problem family;
    `bytes` is what they take, `model_bytes` what the unattached model's weights do; `holdings` tells more of both, and which
    original weights are released. `limit` is the memory limit (``1.1x``), and `mix` what the plan was weighted by (None:
    each phase alike). `batch_invariant`: one result whatever the batch. `planned_from` is set where the plan was made of
    known verdicts, without measuring, from one for another limit or mix. `pinned` are the problems that a user's pin decided.

    `active` is false where the comparison found the plan slower than the default. `effects` are what its problems save in
    the model, measured before anything was reverted. `reverted` gives, by problem key, the tactic that won its race and yet
    makes the model slower: the verdict stands, the plan serves the default, or another tactic where the original weights
    are released.
    """

    model: str
    fingerprint: str
    tactics: dict[str, str]
    requested: tuple[str, ...] = ()
    profile: tuple[Profile, ...] = ()
    modules: dict[str, tuple[str, ...]] = {}
    layouts: dict[str, tuple[str, ...]] = {}
    bytes: int = 0
    model_bytes: int = 0
    holdings: tuple[Holding, ...] = ()
    limit: str = ""
    mix: Mix | None = None
    batch_invariant: bool = False
    planned_from: str = ""
    pinned: tuple[str, ...] = ()
    verified: bool = False
    active: bool = True
    phases: tuple[Phase, ...] = ()
    overall: Overall | None = None
    effects: tuple[Effect, ...] = ()
    reverted: dict[str, str] = {}
    left_out: int = 0
    run: str = ""

    def __post_init__(self) -> None:
        for what, tactics in (("tactics", self.tactics), ("reverted", self.reverted)):
            for key, name in tactics.items():
                Problem.parse(key)
                try:
                    Tactic.parse(name)
                except ValueError as error:
                    raise ValueError(f"{what}, {key}: {error}") from None
        for what, count in (("bytes", self.bytes), ("model_bytes", self.model_bytes), ("left_out", self.left_out)):
            check_count(what, count)
        families = [holding.family for holding in self.holdings]
        if len(set(families)) != len(families):
            raise ValueError("holdings: a family occurs twice")
        met = {Problem.parse(key).family for key in self.tactics}
        for holding in self.holdings:
            if holding.numerics and holding.family not in met:
                raise ValueError(f"{holding.family}: its results are to be equal, and the plan has no tactic for it")

    @property
    def sources(self) -> dict[str, str]:
        """By family whose original weights are released, the tactic whose layout they can be made from again."""
        return {holding.family: holding.source for holding in self.holdings if holding.source}

    @property
    def released(self) -> int:
        """The bytes of original weights that are given back."""
        return sum(holding.released for holding in self.holdings)

    def replace(self, **changes: Any) -> Plan:
        """A copy with some fields changed."""
        return msgspec.structs.replace(self, **changes)


def phase_name(phase: str, batch: int, tokens: int) -> str:
    """``decode_16``, ``prefill_512``: what a phase is called in files."""
    return f"decode_{batch}" if phase == "decode" else f"{phase}_{tokens}"


def outcome(low: float, high: float) -> Outcome:
    """What an interval of a speed-up shows."""
    return "faster" if low > 1 else "slower" if high < 1 else "no difference"


def _check_interval(what: str, low: float, value: float, high: float) -> None:
    if not 0 < low <= value <= high < math.inf:
        raise ValueError(f"{what}: speed-up {value} is not inside its interval [{low}, {high}]")
