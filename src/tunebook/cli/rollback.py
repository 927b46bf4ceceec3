"""`tunebook rollback`: what the last promotion replaced is in the cache again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunebook.cli._ask import agreed, check_asked
from tunebook.cli._options import Threads
from tunebook.cli._output import interval, print_json, say
from tunebook.cli._run import edge
from tunebook.cli._tables import table
from tunebook.cli._text import clean

if TYPE_CHECKING:
    from tunebook.book.promote import Revision, TakeBack

#: So many problems are shown; `--json` has all.
SHOWN = 20


def rollback(
    cache: Annotated[
        Path | None, typer.Option(help="The cache that was promoted into. Default: this environment's.")
    ] = None,
    threads: Threads = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document. Needs --yes.")] = False,
) -> None:
    """Take back the last promotion: what it replaced is in the cache again; what was published since is not lost."""
    with edge():
        from tunebook.book import place_of
        from tunebook.book.promote import last_promotion, take_back

        check_asked("rollback", yes=yes, as_json=as_json)
        found = last_promotion(place_of(cache, threads).cache)
        if as_json:
            print_json(_document(found, take_back(found)))
            return
        revision = take_back(found) if yes else None  # a reader that leaves early must not keep it from being done
        _show(found)
        if revision is None and not agreed(f"restore this in {clean(found.location.cache)}?"):
            say("nothing was changed")
            return
        revision = revision or take_back(found)
        for note in revision.notes:
            say(f"note: {clean(note)}")
        left = f"; {revision.left} more can be" if revision.left else ""
        say(f"rolled back: {clean(found.promotion.run)}, promoted {_when(found)}{left}")


def _show(found: TakeBack) -> None:
    promotion, verdicts = found.promotion, found.contents.verdicts
    narrowed = f" ({clean(promotion.narrowed)})" if promotion.narrowed else ""
    say(f"promoted {_when(found)}: {clean(promotion.run)}{narrowed}")
    rows = [
        (
            clean(key),
            clean(verdicts[key].winner) if key in verdicts else "-",
            clean(then.winner) if then else "-",
            interval(then.speedup, then.low, then.high) if then else "-",
        )
        for key, then in sorted(found.restored.verdicts.items())
    ]
    more = f" (the first {SHOWN} of {len(rows)})" if len(rows) > SHOWN else ""
    table(f"What is restored{more}", ("problem", "now", "then", ">over its default"), rows[:SHOWN])
    for key, plan in found.restored.plans.items():
        there = found.contents.plans.get(key)
        model = plan.model if plan is not None else there.model if there is not None else key
        say(f"the plan for {clean(model)} {'comes back' if plan is not None else 'goes out'}")
    if found.restored.kept:
        some = ", ".join(clean(key) for key in found.restored.kept[:3])
        say(f"published since, and stays: {len(found.restored.kept)}, {some}")


def _when(found: TakeBack) -> str:
    return clean(found.promotion.promoted.partition(".")[0].replace("T", " "))


def _document(found: TakeBack, revision: Revision) -> dict[str, Any]:
    verdicts = found.contents.verdicts
    return {
        "cache": str(found.location.cache),
        "run": found.promotion.run,
        "promoted": found.promotion.promoted,
        "restored": {
            key: {"before": verdicts[key].winner if key in verdicts else None, "after": then.winner if then else None}
            for key, then in sorted(found.restored.verdicts.items())
        },
        "kept": list(found.restored.kept),
        "plans": {
            "restored": sorted(key for key, plan in found.restored.plans.items() if plan is not None),
            "removed": sorted(key for key, plan in found.restored.plans.items() if plan is None),
        },
        "written": revision.written,
        "left": revision.left,
        "notes": list(revision.notes),
    }
