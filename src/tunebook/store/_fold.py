"""Merging shards and new results into the cache. Whoever does it holds the lock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunebook.errors import StoreError
from tunebook.records import SCHEMA, Environment, Verdict
from tunebook.store._aside import kept_aside
from tunebook.store._merge import chosen_verdict
from tunebook.store._places import may_be_shared
from tunebook.store._results import Results
from tunebook.store._shards import Shard, Shards, folder_of, layers, read_shards, remove_shards, set_aside
from tunebook.store._text import one_line
from tunebook.store.bundles import is_bundle
from tunebook.store.cache import (
    MAX_CACHE_BYTES,
    CacheContents,
    describe_differences,
    encode_document,
    parse_cache,
    schema_of,
)
from tunebook.store.files import Identity, read_bounded, replace_atomically, sweep
from tunebook.store.location import Location
from tunebook.store.misses import Miss, Misses
from tunebook.store.run_files import looks_like_run, other_schema

#: Where other hosts may write to the same directory, a shard stays for so long after it was merged: a host that does not
#: see our lock may still be about to replace the cache by one without it.
LINGER_S: Final = 600.0
#: How often a merge begins again because somebody who does not see our lock has replaced the cache meanwhile.
MERGE_TRIES: Final = 10
ELSEWHERE: Final = "choose another place with --cache or TUNEBOOK_CACHE_DIR"


class NotMergedError(Exception):
    """The cache could not be brought up to date; says why. What is in a shard is not lost."""


class _ReplacedError(Exception):
    """The file is not the one that was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """The cache's verdicts with ours in it; whether it was written; and what a user should know."""

    verdicts: Mapping[str, Verdict]
    written: bool
    notes: tuple[str, ...] = ()


def fold(location: Location, target: Path, environment: Environment, ours: Results) -> Folded:
    """Merge shards, and `ours` as the latest results, into the cache at `target`, and remove the merged shards.

    The file is read, and replaced only if it is still the same: a host on which our lock means nothing may have replaced it,
    and then all begins again. Raises ``OSError``, ``StoreError`` for a file that must be left as it is, and
    ``NotMergedError`` where somebody replaces it all the time.
    """
    for _ in range(MERGE_TRIES):
        try:
            return _fold(location, target, environment, ours)
        except _ReplacedError:
            continue
    raise NotMergedError("another host, which does not see this one's locks, keeps replacing it")


def _fold(location: Location, target: Path, environment: Environment, ours: Results) -> Folded:
    read = read_shards(target, environment, parse_cache, oldest=True)
    shards = Shards(found=tuple(shard for shard in read.found if shard.state != "foreign"))
    there = Identity.of(target)
    main = present(location, target, environment)
    # This reads every entry, so that none which cannot be served is written again, and all of them are known below.
    verdicts, plans = dict(main.verdicts), dict(main.plans)
    layered_verdicts, layered_plans = layers(main, there.written if there else 0, shards)
    verdicts |= {key: layered_verdicts[key] for shard in shards.found for key in shard.verdicts}
    plans |= {key: layered_plans[key] for shard in shards.found for key in shard.plans}
    result = ours.over(verdicts, plans)
    notes: list[str] = []
    written = result.verdicts != main.verdicts or result.plans != main.plans
    now = max([there.written if there else 0, *(shard.written for shard in read.found)])
    if written:
        data = encode_document(environment, dict(result.verdicts), dict(result.plans))
        if len(data) > MAX_CACHE_BYTES:
            raise StoreError(
                f"{one_line(target)} is left as it is: with these results it would be {len(data)} bytes, more than the "
                f"{MAX_CACHE_BYTES} that are read; {ELSEWHERE}"
            )
        _sweep(location, target)

        def check() -> None:
            if Identity.of(target) != there:
                raise _ReplacedError

        check()
        with kept_aside(target, _broken(main)) as kept:
            # where links do not work, keeping it aside has taken the file away
            now = replace_atomically(target, data, after=now, check=check if target.exists() else None)
        notes += kept
    notes += _clear(target, main, shards.found, now)
    return Folded(verdicts=result.verdicts, written=written, notes=tuple(notes))


def _clear(target: Path, main: CacheContents, shards: tuple[Shard, ...], now: int) -> list[str]:
    """Remove what was merged: at once, or where others may write as well when it was seen in the cache some time later."""
    notes = []
    for shard in shards:
        if shard.state == "broken":
            try:
                notes.append(set_aside(shard))
            except OSError:
                continue  # it is another user's, or gone; what can be read of it is merged again
    merged = [shard for shard in shards if shard.state == "good"]
    if may_be_shared(target.parent):
        merged = [s for s in merged if now - s.written > LINGER_S * 1e9 and _holds(main, s)]
    remove_shards(target, [shard.path for shard in merged])
    return notes


def _holds(main: CacheContents, shard: Shard) -> bool:
    """Whether the cache, as it was read, had what is in a shard, or what took its place."""
    there = main.verdicts
    return all(
        key in there and chosen_verdict(v, there[key]) == there[key] for key, v in shard.verdicts.items()
    ) and all(key in main.plans for key in shard.plans)


def _sweep(location: Location, target: Path) -> None:
    sweep(target.parent, f"{target.name}.")
    sweep(folder_of(target))
    if location.environment_file is not None:
        sweep(location.environment_file.parent, f"{location.environment_file.name}.")


def present(location: Location, target: Path, environment: Environment) -> CacheContents:
    """The entries of the file to merge with. Raises ``StoreError`` for a file that must be left as it is."""
    left = f"{one_line(target)} is left as it is"
    data = read_bounded(target, MAX_CACHE_BYTES)
    if isinstance(data, Miss):
        if data.kind != "unreadable":
            return CacheContents(verdicts={}, plans={}, environment=None, found=Misses(one_line(target)))
        raise StoreError(f"{one_line(target)} cannot be read, so it is not updated: {data.detail}; {ELSEWHERE}")
    if looks_like_run(data):
        raise StoreError(f"{left}: it is a run file, not a cache; {ELSEWHERE}")
    if is_bundle(data):
        raise StoreError(
            f"{left}: it is a bundle, not a cache: name it in TUNEBOOK_CACHE_PATH, or import it; {ELSEWHERE}"
        )
    contents = parse_cache(target, data, environment)
    if contents.environment is not None and (differences := describe_differences(environment, contents.environment)):
        raise StoreError(f"{left}: {differences}; {ELSEWHERE}")
    whole = _whole(contents)
    if whole is not None and whole.kind != "not JSON":
        schema = schema_of(data)
        if schema is not None and schema > SCHEMA:
            raise StoreError(f"{left}: {other_schema(schema)}, or {ELSEWHERE}")
        if schema is None and location.explicit:
            raise StoreError(f"{left}: {whole.detail}; {ELSEWHERE}")
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
