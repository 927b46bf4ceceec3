"""The search path: caches that were shipped, read after the user's own and never written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from tunebook.envs import envs
from tunebook.records import Environment, Plan, Record, Verdict
from tunebook.store._shards import folder_of
from tunebook.store._text import one_line
from tunebook.store.bundles import SUFFIX
from tunebook.store.cache import CacheContents, read_cache
from tunebook.store.misses import Miss, Misses

_R = TypeVar("_R", bound=Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """One entry of the search path. `path` is the file that was read for it: the entry itself, or the one in that directory."""

    entry: Path
    path: Path
    contents: CacheContents

    @property
    def misses(self) -> tuple[Miss, ...]:
        """What of it cannot be served, named as a part of the search path; an entry that is missing is one of those."""
        return tuple(
            replace(
                miss,
                kind="unreadable" if miss.kind == "absent" else miss.kind,
                where=f"TUNEBOOK_CACHE_PATH, {miss.where}",
            )
            for miss in self.contents.misses
        )

    @property
    def problem(self) -> Miss | None:
        """Why nothing of it is served, or None."""
        return next((miss for miss in self.misses if miss.kind != "entry"), None)


def read_search_path(environment: Environment, *, loud: bool = True) -> tuple[Shipped, ...]:
    """Read every entry of ``TUNEBOOK_CACHE_PATH``, in its order. What is wrong with one is a miss of it.

    An entry is a cache, a run or a bundle; or a directory, in which ``autotune/<environment digest>/winners.json`` is read, as in
    a cache directory, else ``<environment digest>.tunebook``. Nothing is written, locked or created there. Raises
    ``EnvironmentVariableError`` for a value that is no list of paths. Bad entries that are looked up later are logged if `loud`.
    """
    found = tuple(_read(entry.absolute(), environment) for entry in envs.TUNEBOOK_CACHE_PATH.get())
    for one in found:
        one.contents.found.loud = loud
    return found


def over_shipped(own: CacheContents, shipped: Sequence[Shipped]) -> CacheContents:
    """The user's own cache over the search path.

    Of two entries under one key the user's own serves, then that of the earlier place on the path. Only what the user's tuning
    left out without measuring it gives way; and a shipped plan that rests on another winner than the user's own serves nothing.
    `misses` stay those of the user's own.
    """
    if not shipped:
        return own
    files = (own, *(one.contents for one in shipped))
    environments = (one.contents.environment for one in shipped if one.problem is None)
    return replace(
        own,
        verdicts=_First([contents.verdicts for contents in files], lambda verdict: verdict.rounds > 0),
        plans=_First([own.plans, *(_Agreeing(own.verdicts, one.contents) for one in shipped)], lambda plan: True),
        environment=own.environment or next(environments, None),
    )


def origin_of(entry: Verdict | Plan, own: CacheContents, shipped: Sequence[Shipped]) -> Shipped | None:
    """The entry of the search path that a verdict or plan comes from; None for the user's own, and for one that is in neither."""
    if _holds(own, entry):
        return None
    return next((one for one in shipped if _holds(one.contents, entry)), None)


def _holds(contents: CacheContents, entry: Verdict | Plan) -> bool:
    if isinstance(entry, Plan):
        return contents.plans.get(entry.fingerprint) == entry
    return contents.verdicts.get(entry.problem) == entry


class _Agreeing(Mapping[str, Plan]):
    """The plans of a shipped cache, but for those that rest on another winner than a verdict of the user's own."""

    def __init__(self, own: Mapping[str, Verdict], contents: CacheContents) -> None:
        self._own, self._contents = own, contents

    def __getitem__(self, key: str) -> Plan:
        plan = self._contents.plans[key]
        for problem in plan.tactics:
            mine = self._own.get(problem)
            if mine is None or not mine.rounds:
                continue
            theirs = self._contents.verdicts.get(problem)
            if theirs is not None and theirs.winner != mine.winner:
                raise KeyError(key)
        return plan

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._contents.plans if key in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _First(Mapping[str, _R]):
    """The entries of several files: under each key the first that `says` something, or else the first at all.

    What lies under an entry that says something is not read; `len` and iteration read everything.
    """

    def __init__(self, files: Sequence[Mapping[str, _R]], says: Callable[[_R], bool]) -> None:
        self._files = tuple(files)
        self._says = says

    def __getitem__(self, key: str) -> _R:
        found: _R | None = None
        for file in self._files:
            entry = file.get(key)
            if entry is not None and self._says(entry):
                return entry
            found = entry if found is None else found
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(key for file in self._files for key in file))

    def __len__(self) -> int:
        return len(set().union(*self._files))

    def __repr__(self) -> str:
        return f"<entries of {len(self._files)} files, the first of which goes first>"


def _read(entry: Path, environment: Environment) -> Shipped:
    path = _file_of(entry, environment)
    if path is not None:
        return Shipped(entry=entry, path=path, contents=read_cache(path, environment))
    detail = (
        f"nothing in this directory is of this environment: there is neither autotune/{environment.digest}/winners.json "
        f"nor {environment.digest}{SUFFIX}"
    )
    miss = Miss(kind="unreadable", where=one_line(entry), detail=detail)
    nothing = CacheContents(verdicts={}, plans={}, environment=None, found=Misses(miss.where, miss))
    return Shipped(entry=entry, path=entry, contents=nothing)


def _file_of(entry: Path, environment: Environment) -> Path | None:
    """The file to read for an entry; None for a directory that holds none for this environment."""
    if not os.path.isdir(entry):
        return entry
    cache = entry / "autotune" / environment.digest / "winners.json"
    if os.path.exists(cache) or os.path.isdir(folder_of(cache)):
        return cache
    bundle = entry / f"{environment.digest}{SUFFIX}"
    return bundle if os.path.exists(bundle) else None
