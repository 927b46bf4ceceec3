"""Shards: what a process publishes lies in a file of its own beside the cache until it is seen in the cache.

A shard is a cache document like any other, at ``<cache>.d/<host>-<pid>-<random>-<n>.json``. Its name is used once, its content
never changes, and it is removed by whoever has merged it into the cache. Its date says when it was published: files of one
cache are dated in the order in which they were written, also where a clock is set back.
"""

from __future__ import annotations

import heapq
import itertools
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from tunebook.records import Environment, Plan, Verdict
from tunebook.store._merge import Layers, chosen_plan, chosen_verdict
from tunebook.store._places import host_name
from tunebook.store._text import one_line
from tunebook.store.files import own_directory, read_bounded, replace_atomically
from tunebook.store.misses import Miss

if TYPE_CHECKING:
    from tunebook.store.cache import CacheContents

#: So many shards of a cache are read: a reader takes the newest, who merges them the oldest.
MAX_SHARDS: Final = 1000
#: So many bytes of shards are read in all.
MAX_SHARD_BYTES: Final = 64 * 2**20
# A directory with more names than this was not filled by tunebook.
_MAX_NAMES: Final = 100_000
_TRIES: Final = 20

_token = secrets.token_hex(4)
_count = itertools.count()

Parse = Callable[[Path, bytes, Environment | None], "CacheContents"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One shard, read in full: the entries that can be served, and what is wrong with the rest.

    `state`: ``foreign`` is of another environment or schema, and not ours to remove; of a ``broken`` one a part, or nothing,
    can be read.
    """

    path: Path
    written: int  #: nanoseconds, of its file system's clock
    verdicts: Mapping[str, Verdict]
    plans: Mapping[str, Plan]
    environment: Environment | None
    state: Literal["good", "broken", "foreign"]
    misses: tuple[Miss, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """The shards of a cache, the oldest first; `misses` are about those that were not read."""

    found: tuple[Shard, ...] = ()
    misses: tuple[Miss, ...] = ()


def folder_of(cache: Path) -> Path:
    """Where the shards of a cache lie; `cache` is the file itself, no link to it."""
    return cache.with_name(f"{cache.name}.d")


def read_shards(cache: Path, environment: Environment | None, parse: Parse, *, oldest: bool = False) -> Shards:
    """Read at most `MAX_SHARDS` shards, the newest ones or the oldest, of at most `MAX_SHARD_BYTES` in all.

    To be called before the cache itself is read: what is merged into it meanwhile is then found there. Names that are no
    shard's, links and whatever else is no plain file are passed over. `environment` is as in `read_cache`.
    """
    found: dict[Path, Shard] = {}
    left, room = 0, MAX_SHARD_BYTES
    for _ in range(_TRIES):
        listed = list_shards(cache)
        taken = (heapq.nsmallest if oldest else heapq.nlargest)(MAX_SHARDS, listed)
        left, gone = len(listed) - len(taken), 0
        for written, path in taken:
            if path in found:
                continue
            data = read_bounded(path, room)
            if not isinstance(data, Miss):
                room -= len(data)
                found[path] = _shard(path, written, parse(path, data, environment))
            elif data.kind == "unreadable":
                left += 1
            elif data.kind == "absent":
                gone += 1
            else:
                found[path] = _shard(path, written, None, data)
        if not gone:  # else it was merged into the cache, or its process has taken it over into a new one
            break
    misses: tuple[Miss, ...] = ()
    if left:
        detail = f"{left} of its files are not read: more than {MAX_SHARDS}, too large, or not readable"
        misses = (Miss(kind="entry", where=one_line(folder_of(cache)), detail=detail),)
    return Shards(found=tuple(sorted(found.values(), key=lambda shard: (shard.written, shard.path))), misses=misses)


def layered(contents: CacheContents, written: int, shards: Shards) -> CacheContents:
    """What the cache, last written then (nanoseconds), and its shards hold together."""
    for miss in (*shards.misses, *(miss for shard in shards.found for miss in shard.misses)):
        contents.found.add(miss)
    serving = [shard for shard in shards.found if shard.verdicts or shard.plans]
    if not serving:
        return contents
    verdicts, plans = layers(contents, written, shards)
    return replace(
        contents,
        verdicts=verdicts,
        plans=plans,
        environment=contents.environment or serving[0].environment,
        found=contents.found.without("absent"),
    )


def layers(contents: CacheContents, written: int, shards: Shards) -> tuple[Layers[Verdict], Layers[Plan]]:
    """The entries of a cache and its shards. What was written later is the later result."""
    before = [shard for shard in shards.found if shard.written < written]
    after = shards.found[len(before) :]
    verdicts = [*(s.verdicts for s in before), contents.verdicts, *(s.verdicts for s in after)]
    plans = [*(s.plans for s in before), contents.plans, *(s.plans for s in after)]
    return Layers(verdicts, chosen_verdict), Layers(plans, chosen_plan)


def list_shards(cache: Path) -> list[tuple[int, Path]]:
    """When each shard was written, and its path."""
    listed = []
    try:
        with os.scandir(folder_of(cache)) as entries:
            for entry in itertools.islice(entries, _MAX_NAMES):
                if entry.name.endswith(".json") and entry.name[0] != "." and entry.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):
                        listed.append((entry.stat(follow_symlinks=False).st_mtime_ns, Path(entry.path)))
    except (OSError, ValueError):
        pass  # there is none, as a rule; a place that cannot be looked into is told of when it is written to
    return listed


def write_shard(cache: Path, data: bytes, after: int) -> Path:
    """A new shard of this process, dated later than `after`. Raises ``OSError``."""
    folder = folder_of(cache)
    path = folder / f"{_mine()}{next(_count)}.json"
    for left in reversed(range(_TRIES)):
        own_directory(folder)
        try:
            replace_atomically(path, data, after=after)
            break
        except FileNotFoundError:  # who merged the last shard has removed the directory
            if not left:
                raise
        except OSError:
            remove_shards(cache, ())
            raise
    return path


def own_shards(cache: Path) -> list[Path]:
    """The shards that this process has written and nobody has merged yet, in their order."""
    return [path for _, path in sorted(list_shards(cache)) if path.name.startswith(_mine())]


def remove_shards(cache: Path, paths: Iterable[Path]) -> None:
    """Remove shards, and their directory with the last of them. What cannot be removed stays: it is merged again."""
    for path in paths:
        with suppress(OSError):
            path.unlink()
    with suppress(OSError):
        folder_of(cache).rmdir()


def set_aside(shard: Shard) -> str:
    """Give a broken shard a name that is not looked at. Returns what was done, in words; raises ``OSError``."""
    aside = shard.path.with_name(f"{shard.path.name}.broken")
    shard.path.rename(aside)
    return f"{one_line(shard.path)} was broken ({shard.misses[0].detail}); it is kept as {one_line(aside.name)}"


def _mine() -> str:
    return f"{host_name()}-{os.getpid()}-{_token}-"


def _shard(path: Path, written: int, contents: CacheContents | None, *wrong: Miss) -> Shard:
    verdicts = dict(contents.verdicts) if contents else {}  # reads every entry, so that all misses are known below
    plans = dict(contents.plans) if contents else {}
    misses = (*wrong, *(contents.misses if contents else ()))
    foreign = any(miss.kind in ("environment", "schema") for miss in misses)
    return Shard(
        path=path,
        written=written,
        verdicts=verdicts,
        plans=plans,
        environment=contents.environment if contents else None,
        state="foreign" if foreign else "broken" if misses else "good",
        # one shard is to the cache what one entry is: the rest is served
        misses=tuple(
            miss if miss.kind == "entry" else Miss(kind="entry", where=miss.where, detail=f"{miss.kind}: {miss.detail}")
            for miss in misses
        ),
    )
