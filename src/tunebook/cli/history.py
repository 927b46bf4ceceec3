"""`tunebook history`: the runs of this environment, and their pruning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunebook._figures import size
from tunebook.cli._options import Json
from tunebook.cli._output import interval, print_json, say
from tunebook.cli._run import edge
from tunebook.cli._tables import table
from tunebook.cli._text import clean

if TYPE_CHECKING:
    from tunebook.book import Entry, Place, Pruning

#: So many digits of a commit are shown.
COMMIT = 10


def history(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PATH]...", help="Books of another tuner, or a directory of them, as SGLang's runs/."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only runs of this model.")] = None,
    op: Annotated[str | None, typer.Option(help="Only runs that settled a problem of this op.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="The cache whose runs are shown. Default: this environment's.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="The thread count whose runs are shown. Default: TUNEBOOK_THREADS, else what is there."),
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Say which old runs would be removed; --yes does it.")] = False,
    keep: Annotated[int | None, typer.Option(metavar="N", help="With --prune: the N newest stay.")] = None,
    older_than: Annotated[float | None, typer.Option(metavar="DAYS", help="With --prune: younger runs stay.")] = None,
    include_named: Annotated[
        bool, typer.Option("--include-named", help="With --prune: also the runs that the cache's verdicts come from.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --prune: only say it, which is the default.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --prune: remove them.")] = False,
    as_json: Json = False,
) -> None:
    """List the runs of this environment, newest first: when, model, policy, problems, seconds, gain, commit and note.

    With paths: the books of another tuner there, and what changed from each to the next.
    """
    with edge():
        if paths:
            own = {"--model": model, "--op": op, "--cache": cache, "--threads": threads, "--prune": prune or None}
            _foreign(paths, [name for name, value in own.items() if value is not None], as_json)
            return
        from tunebook.book import history as entries
        from tunebook.book import place_of, plan_pruning
        from tunebook.book import prune as remove
        from tunebook.errors import UsageError

        given = {"--keep": keep, "--older-than": older_than, "--include-named": include_named or None}
        given |= {"--yes": yes or None, "--dry-run": dry_run or None}
        beside = [name for name, value in given.items() if value is not None]
        if not prune and beside:
            raise UsageError(f"{', '.join(beside)}: only with --prune, which removes runs")
        if dry_run and yes:
            raise UsageError("--dry-run and --yes contradict each other; give one of them")
        if prune and op is not None:
            raise UsageError("--op narrows what is shown, not what is pruned; leave it out, or narrow with --model")
        place = place_of(cache, threads)
        if not prune:
            _show(place, entries(place, model=model, op=op), as_json)
            return
        pruning = plan_pruning(place, keep=keep, older_than_days=older_than, model=model, also_named=include_named)
        if yes:
            remove(pruning.removed)
        _pruned(pruning, as_json, removed=yes)


def _foreign(paths: list[Path], beside: list[str], as_json: bool) -> None:
    from tunebook.cli._foreign import history as show
    from tunebook.errors import UsageError

    if beside:
        raise UsageError(f"{', '.join(beside)}: only for tunebook's own runs, which take no path")
    show(paths, as_json)


def _show(place: Place, entries: list[Entry], as_json: bool) -> None:
    import msgspec

    if as_json:
        print_json({"cache": str(place.cache), "runs": [msgspec.to_builtins(entry) for entry in entries]})
        return
    threads = f", {place.threads} threads" if place.threads else ""
    say(f"{clean(place.runs)}: {len(entries)} run{'' if len(entries) == 1 else 's'}{threads}")
    table(
        "Runs, newest first",
        ("run", "when", "model", "policy", ">problems", ">seconds", ">whole model", "commit", "note"),
        [_row(entry) for entry in entries],
    )


def _row(entry: Entry) -> tuple[str, ...]:
    whole = entry.overall
    commit = entry.commit[:COMMIT] + ("+" if entry.dirty else "")
    left_out = f" ({entry.left_out} left out)" if entry.left_out else ""
    return (
        clean(Path(entry.path).name),
        clean(entry.started).replace("T", " "),
        clean(entry.model) or "-",
        clean(entry.policy),
        f"{entry.problems}{left_out}",
        "unfinished" if entry.seconds is None else f"{entry.seconds:.1f}",
        interval(whole.speedup, whole.speedup_low, whole.speedup_high) if whole else "-",
        clean(commit) or "-",
        clean(entry.note),
    )


def _pruned(pruning: Pruning, as_json: bool, *, removed: bool) -> None:
    if as_json:
        print_json(
            {
                "removed" if removed else "would_remove": [str(head.path) for head in pruning.removed],
                "bytes": pruning.bytes,
                "spared": {str(head.path): why for head, why in pruning.spared},
            }
        )
        return
    for head in pruning.removed:
        say(f"{'removed' if removed else 'would remove'}: {clean(head.path)} ({size(head.bytes)})")
    for head, why in pruning.spared:
        say(f"stays: {clean(head.path)}: {why}")
    many = f"{len(pruning.removed)} run{'' if len(pruning.removed) == 1 else 's'}, {size(pruning.bytes)}"
    if removed:
        say(f"{many} removed")
    elif pruning.removed:
        say(f"{many}; nothing was removed: say --yes to do it")
    else:
        say("there is nothing to remove")
