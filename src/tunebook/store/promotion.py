"""Promotion and rollback: what somebody decided goes into the cache as it is, under the lock, and can be taken back."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tunebook.errors import StoreError
from tunebook.records import Environment, Plan, Verdict
from tunebook.store._fold import Folded, NotMergedError, fold
from tunebook.store._merge import chosen_verdict
from tunebook.store._results import Results, readable
from tunebook.store._shards import read_shards, remove_shards
from tunebook.store._text import cause, one_line, remedy
from tunebook.store.cache import parse_cache
from tunebook.store.files import Identity
from tunebook.store.location import Location
from tunebook.store.publish import LOCK_TIMEOUT_S, _describe_environment, _locked
from tunebook.store.replaced import Replaced, digest, given_way, read_replaced, remember, replaced_path, write_replaced

Verdicts = Mapping[str, Verdict]
Plans = Mapping[str, Plan]
#: What becomes of all entries of a cache.
Decision = Callable[[Verdicts, Plans], tuple[dict[str, Verdict], dict[str, Plan]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """What was done to the cache at `path`: `left` promotions can be taken back, `notes` are what a user should know."""

    path: Path
    written: bool
    left: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a rollback makes of the entries of the cache: None takes one out.

    `kept` are the problems and plans on which something that was published since stays.
    """

    verdicts: Mapping[str, Verdict | None]
    plans: Mapping[str, Plan | None]
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decided(Results):
    """Results that are made of what the cache holds when it is locked, in place of a merge with it."""

    decide: Decision = field(repr=False, compare=False)

    def over(self, verdicts: Verdicts, plans: Plans) -> Results:
        decided, planned = self.decide(verdicts, plans)
        return Results(verdicts=decided, plans=planned)


def promote(
    location: Location,
    environment: Environment,
    verdicts: Verdicts,
    plans: Plans,
    taken_out: Collection[str] = (),
    *,
    seen: Verdicts,
    seen_plans: Plans,
    run: str,
    promoted: str,
    narrowed: str = "",
) -> Revision:
    """Put `verdicts` and `plans` into the cache, whatever they replace, take the plans `taken_out` out of it, and keep all that.

    `seen` and `seen_plans` are what was shown to whoever decided: where the cache holds something else by now under one of
    these keys, nothing is done. What is replaced is on the disk before it is. Raises ``StoreError``, in one line, where
    something does not read back, where there is no lock to be had, and for a cache that must be left as it is.
    """
    target = Path(os.path.realpath(location.cache))
    ours = readable(verdicts, plans)
    if ours.unfit:
        raise StoreError(f"{one_line(target)} is left as it is: {ours.unfit[0]}")
    put_plans = {**{key: digest(plan) for key, plan in ours.plans.items()}, **dict.fromkeys(taken_out, "")}
    former: list[tuple[Replaced, ...]] = []
    forgotten = 0

    def decide(there: Verdicts, planned: Plans) -> tuple[dict[str, Verdict], dict[str, Plan]]:
        nonlocal forgotten
        _check_unchanged(target, [key for key in ours.verdicts if there.get(key) != seen.get(key)])
        _check_unchanged(target, [f"the plan {key}" for key in put_plans if planned.get(key) != seen_plans.get(key)])
        replaced = Replaced(
            promoted=promoted,
            run=run,
            narrowed=narrowed,
            put={key: digest(verdict) for key, verdict in ours.verdicts.items()},
            verdicts={key: there[key] for key in ours.verdicts if key in there},
            put_plans=put_plans,
            plans={key: planned[key] for key in put_plans if key in planned},
        )
        if not former:  # else it begins again, and what is there was written below
            former.append(read_replaced(target))
        forgotten = write_replaced(target, [*former[0], replaced])
        kept = {key: plan for key, plan in planned.items() if key not in put_plans}
        return {**there, **ours.verdicts}, {**kept, **ours.plans}

    def undo() -> None:
        if former:
            with suppress(OSError, StoreError):  # what stays is of a promotion that was not made: it takes nothing back
                write_replaced(target, former[0])

    with _held(target):
        # What shards hold is merged now: what of it gives way to an earlier promotion is kept for that one's rollback.
        remember(location, target, environment, Results(verdicts={}, plans={}))
        folded = _revise(location, target, environment, {*ours.verdicts, *put_plans}, decide, undo)
    notes = list(folded.notes)
    if forgotten:
        notes.append(f"{forgotten} older promotion{'' if forgotten == 1 else 's'} cannot be rolled back any more")
    return Revision(path=target, written=folded.written, left=len(former[0]) + 1 - forgotten, notes=tuple(notes))


