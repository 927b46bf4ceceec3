"""`tunebook report`: a run, a cache, or the comparison of two, as one page to read and to send."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunebook._figures import size
from tunebook.cli._options import Json, Threads, WordsCache
from tunebook.cli._output import print_json, say
from tunebook.cli._run import edge
from tunebook.cli._text import clean


def report(
    a: Annotated[
        str, typer.Argument(metavar="RUN|CACHE", help="A path, or latest, previous or cache; also another tuner's.")
    ] = "latest",
    b: Annotated[
        str | None, typer.Argument(metavar="B", help="Another one: the page then compares it with the first.")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Where the page goes; an older one is replaced.")
    ] = Path("report.html"),
    model: Annotated[str | None, typer.Option(help="For latest and previous: only runs of this model.")] = None,
    cache: WordsCache = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page about a run or a cache, or about the differences between two."""
    with edge():
        paths = _paths(a, b, model, cache, threads)
        from tunebook.cli._foreign_page import foreign_page
        from tunebook.report import comparison_of, report_of, write_page

        page = foreign_page(paths) or (report_of(paths[0]) if len(paths) == 1 else comparison_of(*paths))
        written = write_page(page, output, paths)
        if as_json:
            print_json({"page": str(output), "bytes": written, "of": [str(path) for path in paths]})
        else:
            say(f"{clean(output)}: {size(written)}, {' against '.join(clean(path) for path in reversed(paths))}")


def _paths(
    a: str, b: str | None, model: str | None, cache: Path | None, threads: int | None
) -> tuple[Path] | tuple[Path, Path]:
    from tunebook.book import NAMES, check_names, place_of, resolve
    from tunebook.errors import UsageError

    if b is not None:
        check_names((a, b))
    names = (a,) if b is None else (a, b)
    if any(name in NAMES for name in names):
        place = place_of(cache, threads)
        found = [resolve(name, place, model) for name in names]
    elif model is not None or cache is not None or threads is not None:
        raise UsageError(f"--model, --cache and --threads choose {', '.join(NAMES)}; {' and '.join(names)} needs none")
    else:
        found = [Path(name) for name in names]
    return (found[0],) if len(found) == 1 else (found[0], found[1])
