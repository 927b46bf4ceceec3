"""`tunebook diff`: what changed between two runs, and whether it is real."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunebook.cli._options import Json, Threads, WordsCache
from tunebook.cli._output import only_json, print_json, progress_bar, say
from tunebook.cli._run import blaming, edge

if TYPE_CHECKING:
    from tunebook.book import Diff, Source, Spread
    from tunebook.book.confirm import Confirmation
    from tunebook.records import Environment

#: Exit codes of this command: those of diff and grep, so that 1 says one thing only.
EXIT_CODES = {
    0: "no significant difference",
    1: "a significant difference",
    2: "an error; one line on standard error names it",
    70: "a fault of tunebook itself",
    130: "interrupted (Ctrl-C)",
    143: "the same, by SIGTERM",
}
EPILOG = "Exit codes: " + "; ".join(f"{code}: {meaning}" for code, meaning in EXIT_CODES.items()) + "."
#: What `--confirm` may take, in seconds.
CONFIRM_BUDGET_S = 60.0


def diff(
    a: Annotated[
        str, typer.Argument(metavar="A", help="A run, a cache or another tuner's: a path, latest, previous or cache.")
    ] = "previous",
    b: Annotated[str, typer.Argument(metavar="B", help="What A is compared with.")] = "latest",
    model: Annotated[str | None, typer.Option(help="For latest and previous: only runs of this model.")] = None,
    cache: WordsCache = None,
    threads: Threads = None,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Race what A and B chose now, interleaved, to settle what differs.")
    ] = False,
    with_: Annotated[
        list[Path] | None,
        typer.Option("--with", help="With --confirm: the Python file whose runners, or calls, were tuned."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help=f"With --confirm: seconds of racing. Default: {CONFIRM_BUDGET_S:g}.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, for a pull request.")] = False,
    as_json: Json = False,
) -> None:
    """Compare two runs, or a run and a cache: every change of a speed-up over the run's own default, with its interval."""
    try:
        with edge():
            different = _compare(a, b, model, cache, threads, confirm, tuple(with_ or ()), budget, markdown, as_json)
    except SystemExit as end:  # 1 says that something differs, and nothing else
        raise SystemExit(2 if end.code == 1 else end.code) from end
    raise SystemExit(1 if different else 0)


def _compare(
    a: str,
    b: str,
    model: str | None,
    cache: Path | None,
    threads: int | None,
    confirming: bool,
    files: tuple[Path, ...],
    budget: float | None,
    markdown: bool,
    as_json: bool,
) -> bool:
    from tunebook import interop
    from tunebook.book import NAMES, Source, check_names, place_of, resolve, spread_between
    from tunebook.book import diff as compare
    from tunebook.cli import _foreign
    from tunebook.errors import UsageError

    if markdown and as_json:
        raise UsageError("--markdown and --json contradict each other; give one of them")
    if not confirming and (files or budget is not None):
        raise UsageError("--with and --budget are of --confirm, which races what differs")
    if budget is not None and not 0 < budget < math.inf:
        raise UsageError(f"--budget {budget} is not a positive number of seconds")
    check_names((a, b))
    words = [name for name in (a, b) if name in NAMES]
    if words:
        place = place_of(cache, threads)
        paths = [resolve(name, place, model) for name in (a, b)]
    elif model is not None or cache is not None or threads is not None:
        raise UsageError(f"--model, --cache and --threads choose {', '.join(NAMES)}; {a} and {b} are paths")
    else:
        paths = [Path(a), Path(b)]
    books = _foreign.books(paths, "diff")
    if books is not None:
        if confirming:
            raise UsageError(f"--confirm races what tunebook can run; {paths[0]} is of {books[0].format}")
        return _foreign.diff(interop.diff(*books), markdown, as_json)
    before, after = (Source.read(path) for path in paths)
    spread = spread_between((before, after))
    found = compare(before, after, spread)
    settled: tuple[Confirmation, ...] | None = None
    if confirming:
        settled = _confirmed(found, before, after, spread, files, budget or CONFIRM_BUDGET_S, as_json or markdown)
    return _told(found, settled, markdown, as_json)


