"""One side of a comparison: a run or a cache, read alike; and what stands behind `latest`, `previous` and `cache`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tunebook.book._light import read_light
from tunebook.book._place import Place
from tunebook.errors import StoreError, UsageError
from tunebook.records import Environment, Header, Plan, Rejected, Timed, Verdict
from tunebook.store import Run, read_any, read_run

#: The words that stand for a file.
NAMES = ("latest", "previous", "cache")


@dataclass(frozen=True)
class Source:
    """A run or a cache. `header` is None for a cache; `unreadable` is how many entries or lines of it cannot be read."""

    path: Path
    environment: Environment
    verdicts: Mapping[str, Verdict]
    plans: Mapping[str, Plan]
    header: Header | None = None
    refused: Mapping[str, Mapping[str, Rejected]] = field(default_factory=dict, repr=False)
    unreadable: int = 0

    @classmethod
    def read(cls, path: Path | str) -> Source:
        """Raises StoreError, in one line, for what is neither a run nor a cache."""
        path = Path(path)
        light = read_light(path)
        if light is not None:
            header = light.header
            return cls(path, header.environment, light.verdicts, light.plans, header, light.rejected, light.unreadable)
        found = read_any(path)
        if isinstance(found, Run):
            return cls(path, found.header.environment, found.verdicts, found.plans, found.header)
        if found.environment is None:
            raise StoreError(f"{path}: it does not say in which environment it was made, so nothing compares to it")
        verdicts, plans = dict(found.verdicts), dict(found.plans)
        return cls(path, found.environment, verdicts, plans, unreadable=len(found.misses))

    @property
    def kind(self) -> str:
        return "cache" if self.header is None else "run"

    @property
    def plan(self) -> Plan | None:
        """The plan of the run; of a cache the only one."""
        plans = list(self.plans.values())
        return plans[-1] if plans and (self.header is not None or len(plans) == 1) else None

    @cached_property
    def _run(self) -> Run:
        """The run with all its samples."""
        return read_run(self.path)

    @cached_property
    def _trials(self) -> dict[str, dict[str, list[Timed]]]:
        """By problem and tactic."""
        found: dict[str, dict[str, list[Timed]]] = {}
        for line in self._run.trials if self.header is not None else ():
            if isinstance(line.trial, Timed):
                found.setdefault(line.problem, {}).setdefault(line.trial.tactic, []).append(line.trial)
        return found

    def paired(self, problem: str, slow: str, fast: str) -> tuple[list[float], list[float]]:
        """The samples of two tactics over the rounds of a race that both ran; rounds before the race pair with none.

        This reads all samples of the run. A cache has none.
        """
        mine, theirs = (self._rounds(problem, tactic) for tactic in (slow, fast))
        shared = sorted(mine.keys() & theirs.keys())
        return [mine[number] for number in shared], [theirs[number] for number in shared]

    def _rounds(self, problem: str, tactic: str) -> dict[int, float]:
        return {
            number: sample
            for trial in self._trials.get(problem, {}).get(tactic, [])
            for number, sample in zip(trial.rounds, trial.samples, strict=True)
            if number >= 0
        }

    def rejected(self, problem: str) -> dict[str, Rejected]:
        """The rejected tactics of a problem; a cache keeps a limited number of them."""
        return {one.tactic: one for one in self.verdicts[problem].rejected} | dict(self.refused.get(problem, {}))

    def tried(self, problem: str) -> set[str]:
        """The tactics that were called, or refused, on a problem; of a cache those that its verdict still names.

        This reads all samples of a run.
        """
        verdict = self.verdicts[problem]
        named = {verdict.winner, *verdict.ties, *(member.tactic for member in verdict.frontier)}
        return named | set(self.rejected(problem)) | set(self._trials.get(problem, {}))


def resolve(name: str, place: Place, model: str | None = None) -> Path:
    """The file that `latest`, `previous` or `cache` stands for, else the path itself.

    `latest` is the newest run, of `model` where it is given; `previous` the newest before it that is of the same model.
    Raises StoreError where there is none.
    """
    if name not in NAMES:
        return Path(name)
    if name == "cache":
        return place.cache
    heads = place.heads(model)
    of = f" of {model}" if model else ""
    if not heads:
        raise StoreError(f"{name}: there is no run{of} in {place.runs}; `tunebook tune` makes one")
    if name == "latest":
        return heads[0].path
    same = [head for head in heads[1:] if head.header.model == heads[0].header.model]
    if not same:
        told = heads[0].header.model or "the same calls"
        raise StoreError(f"previous: {heads[0].path.name} is the only run of {told} in {place.runs}")
    return same[0].path


def check_names(names: tuple[str, str]) -> None:
    """Raise UsageError for two names of one file."""
    if names[0] == names[1] and names[0] in NAMES:
        raise UsageError(f"{names[0]} and {names[1]} are the same; give two of {', '.join(NAMES)}, or paths")
