"""The file of coverage: read with care, and added to by any number of processes, each of which may die at any moment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
from filelock import FileLock, Timeout

from tunebook.envs import envs
from tunebook.errors import StoreError
from tunebook.records import SCHEMA, CoverageDocument, Environment, Served
from tunebook.store._aside import kept_aside
from tunebook.store._text import cause, one_line
from tunebook.store.files import read_bounded, replace_atomically, sweep
from tunebook.store.location import Location
from tunebook.store.misses import Miss
from tunebook.store.objects import read_record
from tunebook.store.run_files import other_schema

#: The file beside a cache that holds what was counted.
COVERAGE_NAME: Final = "coverage.json"
#: The largest such file that is read or written, and the most problems in one: a model has some hundred.
MAX_COVERAGE_BYTES: Final = 2**20
MAX_PROBLEMS: Final = 2000
_POLL_S: Final = 0.02


class _Shell(msgspec.Struct):
    schema: int = SCHEMA


_shell = msgspec.json.Decoder(_Shell)
_document = msgspec.json.Decoder(CoverageDocument)
_encoder = msgspec.json.Encoder(order="deterministic")


def coverage_path(environment: Environment) -> Path:
    """Where calls are counted: TUNEBOOK_COVERAGE_FILE, whose links are followed, else beside the environment's cache."""
    named = envs.TUNEBOOK_COVERAGE_FILE.get()
    if named is not None:
        return named_file(named)
    return coverage_beside(Location.of(environment))


def coverage_beside(location: Location) -> Path:
    """Where the calls that a cache serves are counted: beside it, under a name that tells which of several it is of."""
    name = COVERAGE_NAME if location.stem == "winners" else f"{location.stem}.{COVERAGE_NAME}"
    return location.cache.with_name(name)


def named_file(path: Path) -> Path:
    """The file that a user means by a path, ``~`` and links followed. Raises ``StoreError`` for what cannot be a path."""
    try:
        return Path(os.path.realpath(path.expanduser()))
    except (OSError, ValueError, RuntimeError) as error:
        raise StoreError(f"{one_line(path)}: {one_line(error)}") from None


def read_coverage(path: Path) -> CoverageDocument:
    """What a file holds. Raises ``StoreError``, in one line, for one that cannot be read or is of another schema."""
    data = read_bounded(path, MAX_COVERAGE_BYTES)
    if isinstance(data, Miss):
        raise StoreError(str(data))
    document = _parsed(data)
    if isinstance(document, str):
        raise StoreError(f"{one_line(path)}: {document}")
    return document


def add_coverage(path: Path, counted: CoverageDocument, wait_s: float) -> bool:
    """Add `counted` to the file under a lock, and replace it atomically. False where another process holds that for so long.

    The file keeps within `MAX_PROBLEMS` and `MAX_COVERAGE_BYTES`: what is called least is counted without its problem. A
    symbolic link at `path` is replaced. A broken file is kept under another name. Raises ``StoreError``, in one line, for a
    file of another schema, or none of a regular kind, which stays as it is, and for what cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path, wait_s) as mine:
            if not mine:
                return False
            before = _present(path)
            if isinstance(before, CoverageDocument):
                counted = before.plus(counted)
            with kept_aside(path, before if isinstance(before, str) else None):
                replace_atomically(path, encode_coverage(bounded(counted)))
            sweep(path.parent, path.name)
    except OSError as error:
        raise StoreError(_not_written(path, error)) from None
    return True


def reset_coverage(path: Path, wait_s: float) -> None:
    """Remove the file. Processes that serve go on counting from what they wrote last. Raises ``StoreError``, in one line."""
    try:
        with _locked(path, wait_s) as mine:
            if not mine:
                raise StoreError(f"{one_line(path)}: not removed: another process is writing it; try again")
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"{one_line(path)}: not removed: {cause(error)}; check the permissions of its folder"
        ) from None


def bounded(document: CoverageDocument) -> CoverageDocument:
    """The document within the limits of a file; the calls of problems that do not fit are counted as `unlisted`."""
    rows = [(served, model, key) for model, problems in document.models.items() for key, served in problems.items()]
    rows.sort(key=lambda row: (-row[0].calls, row[1], row[2]))
    room, dropped = MAX_COVERAGE_BYTES // 2, 0  # the other half is for what indenting adds
    kept: dict[str, dict[str, Served]] = {}
    for count, (served, model, key) in enumerate(rows):
        size = len(_encoder.encode(key)) + len(_encoder.encode(served))
        size += 0 if model in kept else len(_encoder.encode(model))
        if count >= MAX_PROBLEMS or size > room:
            dropped += served.calls
            continue
        room -= size
        kept.setdefault(model, {})[key] = served
    if not dropped:
        return document
    rest = CoverageDocument(since=document.since, until=document.until, unlisted=dropped)
    return msgspec.structs.replace(document, models=kept).plus(rest)


def encode_coverage(document: CoverageDocument) -> bytes:
    """The bytes of a file: sorted, a line a field."""
    return msgspec.json.format(_encoder.encode(document), indent=1) + b"\n"


def _parsed(data: bytes) -> CoverageDocument | str:
    """What `data` holds, or what is wrong with it in words."""
    try:
        schema = _shell.decode(data).schema
        if schema != SCHEMA:
            return other_schema(schema).replace("tune again", "remove it")
        return read_record(data, _document)
    except RecursionError:
        return "no file of coverage: nested too deeply"
    except ValueError as error:
        return f"no file of coverage: {one_line(error)}"


def _present(path: Path) -> CoverageDocument | str | None:
    """What is there: a document, why it is a broken one, or None for nothing. Raises ``StoreError`` for what must stay."""
    data = read_bounded(path, MAX_COVERAGE_BYTES)
    if isinstance(data, Miss):
        if data.kind in ("absent", "empty"):
            return None
        raise StoreError(f"{data}; nothing is counted in it until it is removed")
    found = _parsed(data)
    if isinstance(found, str) and found.startswith("schema "):
        raise StoreError(f"{one_line(path)}: {found}")
    return found


@contextmanager
def _locked(path: Path, wait_s: float) -> Iterator[bool]:
    """Hold the lock beside the file, which ends with the process; False where another has it for `wait_s`."""
    lock = FileLock(path.with_name(f"{path.name}.lock"), fallback_to_soft=False)
    try:
        lock.acquire(timeout=wait_s, poll_interval=_POLL_S)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            lock.release()


def _not_written(path: Path, error: OSError) -> str:
    return f"{one_line(path)} was not written: {cause(error)}; name another place with TUNEBOOK_COVERAGE_FILE"
