"""`tunebook pin`: a tactic of one's own choice serves an op, a bucket of it or one problem."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunebook.cli._options import Json, PinsCache, Threads
from tunebook.cli._output import only_json, print_json, say
from tunebook.cli._run import blaming, edge
from tunebook.cli._tables import table


def pin(
    target: Annotated[
        str, typer.Argument(metavar="OP[@BUCKET]", help="An op, OP@BUCKET (the dimensions of a key), or a problem key.")
    ],
    tactic: Annotated[
        str, typer.Argument(metavar="TACTIC", help="The tactic's name, as `tunebook show` prints it, or default.")
    ],
    cache: PinsCache = None,
    threads: Threads = None,
    with_: Annotated[
        list[Path] | None, typer.Option("--with", help="The Python file that declares the op or the runner.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Let a tactic serve whatever was measured, at the next start; `unpin` takes that back."""
    with edge():
        from tunebook.book.pinning import check_pin
        from tunebook.cli._pins import effect, known_problems, pinned_cache, refusals
        from tunebook.ops import load_file
        from tunebook.store import pins_path, read_cache, update_pins

        files = tuple(with_ or ())
        with only_json(as_json), blaming(files):
            for file in files:
                load_file(file)
        where = pinned_cache(cache, threads)
        name, chosen, state = check_pin(target, tactic, known_problems(read_cache(where, None)))
        path = pins_path(where)
        update_pins(path, {name: chosen})
        if as_json:
            print_json(
                {
                    "path": str(path),
                    "pinned": name,
                    "tactic": chosen.name,
                    "serves": state.serves,
                    "refused": state.refused,
                }
            )
            return
        say(f"{path}: {name} = {chosen.name}; it {effect(state)}")
        table("The cache serves these as before", ("pin", "problem", "why"), refusals([state]))
