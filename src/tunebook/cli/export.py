"""`tunebook export`: this environment's cache, and the runs that support it, as one file to ship."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunebook._figures import size
from tunebook.cli._options import Json, Threads
from tunebook.cli._output import print_json, say
from tunebook.cli._run import edge
from tunebook.cli._text import clean


def export(
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="The bundle that is written. Default: <environment digest>.tunebook."
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Put in the N newest of the runs that the results come from. Default: all."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE where it is there already.")] = False,
    cache: Annotated[Path | None, typer.Option(help="The cache that is exported. Default: this environment's.")] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write environment, winners, plans and the runs that they come from into one file: to ship, or for `tunebook import`."""
    with edge():
        from tunebook.book import check_new, place_of, write_new
        from tunebook.book.bundle import export as make
        from tunebook.store.bundles import SUFFIX

        place = place_of(cache, threads)
        if output is not None:
            check_new(output, force=force)
        made = make(place, runs)
        path = output if output is not None else Path(f"{made.environment.digest}{SUFFIX}")
        write_new(path, made.data, force=force)
        if as_json:
            print_json(
                {
                    "bundle": str(path),
                    "bytes": len(made.data),
                    "cache": str(place.cache),
                    "environment": {"digest": made.environment.digest, "hard": made.environment.hard},
                    "verdicts": made.verdicts,
                    "supported": made.supported,
                    "plans": made.plans,
                    "runs": list(made.runs),
                    "notes": list(made.notes),
                }
            )
            return
        for note in made.notes:
            say(f"note: {clean(note)}")
        say(
            f"{clean(path)}: {size(len(made.data))}, {made.verdicts} winners, {made.supported} of them with their run, "
            f"{made.plans} plans, {len(made.runs)} runs, of {clean(place.cache)}"
        )
