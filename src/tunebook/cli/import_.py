"""`tunebook import`: the winners, plans and runs of a bundle go into this environment's cache, where they are of use there."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunebook.cli._ask import agreed, check_asked
from tunebook.cli._options import Threads
from tunebook.cli._output import only_json, print_json, say
from tunebook.cli._run import edge
from tunebook.cli._tables import table
from tunebook.cli._text import clean

if TYPE_CHECKING:
    from tunebook.book.bundle import Import, Taken
    from tunebook.records import Environment

#: So many of what is not taken are shown; `--json` has all.
SHOWN = 20


def import_(
    bundle: Annotated[Path, typer.Argument(metavar="FILE", help="A bundle that `tunebook export` wrote.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    cache: Annotated[Path | None, typer.Option(help="The cache that takes it. Default: this environment's.")] = None,
    threads: Threads = None,
    device: Annotated[
        str | None,
        typer.Option(help="The device that the winners are for, as cuda:1. Default: cpu or cuda:0, as the bundle is."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document. Needs --yes.")] = False,
) -> None:
    """Take the winners and plans of a bundle into the cache, and its runs beside it. What the cache holds is not lost.

    Only a better supported winner about the same tactics replaces one of the cache. What goes in, and what does not and why, is
    said before it is done.
    """
    with edge():
        check_asked("import", yes=yes, as_json=as_json)
        with only_json(as_json):
            from tunebook.book.bundle import plan_import, take
            from tunebook.engine import set_threads
            from tunebook.store import Location

            set_threads(threads)
            environment = _environment(bundle, device)
            chosen = plan_import(bundle, environment, Location.of(environment, cache))
        if not as_json:
            _print(chosen)
        taken = take(chosen) if not chosen.empty and (yes or agreed("import it?")) else None
        if as_json:
            print_json(_document(chosen, taken))
        else:
            _conclude(chosen, taken)
    if taken is not None and taken.problem:
        raise SystemExit(3)


def _environment(bundle: Path, device: str | None) -> Environment:
    """Of the device that is named, else of the kind that the bundle was made on. Raises UsageError where there is none here."""
    from tunebook.devices import device_of
    from tunebook.errors import StoreError, UsageError
    from tunebook.store import read_any

    if device is not None:
        return device_of(device).environment()
    made_on = ""
    with suppress(StoreError):  # what is wrong with the bundle is said when it is imported
        found = read_any(bundle)
        made_in = getattr(found, "environment", None)
        made_on = "" if made_in is None else made_in.hard.get("device", "")
    if not made_on.startswith("cuda "):
        return device_of("cpu").environment()
    try:
        return device_of("cuda").environment()
    except UsageError as error:
        raise UsageError(f"{clean(bundle)}: its winners are for {clean(made_on)}, and {error}") from error


def _print(chosen: Import) -> None:
    say(f"{clean(chosen.path)} into {clean(chosen.location.cache)}")
    say(f"takes {len(chosen.verdicts)} winners, {len(chosen.plans)} plans, {len(chosen.runs)} runs")
    if chosen.same:
        say(f"{chosen.same} winners and plans are there already, the same")
    if chosen.undeclared:
        say(
            f"checked when they are to serve, for the ops are not declared here: {', '.join(map(clean, chosen.undeclared))}"
        )
    more = f" (the first {SHOWN} of {len(chosen.refused)}; --json has all)" if len(chosen.refused) > SHOWN else ""
    table(
        f"Not taken{more}",
        ("what", "because"),
        [(clean(one.what), clean(one.why)) for one in chosen.refused[:SHOWN]],
    )


def _conclude(chosen: Import, taken: Taken | None) -> None:
    if taken is None:
        say("there is nothing to import" if chosen.empty else "nothing was imported")
        return
    if taken.published.note:
        say(f"note: {clean(taken.published.note)}")
    if taken.problem:
        say(f"problem: {clean(taken.problem)}")
    say(f"imported: {len(chosen.verdicts)} winners, {len(chosen.plans)} plans, {taken.runs} runs")


def _document(chosen: Import, taken: Taken | None) -> dict[str, Any]:
    return {
        "bundle": str(chosen.path),
        "cache": str(chosen.location.cache),
        "imported": taken is not None,
        "verdicts": {key: verdict.winner for key, verdict in chosen.verdicts.items()},
        "plans": {key: plan.model for key, plan in chosen.plans.items()},
        "runs": sorted(chosen.runs),
        "same": chosen.same,
        "undeclared": list(chosen.undeclared),
        "refused": [{"what": one.what, "why": one.why} for one in chosen.refused],
        "note": taken.published.note if taken is not None else None,
        "problem": taken.problem if taken is not None else None,
    }
