"""`tunebook unpin`: what was measured serves again."""

from __future__ import annotations

from typing import Annotated

import typer

from tunebook.cli._options import Json, PinsCache, Threads
from tunebook.cli._output import print_json, say
from tunebook.cli._run import edge


def unpin(
    target: Annotated[
        str, typer.Argument(metavar="OP[@BUCKET]", help="What the pin is for, as `tunebook pins` prints it.")
    ],
    cache: PinsCache = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Take a pin away: what was measured serves again, at the next start."""
    with edge():
        from tunebook.cli._pins import pinned_cache
        from tunebook.errors import UsageError
        from tunebook.store import pins_path, read_pins, update_pins
        from tunebook.store.pins import pin_target

        path = pins_path(pinned_cache(cache, threads))
        try:
            name = pin_target(target)
        except ValueError as error:
            raise UsageError(f"{target!r}: {error}; a pin is for an op, OP@BUCKET or a problem key") from None
        before = read_pins(path)
        if name not in before.tactics and not before.misses:
            some = ", ".join(sorted(before.tactics)) or "none at all"
            raise UsageError(f"{path}: there is no pin for {name}; there are {some}")
        left = update_pins(path, {name: None})
        if as_json:
            print_json(
                {"path": str(path), "unpinned": name, "tactic": before.tactics[name].name, "left": len(left.tactics)}
            )
            return
        say(f"{path}: {name} is not pinned to {before.tactics[name].name} any more")
