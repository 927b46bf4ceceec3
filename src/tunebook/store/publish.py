"""Publishing: a locked merge of what was decided into the cache, replaced atomically. It never fails a tuning."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from filelock import FileLock, Timeout

from tunebook.errors import StoreError
from tunebook.records import SCHEMA, Environment, Plan, Record, Verdict
from tunebook.store._text import cause, one_line, remedy
from tunebook.store.cache import (
    MAX_CACHE_BYTES,
    CacheContents,
    describe_differences,
    encode_document,
    parse_cache,
    schema_of,
)
from tunebook.store.files import read_bounded, replace_atomically, sweep
from tunebook.store.location import Location
from tunebook.store.misses import Miss, Misses
from tunebook.store.run_files import looks_like_run, other_schema

#: How long a publish waits for others. They hold the lock for as long as it takes to read and write one file.
LOCK_TIMEOUT_S: Final = 30.0
_MAX_ENVIRONMENT_BYTES: Final = 2**20
_ELSEWHERE: Final = "choose another place with --cache or TUNEBOOK_CACHE_DIR"

_verdict = msgspec.json.Decoder(Verdict)
_plan = msgspec.json.Decoder(Plan)
_encoder = msgspec.json.Encoder()
_R = TypeVar("_R", bound=Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What became of a publish.

    `verdicts` of ours are in the file at `path`, of which `replaced` took the place of another result; `written` is
    false where the file held it all already and was left alone. `problem` says why results could not be kept, and what
    to do; `note` tells of something else that a user should know, such as where a broken file was put.
    """

    path: Path
    verdicts: int
    replaced: int
    written: bool = False
    problem: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ours:
    """What is to be merged, and a line about each result that cannot be kept."""

    verdicts: dict[str, Verdict]
    plans: dict[str, Plan]
    unfit: list[str]


def publish(
    location: Location, environment: Environment, verdicts: Mapping[str, Verdict], plans: Mapping[str, Plan]
) -> Published:
    """Merge `verdicts` (by problem key) and `plans` (by model fingerprint) into the cache at `location`.

    Under a lock beside the file it is read again; ours replace what has the same key, all else stays; the new file is
    written beside it, brought to the disk and put in its place. A file of another environment or of a newer schema, a
    run file, and a file named by the user that is no cache at all are left as they are. A broken cache is kept beside
    the new one, as ``<name>.broken-<YYYYmmdd_HHMMSS>[-n]``. Where the cache is a symbolic link, the link stays and its
    target is replaced. Raises no ``OSError``: `Published.problem` says what could not be kept and why.
    """
    target = Path(os.path.realpath(location.cache))
    ours = _readable(verdicts, plans)
    notes = [*_describe_environment(location, environment)]
    try:
        before, written = _merge(location, target, environment, ours, notes)
    except Timeout:
        lock = one_line(_lock_path(target))
        problem = (
            f"{one_line(target)} was not updated: another process has held {lock} for {LOCK_TIMEOUT_S:.0f} s; "
            "see whether it hangs, then tune again"
        )
    except StoreError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{one_line(target)} was not updated: {cause(error)} ({remedy(error)})"
    else:
        unfit = ours.unfit
        return Published(
            path=target,
            verdicts=len(ours.verdicts),
            replaced=sum(key in before and before[key] != verdict for key, verdict in ours.verdicts.items()),
            written=written,
            problem=f"{one_line(target)} lacks {len(unfit)} of the results: {unfit[0]}" if unfit else None,
            note="; ".join(notes) or None,
        )
    return Published(path=target, verdicts=0, replaced=0, problem=problem, note="; ".join(notes) or None)


def _merge(
    location: Location, target: Path, environment: Environment, ours: _Ours, notes: list[str]
) -> tuple[Mapping[str, Verdict], bool]:
    """The verdicts that were there before, and whether the file was written. What is to be told goes to `notes`."""
    present = _present(location, target, environment)
    if _adds_nothing(present, ours):
        # Without the lock: a start that learnt nothing neither waits for others nor needs a place to write to.
        return present.verdicts, False
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_lock_path(target), timeout=LOCK_TIMEOUT_S):
        present = _present(location, target, environment)
        if _adds_nothing(present, ours):
            return present.verdicts, False
        # This reads every entry, so that none which cannot be served is written again, and all of them are known below.
        verdicts, plans = {**present.verdicts, **ours.verdicts}, {**present.plans, **ours.plans}
        data = encode_document(environment, verdicts, plans)
        if len(data) > MAX_CACHE_BYTES:
            raise StoreError(
                f"{one_line(target)} is left as it is: with these results it would be {len(data)} bytes, more than the "
                f"{MAX_CACHE_BYTES} that are read; {_ELSEWHERE}"
            )
        sweep(target)
        with _kept_aside(target, _broken(present)) as kept:
            replace_atomically(target, data)
        notes += kept
    return present.verdicts, True


