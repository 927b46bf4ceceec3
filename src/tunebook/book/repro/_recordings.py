"""What a run or a cache tells of one tactic on one problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunebook.errors import StoreError
from tunebook.records import DEFAULT, Environment, Rejected, Tactic, Timed, Verdict
from tunebook.stats import Interval, median_interval
from tunebook.store import CacheContents, Run, read_any, read_run


@dataclass(frozen=True, kw_only=True)
class Told:
    """What is known of a tactic; seconds a call, with 95 % intervals.

    `path` is the file that tells it, `model` what was tuned there (empty for calls outside a model). `how` is "race", "looks"
    (calls before the race) or "verdict" (the verdict alone is left), and empty where there is no figure. `error` is the
    greatest relative error of a row in its check, `rejected` why it was out, `version` its runner's version then.
    """

    path: Path
    environment: Environment | None
    model: str = ""
    how: str = ""
    seconds: Interval | None = None
    samples: int = 0
    default: Interval | None = None
    error: float | None = None
    rejected: Rejected | None = None
    version: str | None = None

    @property
    def empty(self) -> bool:
        """Whether it tells nothing of this tactic."""
        return self.seconds is None and self.rejected is None


class Recordings:
    """A run or a cache, by its path. Raises StoreError for what is neither."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: Run | CacheContents = read_any(path)

    @property
    def environment(self) -> Environment | None:
        return self._found.header.environment if isinstance(self._found, Run) else self._found.environment

    @property
    def keys(self) -> set[str]:
        """Every problem that it tells of, whether or not it was settled."""
        keys = set(self._found.verdicts)
        if isinstance(self._found, Run):
            keys |= self._found.problems.keys() | {line.problem for line in self._found.trials}
        return keys

    def of(self, key: str, tactic: Tactic) -> Told:
        """What it tells; where a cache names the run of its verdict, and that lies beside it, what this run tells."""
        found = self._found
        if isinstance(found, Run):
            return _of_run(found, key, tactic)
        verdict = found.verdicts.get(key)
        if verdict is None:
            return Told(path=self.path, environment=found.environment)
        run = self._behind(verdict)
        told = _of_run(run, key, tactic) if run is not None else None
        if told is None or told.empty:
            told = _of_verdict(Told(path=self.path, environment=found.environment), verdict, tactic)
        return told

    def _behind(self, verdict: Verdict) -> Run | None:
        """The run that a cached verdict comes from; None where it is gone, or cannot be read."""
        if not verdict.run or Path(verdict.run).name != verdict.run:
            return None
        try:
            return read_run(self.path.parent / "runs" / verdict.run)
        except StoreError:
            return None


def _of_run(run: Run, key: str, tactic: Tactic) -> Told:
    verdict = run.verdicts.get(key)
    mine = [line for line in run.trials if line.problem == key and line.trial.tactic == tactic.name]
    timed = [line.trial for line in mine if isinstance(line.trial, Timed) and line.trial.samples]
    rejected = [line.trial for line in mine if isinstance(line.trial, Rejected)]
    if verdict is not None:
        rejected += [one for one in verdict.rejected if one.tactic == tactic.name]
    raced, looks = _samples(timed)
    defaults = [
        line.trial
        for line in run.trials
        if line.problem == key and line.trial.tactic == DEFAULT.name and isinstance(line.trial, Timed)
    ]
    by_default = _samples(defaults)[0]
    samples = raced or looks
    told = Told(
        path=run.path,
        environment=run.header.environment,
        model=run.header.model,
        how="race" if raced else "looks" if looks else "",
        seconds=median_interval(samples) if samples else None,
        samples=len(samples),
        default=median_interval(by_default) if by_default else None,
        error=next((trial.error for trial in timed if trial.error is not None), None) if tactic != DEFAULT else None,
        rejected=rejected[-1] if rejected else None,
        version=_version(verdict, tactic),
    )
    return _of_verdict(told, verdict, tactic) if told.empty and verdict is not None else told


def _of_verdict(told: Told, verdict: Verdict, tactic: Tactic) -> Told:
    """What the verdict alone tells."""
    times = {member.tactic: _times(verdict, member.ratio) for member in verdict.frontier}
    seconds = times.get(tactic.name)
    return replace(
        told,
        how="verdict" if seconds is not None else "",
        seconds=seconds,
        default=times.get(DEFAULT.name),
        rejected=next((one for one in verdict.rejected if one.tactic == tactic.name), None),
        version=_version(verdict, tactic),
    )


def _samples(trials: Sequence[Timed]) -> tuple[list[float], list[float]]:
    """The samples of the last race, and those before any race."""
    raced: list[float] = []
    looks: list[float] = []
    for trial in trials:
        pairs = list(zip(trial.rounds, trial.samples, strict=True))
        looks += [seconds for number, seconds in pairs if number < 0]
        raced = [seconds for number, seconds in pairs if number >= 0] or raced
    return raced, looks


def _times(verdict: Verdict, ratio: float) -> Interval | None:
    """What a member of the frontier takes by its ratio to the winner: a value without an interval of its own."""
    seconds = verdict.seconds * ratio
    return Interval(seconds, seconds, seconds) if seconds > 0 else None


def _version(verdict: Verdict | None, tactic: Tactic) -> str | None:
    offered = verdict.offered.get(tactic.runner) if verdict is not None else None
    return offered.version if offered is not None else None
