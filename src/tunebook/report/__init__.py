"""The report: a run, a cache, or the comparison of two of them, as one page that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunebook.book import Source, diff
from tunebook.errors import StoreError, UsageError
from tunebook.report._comparison import comparison_page
from tunebook.report._page import run_page
from tunebook.report._plain import PlainTable, plain_view
from tunebook.report._render import render
from tunebook.store import read_any
from tunebook.store.files import replace_atomically

__all__ = ["PlainTable", "comparison_of", "page_of_tables", "report_of", "write_page"]


def report_of(path: Path | str) -> str:
    """The page of a run file or a cache. Raises StoreError, in one line, for what is neither."""
    return render("run.html.j2", run_page(str(path), read_any(path)))


def comparison_of(before: Path | str, after: Path | str) -> str:
    """The page that compares two runs or caches, as `tunebook.book.diff` does. Raises StoreError as `report_of` does."""
    return render("comparison.html.j2", comparison_page(diff(Source.read(before), Source.read(after))))


def page_of_tables(
    *,
    title: str,
    kind: str,
    answers: Sequence[str],
    sides: Sequence[tuple[str, Sequence[tuple[str, str]]]],
    warnings: Sequence[str],
    tables: Sequence[PlainTable],
) -> str:
    """The page of something that is not tunebook's own: sentences, lists of facts with a heading each, and tables."""
    view = plain_view(title=title, kind=kind, answers=answers, sides=sides, warnings=warnings, tables=tables)
    return render("plain.html.j2", view)


def write_page(page: str, path: Path, inputs: tuple[Path, ...] = ()) -> int:
    """Write a page, all of it or nothing; an older file there is replaced. Returns its size in bytes.

    Raises UsageError where `path` is one of the `inputs`, or no place for a file, and StoreError where it cannot be written.
    """
    if any(path.resolve() == one.resolve() for one in inputs):
        raise UsageError(f"-o {path} is what the report is of, and would be lost; name another file")
    if path.exists() and not path.is_file():
        raise UsageError(f"-o {path} is not a file; name one, for instance report.html")
    data = page.encode("utf-8", errors="replace")
    try:
        replace_atomically(path, data)
    except OSError as error:
        raise StoreError(
            f"{path}: the report cannot be written: {error.strerror}; name another file with -o"
        ) from error
    return len(data)
