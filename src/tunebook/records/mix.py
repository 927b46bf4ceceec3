"""What a model is expected to serve: how often each phase, or each problem, and what the phases took when they were met."""

from __future__ import annotations

from tunebook.records._base import LARGEST, SCHEMA, Record, check_count, check_seconds
from tunebook.records.problem import Problem


class Mix(Record, frozen=True, kw_only=True):
    """How often each phase is stepped (``decode 16``), relative to the others; or how often each problem is called.

    One of the two; nothing counts less than a positive, finite number.
    """

    steps: dict[str, float] = {}
    calls: dict[str, int] = {}

    def __post_init__(self) -> None:
        if bool(self.steps) == bool(self.calls):
            raise ValueError("a mix counts the steps of phases, or the calls of problems")
        for what, count in {**self.steps, **self.calls}.items():
            if not 0 < count <= LARGEST:
                raise ValueError(f"{what} is not counted by a positive, finite number")
        for key in self.calls:
            Problem.parse(key)

    def __str__(self) -> str:
        if self.steps:
            return ",".join(f"{phase}={count:g}" for phase, count in self.steps.items())
        return f"{sum(self.calls.values()):,} calls of {len(self.calls)} problems"


class MixDocument(Record, frozen=True, kw_only=True, omit_defaults=False):
    """A file of recorded calls: how often each problem of a model was called while it served."""

    model: str
    fingerprint: str
    calls: dict[str, int]
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        check_count("schema", self.schema)
        if self.calls:
            Mix(calls=self.calls)


class Profile(Record, frozen=True, kw_only=True):
    """One step of a phase as the dummy run met it, with the defaults.

    `phase` is as it was asked for (``prefill 512``); `seconds` is the whole step; `calls` and `taken`, by problem, are the
    calls in it and the seconds of all of them together.
    """

    phase: str
    seconds: float
    calls: dict[str, int] = {}
    taken: dict[str, float] = {}

    def __post_init__(self) -> None:
        check_seconds(self.phase, self.seconds)
        if self.calls.keys() != self.taken.keys():
            raise ValueError(f"{self.phase}: calls and their seconds are of different problems")
        for key, seconds in self.taken.items():
            Problem.parse(key)
            check_seconds(key, seconds)
            check_count(f"{key}: its calls are", self.calls[key])
