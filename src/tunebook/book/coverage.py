"""What was served untuned: the calls that were counted while models served, beside the verdicts and plans of a cache."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tunebook.book._known import Known
from tunebook.book._open import _frame
from tunebook.book._problem_coverage import ProblemCoverage
from tunebook.book._suggestion import Suggestion, origin_of, suggest
from tunebook.errors import UsageError
from tunebook.records import CoverageDocument, Record
from tunebook.records.coverage import OUTSIDE
from tunebook.store._text import one_line
from tunebook.store.coverage import named_file, read_coverage


class OpCoverage(Record, frozen=True, kw_only=True, omit_defaults=False):
    """The calls of one op. `share` is its part of the time that can be estimated, `untuned_share` the part served untuned."""

    op: str
    calls: int
    pinned: int
    tuned: int
    bucket: int
    default: int
    share: float
    untuned_share: float


class Coverage(Record, frozen=True, kw_only=True, omit_defaults=False):
    """How much of what was called is tuned. `path` is empty for what was counted in this process.

    Seconds are estimates: calls times what the cache's verdicts say of a call. `unlisted` calls belong to no problem that is
    listed, and are in no share. `misses` tells what of the cache could not be read.
    """

    path: str
    cache: str
    since: str
    until: str
    problems: tuple[ProblemCoverage, ...]
    unlisted: int = 0
    misses: tuple[str, ...] = ()

    @property
    def calls(self) -> int:
        """All calls of the problems that are listed."""
        return sum(row.calls for row in self.problems)

    @property
    def untuned_calls(self) -> int:
        return sum(row.untuned for row in self.problems)

    @property
    def seconds(self) -> float:
        """What all calls took, as far as that can be estimated."""
        return sum(row.seconds for row in self.problems if row.seconds is not None)

    @property
    def untuned_share(self) -> float | None:
        """The share of the estimated time that was served untuned; None where nothing can be estimated."""
        untuned = sum(row.untuned_seconds for row in self.problems if row.untuned_seconds is not None)
        return untuned / self.seconds if self.seconds > 0 else None

    @property
    def unknown(self) -> tuple[ProblemCoverage, ...]:
        """The problems whose time cannot be estimated: the cache knows none of their family."""
        return tuple(row for row in self.problems if row.seconds is None)

    @property
    def unmet(self) -> tuple[ProblemCoverage, ...]:
        """The problems of tuned models that no dummy run met."""
        return tuple(row for row in self.problems if row.met is False)

    @property
    def ops(self) -> tuple[OpCoverage, ...]:
        """The same by op, the one that takes longest first."""
        rows: dict[str, list[ProblemCoverage]] = {}
        for row in self.problems:
            rows.setdefault(row.op, []).append(row)
        found = [_of_op(op, mine, self.seconds) for op, mine in rows.items()]
        return tuple(sorted(found, key=lambda one: (-one.share, -one.calls, one.op)))

    @property
    def suggestions(self) -> tuple[Suggestion, ...]:
        """For each model with problems that no verdict covers, the tuning that would cover them."""
        names: dict[str, set[str]] = {}
        for row in self.problems:
            names.setdefault(row.model, set()).update((row.tuned_as,) if row.tuned_as else ())
        groups: dict[tuple[str, str], list[ProblemCoverage]] = {}
        for row in self.problems:
            if row.uncovered and row.model != OUTSIDE:  # a layer that no plan has belongs to the one model there is
                name = next(iter(names[row.model]), "") if len(names[row.model]) < 2 else row.tuned_as
                groups.setdefault((row.model, name), []).append(row)
        origins = {name: origin_of(self.cache, name) for _, name in groups}
        return tuple(suggest(rows, name, origins[name]) for (_, name), rows in sorted(groups.items()))

    def suggestion_for(self, model: str, name: str) -> Suggestion | None:
        """The tuning that would cover what a model of class `model`, tuned as `name`, was called with; None: nothing lacks."""
        rows = [r for r in self.problems if r.uncovered and r.model == model and r.tuned_as in ("", name)]
        return suggest(rows, name, origin_of(self.cache, name)) if rows else None

    def of_model(self, model: str) -> Coverage:
        """The same of one model alone, by its class or the name that it was tuned as.

        Raises UsageError, with the models there are, where no call of it was counted.
        """
        rows = tuple(row for row in self.problems if model in (row.model, row.tuned_as))
        if not rows:
            there = sorted({name for row in self.problems for name in (row.model, row.tuned_as) if name})
            raise UsageError(
                f"no call of model {model!r} was counted; there are {one_line(', '.join(there)) or 'none'}"
            )
        return Coverage(
            path=self.path, cache=self.cache, since=self.since, until=self.until, problems=rows, misses=self.misses
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: what is here, and the totals, ops and suggestions."""
        import msgspec

        plain: dict[str, Any] = msgspec.to_builtins(self)
        return {
            **{name: value for name, value in plain.items() if name != "problems"},
            "calls": self.calls,
            "untuned_calls": self.untuned_calls,
            "seconds": self.seconds,
            "untuned_share": self.untuned_share,
            "ops": msgspec.to_builtins(self.ops),
            "problems": plain["problems"],
            "unknown": [row.problem for row in self.unknown],
            "unmet": [row.problem for row in self.unmet],
            "suggestions": [{**msgspec.to_builtins(one), "command": list(one.command())} for one in self.suggestions],
        }

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``, a row a problem. Raises UsageError where pandas is not installed."""
        import msgspec

        return _frame(msgspec.to_builtins(row) for row in self.problems)


def coverage(path: str | Path | None = None, *, cache: str | Path | None = None) -> Coverage:
    """How much of what was called is tuned: in this process, or as a file of coverage tells.

    cache: whose verdicts and plans the calls are held against, by default this machine's.

    Raises UsageError where nothing is counted in this process, StoreError, in one line, for a file that is none.
    """
    if path is None:
        from tunebook.dispatch._counting import COUNTING

        if not COUNTING.wanted():
            raise UsageError("no calls are counted here: set TUNEBOOK_COVERAGE=1 before a model is attached")
        return _judged("", COUNTING.counts(), Known.of(cache))
    file = named_file(Path(path))
    return _judged(str(file), read_coverage(file), Known.of(cache))


def _judged(path: str, document: CoverageDocument, known: Known) -> Coverage:
    rows = [
        known.judged(model, key, served)
        for model, problems in document.models.items()
        for key, served in problems.items()
    ]
    rows.sort(key=lambda row: (-(row.untuned_seconds or 0.0), -row.untuned, -row.calls, row.model, row.problem))
    return Coverage(
        path=path,
        cache=known.cache,
        since=document.since,
        until=document.until,
        problems=tuple(rows),
        unlisted=document.unlisted,
        misses=known.misses,
    )


def _of_op(op: str, rows: Iterable[ProblemCoverage], seconds: float) -> OpCoverage:
    rows = list(rows)
    taken = sum(row.seconds for row in rows if row.seconds is not None)
    untuned = sum(row.untuned_seconds for row in rows if row.untuned_seconds is not None)
    return OpCoverage(
        op=op,
        calls=sum(row.calls for row in rows),
        pinned=sum(row.pinned for row in rows),
        tuned=sum(row.tuned for row in rows),
        bucket=sum(row.bucket for row in rows),
        default=sum(row.default for row in rows),
        share=taken / seconds if seconds > 0 else 0.0,
        untuned_share=untuned / seconds if seconds > 0 else 0.0,
    )


__all__ = ["Coverage", "OpCoverage", "ProblemCoverage", "Suggestion", "coverage"]
