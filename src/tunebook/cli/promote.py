"""`tunebook promote`: the winners of a run, and its plan, go into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunebook.cli._ask import agreed, check_asked
from tunebook.cli._output import interval, only_json, print_json, say
from tunebook.cli._run import blaming, edge
from tunebook.cli._tables import table
from tunebook.cli._text import clean

if TYPE_CHECKING:
    from tunebook.book.promote import Proposal, Revision

#: So many problems are shown; `--json` has all.
SHOWN = 20
NAMES = ("latest", "previous")


def promote(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run: a path, latest or previous.")],
    op: Annotated[list[str] | None, typer.Option("--op", help="Only problems of this op. May be repeated.")] = None,
    only_better: Annotated[
        bool, typer.Option("--only-better", help="Only problems that `diff` shows to be better, by their interval.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="For latest and previous: only runs of this model.")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="The cache to promote into. Default: the one beside the run, else its environment's."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="For latest and previous: the thread count of the environment that is meant.")
    ] = None,
    with_: Annotated[
        list[Path] | None,
        typer.Option("--with", help="The Python file that declares the ops or runners that were tuned."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document. Needs --yes.")] = False,
) -> None:
    """Adopt a run: show what differs from the cache, and put its winners and its plan in; `rollback` takes that back."""
    with edge():
        check_asked("promote", yes=yes, as_json=as_json)
        _promote(run, tuple(op or ()), only_better, model, cache, threads, tuple(with_ or ()), yes, as_json)


def _promote(
    name: str,
    only: tuple[str, ...],
    only_better: bool,
    model: str | None,
    cache: Path | None,
    threads: int | None,
    files: tuple[Path, ...],
    yes: bool,
    as_json: bool,
) -> None:
    from tunebook.book.promote import promote as do
    from tunebook.book.promote import propose
    from tunebook.ops import load_file

    path = _path_of(name, model, cache, threads)
    with only_json(as_json), blaming(files):
        for file in files:
            load_file(file)
    found = propose(path, cache, only=only, only_better=only_better)
    if as_json:
        print_json(_document(found, None if found.empty else do(found)))
        return
    revision = (
        do(found) if yes and not found.empty else None
    )  # a reader that leaves early must not keep it from being done
    _show(found)
    if found.empty:
        say(f"nothing to promote: {clean(found.location.cache)} is left as it is")
        return
    if revision is None and not agreed(f"put {_count(found)} into {clean(found.location.cache)}?"):
        say("nothing was changed")
        return
    revision = revision or do(found)
    for note in revision.notes:
        say(f"note: {clean(note)}")
    say(f"promoted: {_count(found)} into {clean(revision.path)}; `tunebook rollback` takes it back")


def _path_of(name: str, model: str | None, cache: Path | None, threads: int | None) -> Path:
    from tunebook.book import place_of, resolve
    from tunebook.errors import UsageError

    if name == "cache":
        raise UsageError("cache is what is promoted into; name a run: a path, latest or previous")
    if name in NAMES:
        return resolve(name, place_of(cache, threads), model)
    if model is not None or threads is not None:
        raise UsageError(f"--model and --threads choose {' and '.join(NAMES)}; {name} is a path")
    return Path(name)


def _show(found: Proposal) -> None:
    """The diff, then what would go in and what would not."""
    if found.diff is not None:
        from tunebook.cli._diff_report import print_text

        print_text(found.diff, None, [change.problem for change in found.diff.significant])
    else:
        say(f"{clean(found.location.cache)}: there is no such cache yet")
    for remark in found.remarks:
        say(f"note: {clean(remark)}")
    before = found.before
    rows = [
        (
            clean(key),
            clean(before[key].winner) if key in before else "-",
            clean(verdict.winner),
            interval(verdict.speedup, verdict.low, verdict.high),
            verdict.status,
        )
        for key, verdict in sorted(found.verdicts.items())
    ]
    more = f" (the first {SHOWN} of {len(rows)})" if len(rows) > SHOWN else ""
    columns = ("problem", "now", "then", ">over its default", "status")
    table(f"What goes in{more}", columns, rows[:SHOWN])
    out = [(clean(key), clean(why)) for key, why in sorted(found.left.items())]
    more = f" (the first {SHOWN} of {len(out)})" if len(out) > SHOWN else ""
    table(f"What stays out{more}", ("problem", "why"), out[:SHOWN])
    if found.same:
        say(f"in the cache already: {len(found.same)} problems")
    for plan in found.plans.put.values():
        say(f"the plan for {clean(plan.model)} goes in")
    for key, why in found.plans.stays.items():
        say(f"the plan for {clean(found.run.plans[key].model)} stays out: {clean(why)}")
    for plan in found.plans.taken_out.values():
        say(
            f"the plan for {clean(plan.model)} in the cache goes out: it serves what is replaced; the next start makes one "
            "from the verdicts"
        )


def _count(found: Proposal) -> str:
    count = len(found.verdicts)
    plans = " and the plan" if found.plans.put else ""
    return f"{count} problem{'' if count == 1 else 's'}{plans}"


def _document(found: Proposal, revision: Revision | None) -> dict[str, Any]:
    import msgspec

    before = found.before
    return {
        "run": str(found.run.path),
        "cache": str(found.location.cache),
        "promoted": {
            key: {"before": before[key].winner if key in before else None, "after": verdict.winner}
            for key, verdict in sorted(found.verdicts.items())
        },
        "same": sorted(found.same),
        "left": dict(sorted(found.left.items())),
        "plans": {
            "put": sorted(found.plans.put),
            "taken_out": sorted(found.plans.taken_out),
            "left": dict(sorted(found.plans.stays.items())),
        },
        "written": revision is not None and revision.written,
        "notes": [*found.remarks, *(revision.notes if revision is not None else ())],
        "diff": msgspec.to_builtins(found.diff) if found.diff is not None else None,
    }
