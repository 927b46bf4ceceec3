"""Damaged books of every format: each is read, or refused in one line that names it. Nothing else, and never for long."""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from _faults_mutate import damaged

from tunebook.errors import StoreError, UsageError
from tunebook.interop import FORMATS, ForeignBook, Format, diff, format_of, merge, write

#: So many files in all; a format's share of them.
FILES = 5000
SHARE = -(-FILES // len(FORMATS))
#: Of those that can be read, one in so many is written: a file that has to last takes milliseconds.
WRITTEN = 10
#: No file, however damaged, takes longer: of the fixtures' size all are read in milliseconds.
LONGEST_S = 20.0


def test_damaged_files_are_read_or_refused_in_one_line(fmt: Format, paths: list[Path], tmp_path: Path) -> None:
    rng = random.Random(fmt.name)
    originals = {path: fmt.read(path) for path in paths}
    pieces = [one.read_bytes() for path in paths for one in _files(path)]
    refused = served = 0
    for number in range(SHARE):
        path = paths[number % len(paths)]
        target = tmp_path / "books" / path.parent.name / path.name
        if number < len(paths) and path.is_dir():
            shutil.copytree(path, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        original = rng.choice(_files(path))
        changed = target if path.is_file() else target / original.relative_to(path)
        changed.write_bytes(damaged(original.read_bytes(), pieces, rng))
        began = time.monotonic()
        format_of(target)
        try:
            book = fmt.read(target)
        except StoreError as error:
            _is_one_line(str(error), changed)
            refused += 1
        else:
            served += 1
            target = tmp_path / "again" / str(number) / path.parent.name / path.name
            _can_be_used(fmt, originals[path], book, target if served % WRITTEN == 1 else None)
        assert time.monotonic() - began < LONGEST_S
        if path.is_dir():
            changed.write_bytes(original.read_bytes())
    assert refused + served == SHARE
    assert served
    assert refused or any(path.is_dir() for path in paths)  # of a store a bad entry is a miss, and the rest is served


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())


def _is_one_line(message: str, path: Path) -> None:
    assert message.isprintable(), message
    assert path.name[:40] in message or str(path.parent) in message or "…" in message, message


def _can_be_used(fmt: Format, original: ForeignBook, book: ForeignBook, target: Path | None) -> None:
    """What was read can be compared, merged and, where there is a target, written, or is refused in one line."""
    for miss in book.misses:
        assert str(miss).isprintable()
    diff(original, book)
    said = []
    uses: list[Callable[[], object]] = [lambda: merge([original, book])]
    if target is not None:
        uses.append(lambda: write(fmt, book, target))
    for use in uses:
        try:
            use()
        except UsageError as error:
            said.append(str(error))
    assert all(message.isprintable() for message in said), said
    if target is not None:
        shutil.rmtree(target.parents[1], ignore_errors=True)


@pytest.mark.parametrize("depth", [100, 5_000, 200_000])
def test_a_file_of_brackets_is_refused(fmt: Format, paths: list[Path], depth: int, tmp_path: Path) -> None:
    path = next((one for one in paths if one.is_file()), None)
    if path is None:
        path = next(one for one in _files(paths[0]) if one.suffix == ".json")
        target = tmp_path / paths[0].name
        shutil.copytree(paths[0], target)
        changed = target / path.relative_to(paths[0])
    else:
        target = changed = tmp_path / path.name
    changed.write_bytes(b"[" * depth + b"]" * depth)
    try:
        book = fmt.read(target)
    except StoreError as error:
        _is_one_line(str(error), changed)
    else:
        assert hashlib.sha256(changed.read_bytes()).digest() not in book.entries  # a store: the entry is a miss
        assert book.misses
