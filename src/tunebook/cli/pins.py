"""`tunebook pins`: the pins beside a cache, and whether each is offered today."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunebook.cli._options import Json, PinsCache, Threads
from tunebook.cli._output import only_json, print_json, say
from tunebook.cli._run import blaming, edge
from tunebook.cli._tables import table
from tunebook.cli._text import clean


def pins(
    cache: PinsCache = None,
    threads: Threads = None,
    with_: Annotated[
        list[Path] | None,
        typer.Option("--with", help="The Python file that declares the ops or runners that are pinned."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the pins; one that is not offered any more is an error that names it."""
    with edge():
        from tunebook.book.serving import RULE
        from tunebook.cli._pins import effect, known_problems, pinned_cache, refusals
        from tunebook.errors import StoreError
        from tunebook.ops import load_file
        from tunebook.store import pins_path, read_cache, read_pins

        where = pinned_cache(cache, threads)
        path = pins_path(where)
        found = read_pins(path)
        states = []
        if found.tactics:
            from tunebook.book.pinning import pin_states

            files = tuple(with_ or ())
            with only_json(as_json), blaming(files):
                for file in files:
                    load_file(file)
            states = pin_states(found, known_problems(read_cache(where, None)))
        if as_json:
            import msgspec

            rows = [msgspec.to_builtins(state) for state in states]
            print_json({"path": str(path), "pins": rows, "misses": [str(miss) for miss in found.misses]})
        else:
            say(f"{clean(path)}: {len(states)} pin{'' if len(states) == 1 else 's'}; {RULE}")
            table("Pins", ("for", "tactic", "now"), [(clean(s.target), clean(s.tactic), effect(s)) for s in states])
            table("Problems that a pin is not offered for", ("pin", "problem", "why"), refusals(states))
            for miss in found.misses:
                say(f"miss: {miss}")
        wrong = [f"{s.target} = {s.tactic}: {s.wrong}" for s in states if s.wrong]
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise StoreError(f"{clean(path)}: pin {clean(wrong[0])}{more}; take it away with `tunebook unpin`")
        if found.misses:
            raise StoreError(f"{found.misses[0]}; mend the file, or remove it")
