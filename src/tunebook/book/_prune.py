"""Pruning: which old runs may go, and their removal. Nothing else ever removes a run."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tunebook.book._heads import Head
from tunebook.book._place import Place
from tunebook.errors import StoreError, UsageError
from tunebook.store import read_cache

#: A run without a last line that was written to so many seconds ago may still be going on.
QUIET_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What a pruning removes, and what it spares with the reason."""

    removed: tuple[Head, ...]
    spared: tuple[tuple[Head, str], ...]

    @property
    def bytes(self) -> int:
        return sum(head.bytes for head in self.removed)


def plan_pruning(
    place: Place,
    *,
    keep: int | None = None,
    older_than_days: float | None = None,
    model: str | None = None,
    also_named: bool = False,
    now: datetime | None = None,
) -> Pruning:
    """What would go: the runs beyond the `keep` newest, those older than so many days; where both are given, what is both.

    A run that a verdict or plan of the cache names is spared unless `also_named`; one that may be going on always is.
    Raises UsageError where neither is given, or one is no number of runs or days.
    """
    if keep is None and older_than_days is None:
        raise UsageError("pruning needs --keep N, or --older-than DAYS, or both")
    if keep is not None and keep < 0:
        raise UsageError(f"--keep {keep} is not a number of runs; it is at least 0")
    if older_than_days is not None and not older_than_days >= 0:
        raise UsageError(f"--older-than {older_than_days:g} is not a number of days; it is at least 0")
    heads = place.heads(model)
    named = named_runs(place.cache)
    now = now or datetime.now()
    removed: list[Head] = []
    spared: list[tuple[Head, str]] = []
    for position, head in enumerate(heads):
        if keep is not None and position < keep:
            continue
        if older_than_days is not None and _age_days(head, now) <= older_than_days:
            continue
        if head.footer is None and (time.time() - head.changed < QUIET_S or _being_written(head.path)):
            spared.append((head, "it has no end, and is being written or was within the hour"))
        elif head.path.name in named and not also_named:
            spared.append((head, "the cache names it: its verdicts rest on it"))
        else:
            removed.append(head)
    return Pruning(removed=tuple(removed), spared=tuple(spared))


def prune(heads: Sequence[Head]) -> None:
    """Remove these run files. Raises StoreError that names the first that cannot be removed; those before it are gone."""
    for head in heads:
        try:
            head.path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(
                f"{head.path}: not removed: {error.strerror}; check the permissions of its folder"
            ) from error


def named_runs(cache: Path) -> set[str]:
    """The file names of the runs that the verdicts and plans of a cache come from."""
    contents = read_cache(cache, None)
    return {verdict.run for verdict in contents.verdicts.values()} | {plan.run for plan in contents.plans.values()}


def _being_written(path: Path) -> bool:
    """Whether a process holds the lock that a run's writer has on its file for as long as it lives."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _age_days(head: Head, now: datetime) -> float:
    """Days since the run began; since its file was written where the header does not tell a time."""
    try:
        started = datetime.fromisoformat(head.header.started)
    except ValueError:
        started = datetime.fromtimestamp(head.changed)
    return (now - started.replace(tzinfo=None)).total_seconds() / 86400
