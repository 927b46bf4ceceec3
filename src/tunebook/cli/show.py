"""`tunebook show`: what a cache or a run file holds."""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunebook.cli._options import Json
from tunebook.cli._output import print_json, say
from tunebook.cli._run import edge
from tunebook.cli._tables import table
from tunebook.cli._text import clean

if TYPE_CHECKING:
    from tunebook.cli._search_path import Served
    from tunebook.records import Environment, TrialLine
    from tunebook.store import CacheContents, Run
    from tunebook.store.search_path import Shipped

#: So many caches of other environments are named.
OTHERS = 4


def show(
    path: Annotated[
        Path | None,
        typer.Argument(help="A cache, a run file, a bundle, or another tuner's. Default: this environment's cache."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="The thread count whose cache is shown. Default: TUNEBOOK_THREADS, else torch's."),
    ] = None,
    problem: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Show this problem, or those whose key contains the text, in full."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the verdicts and plans that a cache, a run file or a bundle holds, and what of it cannot be served.

    Without a path: what a start would know, this environment's cache over TUNEBOOK_CACHE_PATH.
    """
    with edge():
        _show(path, threads, problem, as_json)


def _show(path: Path | None, threads: int | None, problem: str | None, as_json: bool) -> None:
    import msgspec

    from tunebook.cli import _foreign
    from tunebook.cli._search_path import VARIABLE, described, say_origins
    from tunebook.cli._show_problem import matching, print_problem
    from tunebook.cli._show_serving import documents, say_problem, say_serving, served_by
    from tunebook.interop import open_any
    from tunebook.store import Pins, Run, pins_path, read_any, read_pins

    book = None if path is None else open_any(path)
    if book is not None:
        _foreign.show(book, problem, as_json)
        return
    found: CacheContents | Run
    shipped: tuple[Shipped, ...] = ()
    here: Served | None = None
    if path is None:
        here = _here(threads)
        path, found, shipped = here.path, here.contents, here.shipped
    else:
        found = read_any(path)
    plans = dict(found.plans)
    wanted = dict(found.verdicts) if problem is None else {v.problem: v for v in matching(found.verdicts, problem)}
    origins = here.origins(wanted) if here is not None else {}
    verdicts = [wanted[key] for key in sorted(wanted)]
    trials = found.trials if isinstance(found, Run) else ()
    environment = found.header.environment if isinstance(found, Run) else found.environment
    pins = Pins(path=path) if isinstance(found, Run) else read_pins(pins_path(path))
    misses = [*found.misses, *(miss for one in shipped for miss in one.misses), *pins.misses]
    serving = served_by(found, pins)
    if as_json:
        print_json(
            {
                "path": str(path),
                "kind": "run" if isinstance(found, Run) else "cache",
                "environment": msgspec.to_builtins(environment) if environment else None,
                "verdicts": {v.problem: msgspec.to_builtins(v) for v in verdicts},
                "plans": {key: msgspec.to_builtins(plan) for key, plan in plans.items()},
                "pins": {target: tactic.name for target, tactic in sorted(pins.tactics.items())},
                "serving": documents(serving, wanted if problem is not None else {row.problem for row in serving}),
                "misses": [str(miss) for miss in misses],
                "origins": {key: str(origin) for key, origin in origins.items()},
                "search_path": described(shipped),
                **(_run_facts(found) if isinstance(found, Run) else {}),
                **({"trial_lines": _trials(trials, wanted)} if problem is not None and trials else {}),
            }
        )
        return
    if problem is not None:
        for verdict in verdicts:
            print_problem(verdict, trials, plans.values())
            say_problem(serving, verdict.problem)
            if verdict.problem in origins:
                say(f"from {clean(origins[verdict.problem])} ({VARIABLE})")
        return
    from tunebook.cli._tune_report import print_plan, print_verdicts

    say(f"{path}: {'run' if isinstance(found, Run) else 'cache'}, {len(verdicts)} verdicts, {len(plans)} plans")
    if isinstance(found, Run):
        for name, value in _run_facts(found).items():
            say(f"  {name}: {value}")
    if environment is not None:
        table("Environment", ("field", "value"), [*environment.hard.items(), *environment.soft.items()])
    say_origins(origins)
    print_verdicts("Verdicts", verdicts, origins)
    table(
        "Pins, which go before the verdicts",
        ("for", "tactic"),
        [(t, pins.tactics[t].name) for t in sorted(pins.tactics)],
    )
    say_serving(serving, wanted)
    rejected = [(v.problem, r.tactic, r.reason, r.t4, r.detail) for v in verdicts for r in v.rejected]
    table("Rejected tactics", ("problem", "tactic", "reason", "T4 class", "detail"), rejected)
    for plan in plans.values():
        say(f"\nplan for {plan.model} ({', '.join(plan.requested)})")
        print_plan(plan)
    for miss in misses:
        say(f"miss: {miss}")


def _run_facts(found: Any) -> dict[str, Any]:
    header, footer = found.header, found.footer
    return {
        "model": header.model,
        "policy": header.policy,
        "started": header.started,
        "seconds": round(footer.seconds, 1) if footer else None,
        "trials": len(found.trials),
        "complete": footer is not None and not found.torn,
        "resumed": len(found.resumed),
        "note": header.note,
    }


def _trials(lines: Iterable[TrialLine], wanted: Container[str]) -> dict[str, list[Any]]:
    """Every trial of the wanted problems, by problem, as the run file has it."""
    import msgspec

    found: dict[str, list[Any]] = {}
    for line in lines:
        if line.problem in wanted:
            found.setdefault(line.problem, []).append(msgspec.to_builtins(line.trial))
    return found


def _here(threads: int | None) -> Served:
    """What a start in this environment reads. Raises StoreError where there is nothing, with the caches of other environments."""
    from tunebook.cli._search_path import served
    from tunebook.devices import device_of
    from tunebook.engine import set_threads
    from tunebook.errors import StoreError
    from tunebook.store import Location

    set_threads(threads)
    environment = device_of("cpu").environment()
    cache = Location.of(environment, None).cache
    found = served(cache, environment)
    if found.empty:
        raise StoreError(
            f"{cache}: this environment has no cache yet, `tunebook tune` makes one"
            + "".join(f"; {other}" for other in (*_nothing_of(found.shipped), *_others(cache, environment)))
        )
    return found


def _nothing_of(shipped: Iterable[Shipped]) -> list[str]:
    """Why nothing of each entry of the search path serves."""
    return [clean(one.problem) for one in shipped if one.problem is not None]


def _others(cache: Path, environment: Environment) -> list[str]:
    """In words, each cache of another environment in the same place, and the fields in which it differs."""
    from tunebook.store import read_cache

    found = []
    for other in sorted(cache.parent.parent.glob("*/winners.json")):
        theirs = read_cache(other, None).environment
        if theirs is None:
            continue
        differences = theirs.differences(environment)
        hint = f", show it with --threads {theirs.hard['threads']}" if _only_threads(theirs, environment) else ""
        found.append(f"there is {other} ({', '.join(differences)}{hint})")
    return [*found[:OTHERS], *([f"and {len(found) - OTHERS} more"] if len(found) > OTHERS else [])]


def _only_threads(one: Environment, other: Environment) -> bool:
    return "threads" in one.hard and {**one.hard, "threads": ""} == {**other.hard, "threads": ""}