def roll_back(location: Location, environment: Environment, promotion: Replaced) -> Revision:
    """Restore what the newest promotion replaced, as `restored` says, and forget it.

    `promotion` is the one that was shown. Raises ``StoreError`` as `promote` does, and where another one is the newest by now.
    """
    target = Path(os.path.realpath(location.cache))
    newest = (promotion.promoted, promotion.run, promotion.put, promotion.put_plans)
    older: list[tuple[Replaced, ...]] = []

    def decide(there: Verdicts, planned: Plans) -> tuple[dict[str, Verdict], dict[str, Plan]]:
        back = restored(promotions[-1], there, planned)
        verdicts = _with(there, back.verdicts)
        # What was published since and gives way now to a verdict that was promoted before is kept for that one's rollback.
        dropped = {k: there[k] for k in back.verdicts if k in there and digest(there[k]) != promotion.put[k]}
        older[:] = [given_way(promotions[:-1], verdicts, dropped)]
        return verdicts, _with(planned, back.plans)

    with _held(target):
        remember(location, target, environment, Results(verdicts={}, plans={}))  # as `promote` does
        promotions = read_replaced(target)
        last = promotions[-1] if promotions else None
        # Its `verdicts` may have changed: what gave way to it since it was shown is among them now.
        if last is None or newest != (last.promoted, last.run, last.put, last.put_plans):
            raise StoreError(
                f"{one_line(target)}: another process has promoted or rolled back meanwhile; nothing was changed, look again"
            )
        folded = _revise(location, target, environment, {*promotion.put, *promotion.put_plans}, decide)
        notes = list(folded.notes)
        try:
            write_replaced(target, older[0])
        except OSError as error:
            notes.append(f"{one_line(replaced_path(target))} still tells of it: {cause(error)} ({remedy(error)})")
    return Revision(path=target, written=folded.written, left=len(promotions) - 1, notes=tuple(notes))


def restored(promotion: Replaced, verdicts: Verdicts, plans: Plans) -> Restored:
    """What taking a promotion back makes of these entries: what they would be had it never been made.

    Where what it put is still there, what it replaced comes back, or nothing. Where a verdict was published since, the one
    of the two stays that publishing keeps: the better supported one, else the later. A plan that was published since stays.
    """
    changed: dict[str, Verdict | None] = {}
    kept: list[str] = []
    for key, put in promotion.put.items():
        there, former = verdicts.get(key), promotion.verdicts.get(key)
        if there is None or digest(there) == put:
            now = former
        else:
            now = there if former is None else chosen_verdict(former, there)
            if now == there:
                kept.append(key)
        if now != there:
            changed[key] = now
    planned: dict[str, Plan | None] = {}
    for key, put in promotion.put_plans.items():
        plan, before = plans.get(key), promotion.plans.get(key)
        if plan is not None and digest(plan) != put:
            kept.append(f"the plan {key}")
        elif plan != before:
            planned[key] = before
    return Restored(verdicts=changed, plans=planned, kept=tuple(kept))


_R = TypeVar("_R", Verdict, Plan)


def _with(entries: Mapping[str, _R], changes: Mapping[str, _R | None]) -> dict[str, _R]:
    """The entries with these changes; None takes one out."""
    together: dict[str, _R | None] = {**entries, **changes}
    return {key: entry for key, entry in together.items() if entry is not None}


@contextmanager
def _held(target: Path) -> Iterator[None]:
    """Hold the lock of the cache. Whatever keeps it from being changed is a ``StoreError`` of one line."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target, None, LOCK_TIMEOUT_S):
            yield
    except NotMergedError as error:
        raise StoreError(f"{one_line(target)} was not changed: {error}") from error
    except OSError as error:
        raise StoreError(f"{one_line(target)} was not changed: {cause(error)} ({remedy(error)})") from error


def _revise(
    location: Location,
    target: Path,
    environment: Environment,
    keys: Collection[str],
    decide: Decision,
    undo: Callable[[], None] = lambda: None,
) -> Folded:
    """Replace the cache by what `decide` makes of it and its shards; where that fails, `undo`.

    Shards that hold entries under `keys` go at once, also where they would stay for a while: a verdict in one of them may
    be better supported than what was decided, and would come back.
    """
    shards = read_shards(target, environment, parse_cache, oldest=True)
    there = Identity.of(target)
    try:
        folded = fold(location, target, environment, _Decided(verdicts={}, plans={}, decide=decide))
    except BaseException:
        if Identity.of(target) == there:  # else it came after the cache was replaced, and what was there must stay kept
            undo()
        raise
    holding = [s for s in shards.found if s.state == "good" and not {*s.verdicts, *s.plans}.isdisjoint(keys)]
    remove_shards(target, [shard.path for shard in holding])
    notes = (*folded.notes, *_describe_environment(location, environment))
    return Folded(verdicts=folded.verdicts, written=folded.written, notes=notes)


def _check_unchanged(target: Path, changed: Sequence[str]) -> None:
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise StoreError(
            f"{one_line(target)}: another process has changed it since it was looked at ({one_line(changed[0])}{more}); "
            "nothing was promoted, look again"
        )
