"""`tunebook convert`: a book of another tuner, or a run, written in another format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunebook.cli._options import Json
from tunebook.cli._output import print_json, say
from tunebook.cli._run import edge
from tunebook.cli._text import clean

if TYPE_CHECKING:
    from tunebook.interop import ForeignBook


def convert(
    a: Annotated[
        str,
        typer.Argument(metavar="A", help="A book of another tuner; or, for --to t4, a run: a path, latest, previous."),
    ],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="The format to write; docs/formats.md lists them.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="C", help="Where it goes: a file, which is replaced, or a directory."),
    ],
    as_json: Json = False,
) -> None:
    """Write a book in another format, or again in its own, and say what that format cannot hold."""
    with edge():
        from tunebook.interop import by_name, losses, write

        kind = by_name(to)
        book, source = _book(a, to)
        write(kind, book, output)
        lost = [loss.what for loss in losses(kind, source)]
        if as_json:
            print_json(
                {
                    "path": str(output),
                    "format": kind.name,
                    "of": str(book.path),
                    "from": source,
                    "entries": len(book.entries),
                    "fidelity": kind.fidelity,
                    "lost": lost,
                    "misses": [str(miss) for miss in book.misses],
                }
            )
            return
        say(f"{clean(output)}: {kind.name}, of {clean(book.path)} ({source}, {len(book.entries)} entries)")
        for loss in lost:
            say(f"{kind.name} does not hold: {loss}")
        for miss in book.misses:
            say(f"miss: {miss}")


def _book(name: str, to: str) -> tuple[ForeignBook, str]:
    """The book, and what it is: a format's name or "run"."""
    from tunebook.book import NAMES, place_of, resolve
    from tunebook.errors import UsageError
    from tunebook.interop import from_run, open_any
    from tunebook.store import Run, read_any

    path = resolve(name, place_of(None, None), None) if name in NAMES else Path(name)
    book = open_any(path)
    if book is not None:
        return book, book.format
    found = read_any(path)
    if not isinstance(found, Run):
        raise UsageError(f"{path} is a cache of tunebook's, and keeps no trials; convert the run it came from: --to t4")
    return from_run(found, to), "run"
