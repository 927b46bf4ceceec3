"""Two books of one tuner made one, and a book written as another format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunebook.errors import UsageError
from tunebook.interop._diff import Flip, diff
from tunebook.interop._format import ForeignBook, Format, Merges


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The book; for which problems a later one chose differently, which did not count; what each brought."""

    book: ForeignBook
    conflicts: tuple[Flip, ...]
    added: tuple[int, ...]


def merge(kind: Format, books: Sequence[ForeignBook]) -> Merged:
    """The entries of all of them; for a problem that several have, the first one's.

    Raises ``UsageError`` where they are not of one format, that format cannot be merged, or they do not belong together.
    """
    first, *rest = books
    if not isinstance(kind, Merges):
        raise UsageError(
            f"books of {kind.name} are not merged: of one problem either book may be right, and none tells"
        )
    conflicts: list[Flip] = []
    added: list[int] = []
    whole = first
    for book in rest:
        if book.format != first.format:
            raise UsageError(
                f"{first.path} is of {first.format} and {book.path} of {book.format}; convert one first: "
                f"tunebook convert {book.path} --to {first.format} -o …"
            )
        found = diff(whole, book)
        merged = kind.merge(whole, book)
        conflicts.extend(found.flipped)
        added.append(len(merged.entries) - len(whole.entries))
        whole = merged
    return Merged(book=whole, conflicts=tuple(conflicts), added=tuple(added))


def write(kind: Format, book: ForeignBook, path: Path) -> None:
    """Write a book in a format. Raises ``UsageError`` where `path` is the book's own, and as `Format.write` does."""
    if path.exists() and path.resolve() == book.path.resolve():
        raise UsageError(f"-o {path} is what is read, and would be lost; name another place")
    kind.write(book, path)
