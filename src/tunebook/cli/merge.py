"""`tunebook merge`: two caches or runs of one environment as a third file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunebook.cli._options import Json, Threads, WordsCache
from tunebook.cli._output import print_json, say
from tunebook.cli._run import edge
from tunebook.cli._tables import table
from tunebook.cli._text import clean

if TYPE_CHECKING:
    from tunebook.book import Merged, Source

#: So many conflicts are shown; `--json` has all.
SHOWN = 20


def merge(
    a: Annotated[
        str,
        typer.Argument(metavar="A", help="A cache, run, bundle or another tuner's: a path, latest, previous, cache."),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one. It counts as the later of the two.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="C", help="The cache that is written. A and B stay as they are.")
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace C where it is there already.")] = False,
    cache: WordsCache = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Put the winners and plans of A and B into C. Of two winners for one problem the better supported one is kept.

    Of two books of another tuner, which do not tell how well a winner is supported, A's is kept.
    """
    with edge():
        from tunebook.book import Source, check_new, write_new
        from tunebook.book import merge as put_together
        from tunebook.cli import _foreign

        paths = _paths(a, b, cache, threads)
        check_new(output, force=force)
        books = _foreign.books(paths, "merge")
        if books is not None:
            _foreign.merge(books, output, as_json)
            return
        sides = [Source.read(path) for path in paths]
        merged = put_together(*sides)
        data = merged.document(output)
        write_new(output, data, force=force)
        if as_json:
            print_json(_document(sides, output, merged))
        else:
            _print(sides, output, merged)


def _paths(a: str, b: str, cache: Path | None, threads: int | None) -> list[Path]:
    from tunebook.book import NAMES, check_names, place_of, resolve
    from tunebook.errors import UsageError

    check_names((a, b))
    if any(name in NAMES for name in (a, b)):
        place = place_of(cache, threads)
        return [resolve(name, place) for name in (a, b)]
    if cache is not None or threads is not None:
        raise UsageError(f"--cache and --threads choose {', '.join(NAMES)}; {a} and {b} are paths")
    return [Path(a), Path(b)]


def _document(sides: list[Source], output: Path, merged: Merged) -> dict[str, object]:
    import msgspec

    return {
        "cache": str(output),
        "of": [
            {"path": str(side.path), "kind": side.kind, "problems": len(side.verdicts), "unreadable": side.unreadable}
            for side in sides
        ],
        "winners": len(merged.verdicts),
        "from_a": merged.of("A"),
        "from_b": merged.of("B"),
        "equal": merged.equal,
        "plans": len(merged.plans),
        "conflicts": msgspec.to_builtins(merged.conflicts),
        "plan_conflicts": msgspec.to_builtins(merged.plan_conflicts),
    }


def _print(sides: list[Source], output: Path, merged: Merged) -> None:
    for letter, side in zip("AB", sides, strict=True):
        unreadable = f", {side.unreadable} entries of it cannot be read" if side.unreadable else ""
        say(f"{letter}: {side.kind} {clean(side.path)} ({len(side.verdicts)} problems{unreadable})")
    shown = merged.conflicts[:SHOWN]
    more = f" (the first {SHOWN} of {len(merged.conflicts)}; --json has all)" if len(merged.conflicts) > SHOWN else ""
    table(
        f"In both, and not the same{more}",
        ("problem", "kept", "winner", "in place of", "because"),
        [tuple(map(clean, (c.problem, c.kept, c.winner, c.instead, c.why))) for c in shown],
    )
    table(
        "Plans in both, and not the same",
        ("model", "fingerprint", "kept", "because"),
        [tuple(map(clean, (c.model, c.fingerprint, c.kept, c.why))) for c in merged.plan_conflicts],
    )
    say(
        f"{clean(output)}: {len(merged.verdicts)} winners: {merged.of('A')} from A, {merged.of('B')} from B, "
        f"{merged.equal} equal in both; {len(merged.plans)} plans"
    )
