"""Publishing: a locked merge of what was decided into the cache, replaced atomically. It never fails a tuning."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from filelock import FileLock, Timeout

from tunebook.errors import StoreError
from tunebook.records import Environment, Plan, Verdict
from tunebook.store._fold import Folded, NotMergedError, fold, present
from tunebook.store._results import Results, readable
from tunebook.store._shards import layered, own_shards, read_shards, remove_shards, write_shard
from tunebook.store._text import cause, one_line, remedy
from tunebook.store.cache import CacheContents, encode_document, parse_cache
from tunebook.store.files import Identity, read_bounded, replace_atomically
from tunebook.store.location import Location
from tunebook.store.replaced import remember, replaced_path

#: How long a publish waits for others, unless it is told otherwise. They hold the lock for as long as it takes to read and
#: write one file.
LOCK_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.02
# A directory that is deleted while it is written to is made again so often.
_TRIES: Final = 5
_MAX_ENVIRONMENT_BYTES: Final = 2**20

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What became of a publish.

    `verdicts` of ours are in the file at `path`, of which `replaced` took the place of another result; `written` is
    false where the cache held it all already and was left alone. `shard` is the file beside it where ours are instead, when
    the cache itself could not be brought up to date; readers find them there. `problem` says why results could not be kept,
    and what to do; `note` tells of something else that a user should know, such as where a broken file was put.
    """

    path: Path
    verdicts: int
    replaced: int
    written: bool = False
    shard: Path | None = None
    problem: str | None = None
    note: str | None = None


class _MergedByOthersError(Exception):
    """Our shard is gone while we waited for the lock: who held it has merged it."""


def publish(
    location: Location,
    environment: Environment,
    verdicts: Mapping[str, Verdict],
    plans: Mapping[str, Plan],
    *,
    patience: float | None = None,
) -> Published:
    """Merge `verdicts` (by problem key) and `plans` (by model fingerprint) into the cache at `location`.

    Ours are first written to a shard, a small file of their own beside the cache that readers read as well. Under a lock the
    cache is read again, all shards are merged into it, the new file is written beside it, brought to the disk and put in its
    place, and the shards are removed. Ours replace what has the same key, unless a verdict about the same tactics is better
    supported; all else stays. A process that waits for the lock is done when another one has merged its shard. Where there
    is no lock to be had within `patience` seconds (None: `LOCK_TIMEOUT_S`), or the cache cannot be replaced, the shard stays.

    A file of another environment or of a newer schema, a run file, and a file named by the user that is no cache at all are
    left as they are. A broken cache is kept beside the new one, as ``<name>.broken-<YYYYmmdd_HHMMSS>[-n]``. Where the cache
    is a symbolic link, the link stays and its target is replaced. Raises no ``OSError``: `Published.problem` says what could
    not be kept and why.
    """
    target = Path(os.path.realpath(location.cache))
    ours = readable(verdicts, plans)
    notes = [*_describe_environment(location, environment)]
    shard: list[Path] = []
    patience = LOCK_TIMEOUT_S if patience is None else patience
    try:
        before, folded = _keep(location, target, environment, ours, shard, patience)
    except (StoreError, NotMergedError) as error:
        problem = str(error)
    except OSError as error:
        problem = f"{one_line(target)} was not updated: {cause(error)} ({remedy(error)})"
    else:
        notes += folded.notes
        if outdone := ours.outdone(folded.verdicts):
            notes.append(f"{outdone} of the verdicts gave way to better supported ones that are in {one_line(target)}")
        return Published(
            path=target,
            verdicts=len(ours.verdicts) - outdone,
            replaced=sum(key in before and before[key] != folded.verdicts[key] for key in ours.verdicts),
            written=folded.written,
            shard=shard[0] if shard else None,
            problem=f"{one_line(target)} lacks {len(ours.unfit)} of the results: {ours.unfit[0]}"
            if ours.unfit
            else None,
            note="; ".join(notes) or None,
        )
    return Published(path=target, verdicts=0, replaced=0, problem=problem, note="; ".join(notes) or None)


