"""What several books of other tuners say one after the other, for instance those that SGLang leaves in ``runs/``."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from tunebook.errors import StoreError, UsageError
from tunebook.interop._format import ForeignBook
from tunebook.interop.sglang import LEAF, RUNS, TIME, leaves_below
from tunebook.records import Record

#: So many books of one directory are read.
MAX_BOOKS: Final = 1000


class HistoryEntry(Record, frozen=True, kw_only=True):
    """One book. `flipped`, `added` and `removed` count against the one before it of the same name; None for the first.

    `when` is local time as the name tells it, else the time at which the file was last written.
    """

    path: str
    name: str
    when: str
    format: str
    entries: int
    facts: dict[str, str]
    unreadable: int = 0
    flipped: int | None = None
    added: int | None = None
    removed: int | None = None


def history(paths: Iterable[Path | str], opened: Callable[[Path], ForeignBook | None]) -> list[HistoryEntry]:
    """The books at these paths, and those in these directories, newest first; `opened` reads one, or says None.

    Raises ``StoreError`` for a malformed one, and ``UsageError`` for a path with none.
    """
    books = [book for path in paths for book in _books(Path(path), opened)]
    found = [(_stem(book.path), _when(book.path), book) for book in books]
    found.sort(key=lambda one: (one[0], one[1], str(one[2].path)))
    entries: list[HistoryEntry] = []
    for _, group in itertools.groupby(found, key=lambda one: (one[0], one[2].format)):
        entries.extend(_entries(list(group)))
    return sorted(entries, key=lambda entry: (entry.when, entry.path), reverse=True)


def _entries(group: Sequence[tuple[str, str, ForeignBook]]) -> list[HistoryEntry]:
    made = []
    before: ForeignBook | None = None
    for stem, when, book in group:
        counts = {} if before is None else _counts(before, book)
        made.append(
            HistoryEntry(
                path=str(book.path),
                name=stem,
                when=when,
                format=book.format,
                entries=len(book.entries),
                unreadable=len(book.misses),
                facts=dict(book.facts),
                **counts,
            )
        )
        before = book
    return made


def _counts(before: ForeignBook, after: ForeignBook) -> dict[str, int]:
    both = before.entries.keys() & after.entries.keys()
    return {
        "flipped": sum(before.entries[key].choice != after.entries[key].choice for key in both),
        "added": len(after.entries) - len(both),
        "removed": len(before.entries) - len(both),
    }


def _books(path: Path, opened: Callable[[Path], ForeignBook | None]) -> list[ForeignBook]:
    """The book at `path`; of a directory those of its ranks, else of each file in it."""

    if not path.is_dir():
        book = opened(path)
        if book is None:
            raise UsageError(
                f"{path}: it is no book of another tuner; without a path, `tunebook history` lists tunebook's"
            )
        return [book]
    places = list(itertools.islice(leaves_below(path), MAX_BOOKS + 1))
    if not places and (whole := opened(path)) is not None:
        return [whole]
    # What begins with a dot is being written, or was left when its writer was killed.
    places = places or [one for one in sorted(path.iterdir()) if one.is_file() and not one.name.startswith(".")]
    if len(places) > MAX_BOOKS:
        raise StoreError(f"{path}: more than {MAX_BOOKS} books are not read; name some of them")
    books = [book for place in places if (book := opened(place)) is not None]
    if not books:
        raise UsageError(f"{path}: there is no book of another tuner in it")
    return books


def _stem(path: Path) -> str:
    """What books of one rank of one model share: the model's directory and the rank."""
    found = LEAF.fullmatch(path.name.removesuffix(".json"))
    if found is None:
        return path.name
    parent = path.absolute().parent
    model = parent.parent.name if parent.name == RUNS else parent.name
    return f"{model}/{found['rank']}"


def _when(path: Path) -> str:
    """``2026-11-23 05:30:00``"""
    for part in reversed(path.absolute().parts):
        found = TIME.search(part)
        with suppress(ValueError):  # eight digits and six that are no time
            if found is not None:
                return time.strftime("%Y-%m-%d %H:%M:%S", time.strptime(found[0], "%Y%m%d_%H%M%S"))
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(os.stat(path).st_mtime))
    except (OSError, OverflowError, ValueError):
        return ""
