"""`tunebook coverage`: what was served untuned, and the tuning that would cover it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunebook._figures import duration
from tunebook.cli._options import Json
from tunebook.cli._output import print_json, say
from tunebook.cli._run import edge
from tunebook.cli._tables import table
from tunebook.cli._text import clean

if TYPE_CHECKING:
    from tunebook.book.coverage import Coverage, ProblemCoverage
    from tunebook.errors import StoreError

#: So many of a kind are listed; --json has all.
MOST_ROWS = 20
#: How long a reset waits for processes that write the file, in seconds.
RESET_WAIT_S = 5.0


def coverage(
    model: Annotated[
        str | None, typer.Option(help="Only this model: its class, or the name that it was tuned as.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="The file of coverage. Default: TUNEBOOK_COVERAGE_FILE, else the one beside the cache."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="The cache that served. Default: this environment's winners.json."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="The thread count whose calls are shown. Default: TUNEBOOK_THREADS, else what is there."),
    ] = None,
    reset: Annotated[
        bool, typer.Option("--reset", help="Say what would be forgotten; --yes removes the file.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --reset: do it.")] = False,
    as_json: Json = False,
) -> None:
    """Show which calls were served untuned while TUNEBOOK_COVERAGE was on, and the tuning that would cover them."""
    with edge():
        from tunebook.book.coverage import coverage as read
        from tunebook.errors import StoreError, UsageError

        if yes and not reset:
            raise UsageError("--yes: only with --reset, which removes the file")
        if reset and model is not None:
            raise UsageError("--reset forgets all models; leave --model out")
        path = coverage_file(file, cache, threads)
        if reset:
            _reset(path, yes, as_json)
            return
        given = cache
        if given is None:
            cache = cache_of(threads)
        try:
            found = read(path, cache=cache)
        except StoreError as error:
            raise _with_remedy(error, path) from None
        if model is not None:
            found = found.of_model(model)
        more = _options(given, threads)
        if as_json:
            document = found.to_dict()
            for plain, one in zip(document["suggestions"], found.suggestions, strict=True):
                plain["command"] = list(one.command(*more))
            print_json(document)
        else:
            _print(found, more)


def coverage_file(file: Path | None, cache: Path | None, threads: int | None) -> Path:
    """The file that is meant: by its name, by TUNEBOOK_COVERAGE_FILE, beside `cache`, or that of this machine with `threads`.

    Raises StoreError where nothing is known of this machine.
    """
    from tunebook.book import place_of
    from tunebook.envs import envs
    from tunebook.records import Environment
    from tunebook.store import Location
    from tunebook.store.coverage import COVERAGE_NAME, coverage_beside, named_file

    named = file if file is not None else envs.TUNEBOOK_COVERAGE_FILE.get()
    if named is not None:
        return named_file(named)
    if cache is not None:
        return coverage_beside(Location.of(Environment(hard={"device": "any"}), cache))
    return place_of(None, threads).cache.with_name(COVERAGE_NAME)


def cache_of(threads: int | None) -> Path | None:
    """The cache that is meant, whether it is there or not; None where only torch can tell which that is."""
    from tunebook.book import cache_with, place_of
    from tunebook.errors import StoreError

    try:
        return place_of(None, threads).cache
    except StoreError:  # nothing was tuned: all is served untuned
        return None if threads is None else cache_with(threads)


def _with_remedy(error: StoreError, path: Path) -> StoreError:
    if path.exists():
        return error
    return type(error)(f"{error}; serve with TUNEBOOK_COVERAGE=1, and the calls are counted in it")


def _options(cache: Path | None, threads: int | None) -> tuple[str, ...]:
    """The options that a tuning needs to be about the same cache."""
    return (*(("--cache", str(cache)) if cache else ()), *(("--threads", str(threads)) if threads else ()))


def _reset(path: Path, yes: bool, as_json: bool) -> None:
    from tunebook.errors import StoreError
    from tunebook.store.coverage import read_coverage, reset_coverage

    what = "what was counted"
    try:
        document = read_coverage(path)
        what = f"{document.calls:,} calls, counted from {clean(document.since)} to {clean(document.until)}"
    except StoreError as error:
        if not path.exists() and not path.is_symlink():
            raise
        what = f"a file that cannot be read ({error})"
    if yes:
        reset_coverage(path, RESET_WAIT_S)
    if as_json:
        print_json({"removed" if yes else "would_remove": str(path)})
    elif yes:
        say(f"removed: {clean(path)}: {what}")
    else:
        say(f"would remove: {clean(path)}: {what}")
        say("nothing was removed: say --yes to do it")


def _print(found: Coverage, more: Sequence[str]) -> None:
    many = len(found.problems)
    say(
        f"{clean(found.path)}: {found.calls:,} calls of {many} problem{'' if many == 1 else 's'}, "
        f"{clean(found.since)} to {clean(found.until)}"
    )
    if found.calls:
        share = found.untuned_share
        of_time = f", about {share:.1%} of the time" if share is not None else ""
        say(f"served untuned: {found.untuned_calls / found.calls:.1%} of the calls{of_time}")
        say(
            "times are estimates: calls times what a verdict of the cache says of one, or (~) the nearest buckets' verdicts"
        )
    if found.unlisted:
        say(f"{found.unlisted:,} more calls have no bucket, or are of problems that were too many to list")
    _listed(
        "By op",
        ("op", ">calls", ">pinned", ">tuned", ">bucket", ">default", ">of the time", ">untuned"),
        [
            (
                clean(one.op),
                *(f"{count:,}" for count in (one.calls, one.pinned, one.tuned, one.bucket, one.default)),
                f"{one.share:.1%}",
                f"{one.untuned_share:.1%}",
            )
            for one in found.ops
        ],
    )
    _listed(
        "Served untuned, what takes longest first",
        ("problem", "model", ">calls", ">untuned", ">of the time", ">a call", "verdict"),
        [_untuned(row, found.seconds) for row in found.problems if row.untuned],
    )
    _listed(
        "Never met by a dummy run",
        ("problem", "model", ">calls", "served by", "largest seen"),
        [_unmet(row) for row in found.unmet],
    )
    for row in found.unknown[:MOST_ROWS]:
        say(f"time unknown, in no share: {clean(row.problem)}: the cache knows no problem of its kind")
    if len(found.unknown) > MOST_ROWS:
        say(f"and {len(found.unknown) - MOST_ROWS} more of unknown time; --json lists them")
    for miss in found.misses[:MOST_ROWS]:
        say(f"miss: {clean(miss)}")
    _suggest(found, more)


def _listed(title: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    table(title, columns, rows[:MOST_ROWS])
    if len(rows) > MOST_ROWS:
        say(f"and {len(rows) - MOST_ROWS} more; --json lists them")


def _untuned(row: ProblemCoverage, total: float) -> tuple[str, ...]:
    each = None if row.seconds is None else row.seconds / row.calls
    about = "~" if row.basis == "nearest" else ""
    return (
        clean(row.problem),
        clean(row.tuned_as or row.model),
        f"{row.calls:,}",
        f"{row.untuned:,}",
        "?" if row.untuned_seconds is None else f"{row.untuned_seconds / total if total else 0.0:.1%}",
        "?" if each is None else f"{about}{duration(each)}",
        "left out" if row.left_out else "yes" if row.covered else "none",
    )


def _unmet(row: ProblemCoverage) -> tuple[str, ...]:
    from tunebook.records.coverage import OUTCOMES

    seen = [f"{phase} {size}" for phase, size in (("decode", row.decode), ("prefill", row.prefill)) if size]
    served = [name for name in OUTCOMES if getattr(row, name)]
    return clean(row.problem), clean(row.tuned_as or row.model), f"{row.calls:,}", ", ".join(served), ", ".join(seen)


def _suggest(found: Coverage, more: Sequence[str]) -> None:
    from tunebook.book._suggestion import MODEL
    from tunebook.records.coverage import OUTSIDE

    outside = sum(row.uncovered for row in found.problems if row.model == OUTSIDE)
    if outside:
        say(f"\n{outside} problems outside of any model: call them in a `with tb.autotune():` block to tune them")
    suggestions = found.suggestions
    for one in suggestions[:MOST_ROWS]:
        name = clean(one.tuned_as or one.model)
        say(f"\nto cover {one.problems} problem{'' if one.problems == 1 else 's'} of {name}:")
        say(f"  {clean(shlex.join(one.command(*more)))}")
        if not one.source:
            say(f"  ({MODEL}: what loads {clean(one.model)}; no run of the cache tells)")
    if len(suggestions) > MOST_ROWS:
        say(f"and {len(suggestions) - MOST_ROWS} more models; --json lists them")
    if found.problems and not outside and not suggestions:
        late = found.untuned_calls
        say("\nall that was called is tuned" + (", though not served so: see docs/coverage.md" if late else ""))


__all__ = ["cache_of", "coverage", "coverage_file"]