def _told(found: Diff, settled: Sequence[Confirmation] | None, markdown: bool, as_json: bool) -> bool:
    """Print it, and say whether something differs."""
    import msgspec

    from tunebook.cli._diff_report import as_markdown, print_text

    different = [change.problem for change in found.significant]
    if settled is not None:
        from tunebook.book.confirm import still_different

        different = still_different(found, settled)
    if as_json:
        document = msgspec.to_builtins(found)
        document["changes"] = [
            {**msgspec.to_builtins(change), "flipped": change.flipped, "significant": change.significant}
            for change in found.changes
        ]
        if settled is not None:
            document["confirmed"] = msgspec.to_builtins(settled)
        print_json({**document, "different": different})
    elif markdown:
        say(as_markdown(found, settled, different))
    else:
        print_text(found, settled, different)
    return bool(different)


def _confirmed(
    found: Diff,
    before: Source,
    after: Source,
    spread: Spread,
    files: tuple[Path, ...],
    budget: float,
    quiet: bool,
) -> tuple[Confirmation, ...]:
    """Load what was tuned, call it once, and race the suspects."""
    from tunebook.book.confirm import confirm, of_model, of_script, suspects
    from tunebook.cli._load import load_model
    from tunebook.devices import device_of
    from tunebook.engine import set_threads
    from tunebook.errors import UsageError
    from tunebook.ops import load_file

    if not suspects(found, before, after, spread):
        return ()
    threads = int(after.environment.hard.get("threads", "0")) or None
    name = _model_of(before, after)
    if name is None and not files:
        raise UsageError(
            "--confirm: these runs are of ops outside any model, so that their calls are only known to the script that made "
            "them; name it: --with FILE"
        )
    with only_json(quiet), blaming(files), progress_bar(quiet) as progress:
        set_threads(threads)
        _check_machine(device_of("cpu").environment(), after)
        if name is None:
            device, collection = device_of("cpu"), of_script(files)
            return confirm(found, before, after, spread, collection, device, budget_s=budget, progress=progress)
        for file in files:
            load_file(file)
        with load_model(name, threads, quiet, _attached(after)) as runner:
            collection = of_model(runner, _phases(before, after))
            return confirm(found, before, after, spread, collection, runner.device, budget_s=budget, progress=progress)


def _check_machine(here: Environment, after: Source) -> None:
    """Raise StoreError where this is not the machine that B was made on."""
    from tunebook.errors import StoreError

    differences = after.environment.differences(here)
    if differences:
        raise StoreError(
            f"--confirm: {after.path} was made on another machine (there ≠ here): {'; '.join(differences)}"
        )


def _model_of(before: Source, after: Source) -> str | None:
    """What loads the model that was tuned; None where there was none. Raises UsageError for two models."""
    from tunebook.errors import UsageError

    names = []
    for side in (before, after):
        if side.header is not None:
            names.append(side.header.settings.source or side.header.model)
        elif side.plan is not None:
            names.append(side.plan.model)
    known = [name for name in dict.fromkeys(names) if name]
    if len(known) > 1:
        raise UsageError(f"--confirm: the two are of different models, {' and '.join(known)}: there is nothing to race")
    return known[0] if known else None


def _attached(after: Source) -> tuple[str, ...]:
    """The ops that were attached where it were not all."""
    from tunebook.engine import ATTACHABLE

    given = after.header.settings.attached if after.header is not None else ()
    return tuple(name for name in given if name in ATTACHABLE)


def _phases(before: Source, after: Source) -> tuple[str, ...]:
    """The phases that either plan was made for; the usual ones where neither tells."""
    from tunebook.engine import requests

    plans = [side.plan for side in (before, after) if side.plan is not None]
    return tuple(dict.fromkeys(text for plan in plans for text in plan.requested)) or tuple(map(str, requests()))
