"""Runs and caches as typed records in Python, and as tables of pandas where that is installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tunebook.book._place import place_of
from tunebook.errors import StoreError, UsageError
from tunebook.records import Environment, Footer, Header, Plan, Problem, Timed, TrialLine, Verdict
from tunebook.store import Miss, Run, read_any

#: What `to_pandas` makes a table of.
RUN_TABLES = ("verdicts", "samples", "rejected")
CACHE_TABLES = ("verdicts", "rejected")


@dataclass(frozen=True, kw_only=True)
class RunBook:
    """A run file, read. `footer` is None where the session did not end by itself, `misses` are the lines that are unreadable."""

    path: Path
    header: Header
    trials: tuple[TrialLine, ...]
    verdicts: Mapping[str, Verdict]
    plans: Mapping[str, Plan]
    footer: Footer | None
    misses: tuple[Miss, ...]

    @property
    def environment(self) -> Environment:
        return self.header.environment

    def to_pandas(self, table: str = "verdicts") -> Any:
        """A ``pandas.DataFrame``: a row a verdict, a row a sample (seconds a call), or a row a rejected tactic.

        Raises UsageError where pandas is not installed, and for another `table`.
        """
        if table == "samples":
            return _frame(_samples(self.trials))
        if table == "rejected":
            return _frame(_rejected_trials(self.trials))
        return _verdict_frame(self.verdicts, table, RUN_TABLES)


@dataclass(frozen=True, kw_only=True)
class CacheBook:
    """A cache, read: each verdict and plan is validated when it is first looked up; `misses` are those that are unreadable."""

    path: Path
    environment: Environment | None
    verdicts: Mapping[str, Verdict]
    plans: Mapping[str, Plan]
    misses: tuple[Miss, ...]

    def to_pandas(self, table: str = "verdicts") -> Any:
        """A ``pandas.DataFrame``: a row a verdict, or a row a rejected tactic. Raises as `RunBook.to_pandas` does."""
        if table == "rejected":
            rows = ((v.problem, r) for v in self.verdicts.values() for r in v.rejected)
            return _frame(
                {"problem": key, "tactic": r.tactic, "reason": r.reason, "detail": r.detail} for key, r in rows
            )
        return _verdict_frame(self.verdicts, table, CACHE_TABLES)


def open_run(path: str | Path) -> RunBook:
    """Read a run file. Raises StoreError, in one line, for what is none."""
    found = read_any(path)
    if not isinstance(found, Run):
        raise StoreError(f"{path}: a cache, not a run file; open it with tunebook.open_cache")
    return RunBook(
        path=found.path,
        header=found.header,
        trials=found.trials,
        verdicts=found.verdicts,
        plans=found.plans,
        footer=found.footer,
        misses=found.misses,
    )


def open_cache(path: str | Path | None = None) -> CacheBook:
    """Read a cache, by default the one of this machine (see `tunebook history` for the thread count that is meant).

    Raises StoreError, in one line, for what is none.
    """
    path = Path(path) if path is not None else place_of().cache
    found = read_any(path)
    if isinstance(found, Run):
        raise StoreError(f"{path}: a run file, not a cache; open it with tunebook.open_run")
    verdicts, plans = dict(found.verdicts), dict(found.plans)
    return CacheBook(path=path, environment=found.environment, verdicts=verdicts, plans=plans, misses=found.misses)


def _verdict_frame(verdicts: Mapping[str, Verdict], table: str, known: tuple[str, ...]) -> Any:
    if table != "verdicts":
        raise UsageError(f"table {table!r} is none of {', '.join(known)}")
    return _frame(_verdict_row(verdict) for verdict in verdicts.values())


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    problem = Problem.parse(verdict.problem)
    return {
        "problem": verdict.problem,
        "op": problem.op,
        **{f"dim {dim.name}": dim.size for dim in problem.dims},
        "winner": verdict.winner,
        "status": verdict.status,
        "speedup": verdict.speedup,
        "low": verdict.low,
        "high": verdict.high,
        "seconds": verdict.seconds,
        "rounds": verdict.rounds,
        "measured": verdict.measured,
        "loss": verdict.loss,
        "seen": verdict.seen,
        "space": verdict.space,
        "ties": len(verdict.ties),
        "rejected": len(verdict.rejected),
        "run": verdict.run,
        "note": verdict.note,
    }


def _samples(trials: tuple[TrialLine, ...]) -> Iterator[dict[str, Any]]:
    for line in trials:
        trial = line.trial
        if isinstance(trial, Timed):
            for number, seconds in zip(trial.rounds, trial.samples, strict=True):
                yield {"problem": line.problem, "tactic": trial.tactic, "round": number, "seconds": seconds}


def _rejected_trials(trials: tuple[TrialLine, ...]) -> Iterator[dict[str, Any]]:
    for line in trials:
        trial = line.trial
        if not isinstance(trial, Timed):
            detail = trial.detail
            yield {"problem": line.problem, "tactic": trial.tactic, "reason": trial.reason, "detail": detail}


def _frame(rows: Iterator[dict[str, Any]] | Any) -> Any:
    try:
        pandas = import_module("pandas")
    except ImportError as error:
        raise UsageError("pandas is not installed: pip install pandas") from error
    return pandas.DataFrame.from_records(list(rows))