def _lock_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.lock")


def _adds_nothing(present: CacheContents, ours: _Ours) -> bool:
    """Whether the cache holds all of ours as it is. Reads those entries alone."""
    return all(present.verdicts.get(key) == verdict for key, verdict in ours.verdicts.items()) and all(
        present.plans.get(key) == plan for key, plan in ours.plans.items()
    )


def _readable(verdicts: Mapping[str, Verdict], plans: Mapping[str, Plan]) -> _Ours:
    """What reads back from a file under its key, in the form in which it will; and what is wrong with the rest.

    One entry that cannot be read back must not spoil the file for everybody else.
    """
    unfit: list[str] = []
    return _Ours(
        verdicts=_fit("verdict", verdicts, _verdict, lambda verdict: verdict.problem, unfit),
        plans=_fit("plan", plans, _plan, lambda plan: plan.fingerprint, unfit),
        unfit=unfit,
    )


def _fit(
    what: str,
    results: Mapping[str, _R],
    decoder: msgspec.json.Decoder[_R],
    key_of: Callable[[_R], str],
    unfit: list[str],
) -> dict[str, _R]:
    fit: dict[str, _R] = {}
    for key, result in results.items():
        try:
            read = decoder.decode(_encoder.encode(result))
            if key_of(read) != key:
                raise ValueError(f"it is about {key_of(read)}")
            fit[key] = read
        except ValueError as error:
            unfit.append(f"{what} {one_line(key)}: {one_line(error)}")
    return fit


def _present(location: Location, target: Path, environment: Environment) -> CacheContents:
    """The entries to merge with. Raises ``StoreError`` for a file that must be left as it is."""
    left = f"{one_line(target)} is left as it is"
    data = read_bounded(target, MAX_CACHE_BYTES)
    if isinstance(data, Miss):
        if data.kind != "unreadable":
            return CacheContents(verdicts={}, plans={}, environment=None, found=Misses(one_line(target)))
        raise StoreError(f"{one_line(target)} cannot be read, so it is not updated: {data.detail}; {_ELSEWHERE}")
    if looks_like_run(data):
        raise StoreError(f"{left}: it is a run file, not a cache; {_ELSEWHERE}")
    contents = parse_cache(target, data, environment)
    if contents.environment is not None and (differences := describe_differences(environment, contents.environment)):
        raise StoreError(f"{left}: {differences}; {_ELSEWHERE}")
    whole = _whole(contents)
    if whole is not None and whole.kind != "not JSON":
        schema = schema_of(data)
        if schema is not None and schema > SCHEMA:
            raise StoreError(f"{left}: {other_schema(schema)}, or {_ELSEWHERE}")
        if schema is None and location.explicit:
            raise StoreError(f"{left}: {whole.detail}; {_ELSEWHERE}")
    return contents


def _whole(contents: CacheContents) -> Miss | None:
    """What is wrong with the file, not with an entry of it."""
    return next((miss for miss in contents.misses if miss.kind != "entry"), None)


def _broken(contents: CacheContents) -> str | None:
    """Why the file must be kept aside when it is replaced, if it must; to be asked when its entries were read."""
    if (whole := _whole(contents)) is not None:
        return f"{whole.kind}: {whole.detail}"
    if misses := contents.misses:
        return f"{len(misses)} of its entries cannot be read, the first: {misses[0].detail}"
    return None


@contextmanager
def _kept_aside(target: Path, why: str | None) -> Iterator[list[str]]:
    """While the file at `target` is replaced, keep what it holds under another name, if there is a reason to.

    It yields what is to be said about it. Where the replacing fails, all is as it was.
    """
    if why is None:
        yield []
        return
    base = target.with_name(f"{target.name}.broken-{datetime.now():%Y%m%d_%H%M%S}")
    for n in itertools.count():
        aside = base.with_name(f"{base.name}-{n}") if n else base
        if not os.path.lexists(aside):
            break
    try:
        # A second name for the same bytes, so that readers find a file at the first one all the time.
        os.link(target, aside)
    except OSError:
        os.rename(target, aside)
    try:
        yield [f"{one_line(target)} was broken ({why}); it is kept as {one_line(aside.name)} and a new one is written"]
    except BaseException:
        with suppress(OSError):
            if target.exists():
                aside.unlink()
            else:
                aside.rename(target)
        raise


def _describe_environment(location: Location, environment: Environment) -> Iterator[str]:
    """Write environment.json, for people, where it is not there or not right; yields what went wrong."""
    path = location.environment_file
    if path is None:
        return
    fields = {"digest": environment.digest, "hard": dict(sorted(environment.hard.items()))}
    data = msgspec.json.format(_encoder.encode(fields), indent=2) + b"\n"
    if read_bounded(path, _MAX_ENVIRONMENT_BYTES) == data:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(path, data)
    except OSError as error:
        yield f"{one_line(path)} was not written: {cause(error)}"