def _keep(
    location: Location,
    target: Path,
    environment: Environment,
    ours: Results,
    kept: list[Path],
    patience: float,
) -> tuple[Mapping[str, Verdict], Folded]:
    """Put ours into the cache, or into a shard, which then is in `kept`. Raises as `fold` does where neither can be.

    Returns the verdicts that were there before under the keys of ours, and what became of it.
    """
    for left in reversed(range(_TRIES)):
        # Without the lock: a start that learnt nothing neither waits for others nor needs a place to write to.
        seen = _seen(location, target, environment)
        before = {key: seen.verdicts[key] for key in ours.verdicts if key in seen.verdicts}
        # What gives way where something was promoted is kept for the rollback, which needs the lock.
        giving_way = ours.outdone(seen.verdicts) and replaced_path(target).exists()
        if not giving_way and ours.are_in(seen.verdicts, seen.plans):
            return before, Folded(verdicts=seen.verdicts, written=False)
        try:
            return before, _publish(location, target, environment, ours, kept, patience)
        except _MergedByOthersError:
            now = _seen(location, target, environment)
            if ours.are_in(now.verdicts, now.plans):
                return before, Folded(verdicts=now.verdicts, written=True)
        except FileNotFoundError:  # the directory was deleted meanwhile
            if not left:
                raise
    raise NotMergedError(
        f"{one_line(target)} was not updated: what was written to it, or beside it, was deleted {_TRIES} times; "
        "see which program does that, then tune again"
    )


def _publish(
    location: Location,
    target: Path,
    environment: Environment,
    ours: Results,
    kept: list[Path],
    patience: float,
) -> Folded:
    target.parent.mkdir(parents=True, exist_ok=True)
    shard: Path | None
    try:
        shard = _to_shard(target, environment, ours)
    except OSError:  # merging still may work; where it does not, its own error says what is the matter
        shard = None
    try:
        with _locked(target, shard, patience):
            remember(location, target, environment, ours)
            return fold(location, target, environment, ours)
    except StoreError:
        remove_shards(target, [shard] if shard else [])
        raise
    except (NotMergedError, OSError) as error:
        if shard is None:
            if isinstance(error, NotMergedError):
                raise NotMergedError(f"{one_line(target)} was not updated: {error}") from error
            raise
        if not shard.exists():
            raise _MergedByOthersError from error
        why = f"{cause(error)} ({remedy(error)})" if isinstance(error, OSError) else str(error)
    kept.append(shard)
    note = (
        f"{one_line(shard)} holds what could not be merged into {one_line(target)} yet: {why}. Readers of the cache read it too, "
        "and the next process that can merges it"
    )
    return Folded(verdicts=ours.verdicts, written=True, notes=(note,))


def _seen(location: Location, target: Path, environment: Environment) -> CacheContents:
    """What the cache and its shards hold. Raises ``StoreError`` for a file that must be left as it is."""
    shards = read_shards(target, environment, parse_cache)
    there = Identity.of(target)
    return layered(present(location, target, environment), there.written if there else 0, shards)


def _to_shard(target: Path, environment: Environment, ours: Results) -> Path:
    """Write ours to a shard of this process; those that it could not merge earlier are taken over into the new one."""
    earlier = own_shards(target)
    shards = read_shards(target, environment, parse_cache)
    verdicts: dict[str, Verdict] = {}
    plans: dict[str, Plan] = {}
    for shard in shards.found:
        if shard.path in earlier and shard.state == "good":
            taken = Results(verdicts=shard.verdicts, plans=shard.plans).over(verdicts, plans)
            verdicts, plans = dict(taken.verdicts), dict(taken.plans)
    together = ours.over(verdicts, plans)
    data = encode_document(environment, dict(together.verdicts), dict(together.plans))
    there = Identity.of(target)
    after = max([there.written if there else 0, *(shard.written for shard in shards.found)])
    path = write_shard(target, data, after)
    remove_shards(target, [shard.path for shard in shards.found if shard.path in earlier and shard.state == "good"])
    return path


@contextmanager
def _locked(target: Path, shard: Path | None, patience: float) -> Iterator[None]:
    """Hold the lock beside the cache. Raises ``_MergedByOthersError`` as soon as waiting is of no use, and ``NotMergedError``."""
    path = target.with_name(f"{target.name}.lock")

    def merged() -> bool:
        return shard is not None and not shard.exists()

    # A lock that is a mere file would stay with a process that is killed: better none, and the shard is kept.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=patience, poll_interval=_POLL_S, cancel_check=merged)
    except Timeout:
        if merged():
            raise _MergedByOthersError from None
        raise NotMergedError(
            f"another process has held {one_line(path)} for {patience:g} s; see whether it hangs, then try again"
        ) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NotMergedError(f"{one_line(path)} cannot be locked: {cause(error)} ({remedy(error)})") from error
    try:
        if merged():
            raise _MergedByOthersError
        yield
    finally:
        with suppress(OSError):  # closing it, at the latest when this process ends, unlocks it as well
            lock.release()


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
