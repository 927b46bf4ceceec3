"""The report page of a book of another tuner, or of two compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunebook.cli import _foreign

if TYPE_CHECKING:
    from tunebook.interop import ForeignBook, ForeignDiff


def foreign_page(paths: Sequence[Path]) -> str | None:
    """The page, or None where what stands at `paths` is tunebook's own."""
    books = _foreign.books(paths, "report")
    if books is None:
        return None
    from tunebook import interop

    return _one(books[0]) if len(books) == 1 else _two(books, interop.diff(*books))


def _one(book: ForeignBook) -> str:
    from tunebook.interop import by_name
    from tunebook.report import PlainTable, page_of_tables

    count = len(book.entries)
    entries = [_foreign.entry_row(entry) for _, entry in sorted(book.entries.items())]
    trials = [
        (entry.problem or key, trial.tactic, _foreign.took(trial.seconds), trial.reason)
        for key, entry in sorted(book.entries.items())
        for trial in entry.trials
    ]
    return page_of_tables(
        title=book.path.name,
        kind=by_name(book.format).title,
        answers=[f"{count} problem{'' if count == 1 else 's'} with their winners, as the file tells them."],
        sides=[("", [("File", str(book.path)), ("Format", book.format), *book.facts.items()])],
        warnings=[str(miss) for miss in book.misses],
        tables=[
            PlainTable(title="Entries", caption="By key", columns=_foreign.ENTRY_COLUMNS, rows=entries),
            PlainTable(
                title="Trials", caption="By key", columns=("problem", "tactic", ">a call", "reason"), rows=trials
            ),
        ],
    )


def _two(books: Sequence[ForeignBook], found: ForeignDiff) -> str:
    from tunebook.report import PlainTable, page_of_tables

    differing = {fact.name for fact in found.facts}
    sides = [
        (
            "AB"[number],
            [
                ("File", str(book.path)),
                ("Format", book.format),
                ("Entries", str(len(book.entries))),
                *((name, value) for name, value in book.facts.items() if name in differing),
            ],
        )
        for number, book in enumerate(books)
    ]
    unreadable = [f"{name}: {miss}" for name, book in zip("AB", books, strict=True) for miss in book.misses]
    flips = PlainTable(
        title="Winners that flipped",
        caption="By key",
        columns=_foreign.FLIP_COLUMNS,
        rows=_foreign.flip_rows(found, str),
    )
    only = [
        PlainTable(title=f"Only in {side}", caption="By key", columns=("problem", "choice"), rows=_rows(book, keys))
        for side, book, keys in zip("AB", books, (found.only_before, found.only_after), strict=True)
    ]
    sentence = _foreign.answer(found)
    return page_of_tables(
        title=" and ".join(dict.fromkeys(book.path.name for book in books)),
        kind=" and ".join(dict.fromkeys(book.format for book in books)),
        answers=[f"{sentence[0].upper()}{sentence[1:]}."],
        sides=sides,
        warnings=unreadable,
        tables=[flips, *only],
    )


def _rows(book: ForeignBook, keys: Sequence[str]) -> list[tuple[str, str]]:
    return [(key, book.entries[key].choice) for key in keys]
