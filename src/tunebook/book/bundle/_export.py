"""Exporting: this environment's cache and the runs that its results come from, as one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tunebook.book._place import Place
from tunebook.book._source import Source
from tunebook.book.bundle._runs import age, bundled_name, renamed, rest_on
from tunebook.errors import StoreError, UsageError
from tunebook.records import Environment, Verdict
from tunebook.store import MAX_CACHE_BYTES, MAX_RUN_BYTES, Miss
from tunebook.store._text import one_line
from tunebook.store.bundles import MAX_BUNDLE_BYTES, MAX_RUNS, encode_bundle
from tunebook.store.cache import encode_document
from tunebook.store.files import read_bounded
from tunebook.store.run_files import parse_run

#: What the archive takes for itself and for each member, and what a result grows by where its run gets another name; at most.
_ARCHIVE_BYTES = 1 << 10
_MEMBER_BYTES = 1 << 9
_NAME_BYTES = 1 << 4


@dataclass(frozen=True, kw_only=True)
class Export:
    """A bundle that was made: its bytes, and what is in it.

    `runs` are the names, beside the cache, of the run files that are in it; `supported` is how many verdicts one of them holds
    as they are; `notes` name what is not in it, and why.
    """

    data: bytes
    environment: Environment
    verdicts: int
    plans: int
    runs: tuple[str, ...]
    supported: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run as it goes in: its name there, its bytes, and its verdicts."""

    inside: str
    data: bytes
    verdicts: Mapping[str, Verdict]


def export(place: Place, most_runs: int | None = None) -> Export:
    """Make a bundle of the cache of `place`: its verdicts, its plans, and the newest `most_runs` of the runs that these name.

    The same content gives the same bytes. Pins are no part of it. Raises StoreError, in one line, for a cache that is not there,
    cannot be read, or is empty; UsageError where `most_runs` is negative.
    """
    if most_runs is not None and most_runs < 0:
        raise UsageError(f"--runs {most_runs} is not a number of runs; it is at least 0")
    source = Source.read(place.cache)
    verdicts, plans = dict(source.verdicts), dict(source.plans)
    if not verdicts and not plans:
        raise StoreError(f"{one_line(place.cache)}: it holds nothing that could be exported; `tunebook tune` fills it")
    notes = [f"{source.unreadable} entries of the cache cannot be read"] if source.unreadable else []
    notes += [
        f"{len(plan.pinned)} problems of the plan for {one_line(plan.model)} were decided by pins, which are not exported: "
        "the plan serves where the same pins are set"
        for plan in plans.values()
        if plan.pinned
    ]
    size = len(encode_document(source.environment, verdicts, plans)) + _NAME_BYTES * (len(verdicts) + len(plans))
    if size > MAX_CACHE_BYTES:
        raise StoreError(
            f"{one_line(place.cache)}: not exported: {size} bytes are more than the {MAX_CACHE_BYTES} of a cache that are read"
        )
    wanted = sorted(rest_on(verdicts.values(), plans.values()), key=age, reverse=True)
    most = MAX_RUNS if most_runs is None else min(most_runs, MAX_RUNS)
    runs = _runs(place, wanted[:most], source.environment, MAX_BUNDLE_BYTES - _ARCHIVE_BYTES - size, notes)
    if len(wanted) > most:
        notes.append(f"{len(wanted) - most} older runs are not in it")
    named = renamed(verdicts, plans, {name: run.inside for name, run in runs.items()})
    document = encode_document(source.environment, *named)
    return Export(
        data=encode_bundle(document, {run.inside: run.data for run in runs.values()}),
        environment=source.environment,
        verdicts=len(verdicts),
        plans=len(plans),
        runs=tuple(runs),
        supported=sum(v.run in runs and runs[v.run].verdicts.get(key) == v for key, v in verdicts.items()),
        notes=tuple(notes),
    )


def _runs(place: Place, names: list[str], environment: Environment, room: int, notes: list[str]) -> dict[str, _Run]:
    """Those of the named runs that go in, as far as there is room in bytes; `notes` gets a line about each other one."""
    runs: dict[str, _Run] = {}
    for name in names:
        found = _run(place, name, environment)
        if isinstance(found, str):
            notes.append(f"run {one_line(name)} is not in it: {found}")
        elif len(found.data) + _MEMBER_BYTES > room:
            notes.append(f"run {one_line(name)} is not in it: the bundle would be larger than {MAX_BUNDLE_BYTES} bytes")
        else:
            room -= len(found.data) + _MEMBER_BYTES
            runs[name] = found
    return runs


def _run(place: Place, name: str, environment: Environment) -> _Run | str:
    """A run that can be shipped, or why it cannot."""
    inside = bundled_name(name, place.cache.stem)
    if inside is None:
        return "it is not named as the runs of this cache are"
    path = place.runs / name
    data = read_bounded(path, MAX_RUN_BYTES)
    if isinstance(data, Miss):
        return data.detail
    try:
        run = parse_run(path, data)
    except StoreError as error:
        return str(error).removeprefix(f"{one_line(path)}: ")
    if differences := run.header.environment.differences(environment):
        return f"it is of another environment: {one_line('; '.join(differences))}"
    return _Run(inside=inside, data=data, verdicts=run.verdicts)
