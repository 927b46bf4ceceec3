"""What models were called with while they served, and what served it: the counts that a file of coverage holds."""

from __future__ import annotations

from typing import Final

from tunebook.records._base import LARGEST, SCHEMA, Record, check_count, check_length
from tunebook.records.problem import Problem

#: What may serve a call: a pin; the winner of its bucket, the default among them; another bucket's tactic; the default untuned.
OUTCOMES: Final = ("pinned", "tuned", "bucket", "default")
#: The largest batch of a decode step, and the most tokens of any step, that are noted; larger ones count as these.
MAX_DECODE: Final = 1 << 15
MAX_PREFILL: Final = 1 << 20
#: Under this name stands what is called outside of any model.
OUTSIDE: Final = "free"
#: The longest name of a model, and the longest time, that is read.
MAX_MODEL_NAME: Final = 200
_MAX_TIME: Final = 64


class Served(Record, frozen=True, kw_only=True):
    """Calls of one problem by what served them.

    `decode` is the largest batch of a step of one token a sequence, `prefill` the most tokens of any longer step, over all
    its sequences, as far as the calls' arguments tell (0: none, or they do not).
    """

    pinned: int = 0
    tuned: int = 0
    bucket: int = 0
    default: int = 0
    decode: int = 0
    prefill: int = 0

    def __post_init__(self) -> None:
        for outcome in OUTCOMES:
            check_count(f"{outcome} calls: {getattr(self, outcome)}", getattr(self, outcome))
        for what, size, limit in (("decode", self.decode, MAX_DECODE), ("prefill", self.prefill, MAX_PREFILL)):
            if not 0 <= size <= limit:
                raise ValueError(f"{what} is not a size from 0 to {limit}")
        if not self.calls:
            raise ValueError("a problem without a call")

    @property
    def calls(self) -> int:
        return self.pinned + self.tuned + self.bucket + self.default

    @property
    def untuned(self) -> int:
        """Calls that nothing served which was tuned, or chosen, for their bucket."""
        return self.bucket + self.default

    def plus(self, other: Served) -> Served:
        """The calls of both."""
        calls = {name: min(getattr(self, name) + getattr(other, name), LARGEST) for name in OUTCOMES}
        return Served(**calls, decode=max(self.decode, other.decode), prefill=max(self.prefill, other.prefill))


class CoverageDocument(Record, frozen=True, kw_only=True, omit_defaults=False):
    """A file of coverage: calls by model and problem key, counted from `since` to `until` (local times).

    A model goes by the name of its class, what is called outside of any model by `OUTSIDE`. `unlisted` are calls that belong
    to no problem, and of the problems called least where these are too many to keep.
    """

    since: str
    until: str
    models: dict[str, dict[str, Served]] = {}
    unlisted: int = 0
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        check_count("schema", self.schema)
        check_count("unlisted", self.unlisted)
        for what, text in (("since", self.since), ("until", self.until)):
            check_length(what, text, _MAX_TIME)
        for model, problems in self.models.items():
            check_length("the name of a model", model, MAX_MODEL_NAME)
            for key in problems:
                Problem.parse(key)

    @property
    def calls(self) -> int:
        """All calls, those of no listed problem included."""
        return self.unlisted + sum(served.calls for rows in self.models.values() for served in rows.values())

    def plus(self, other: CoverageDocument) -> CoverageDocument:
        """The calls of both."""
        models = {model: dict(problems) for model, problems in self.models.items()}
        for model, problems in other.models.items():
            mine = models.setdefault(model, {})
            for key, served in problems.items():
                mine[key] = mine[key].plus(served) if key in mine else served
        return CoverageDocument(
            since=min(self.since, other.since),
            until=max(self.until, other.until),
            models=models,
            unlisted=min(self.unlisted + other.unlisted, LARGEST),
        )
