"""`tunebook tune --from-coverage`: sizes to tune out of what was served untuned."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tunebook.cli._run import sizes
from tunebook.cli.coverage import cache_of, coverage_file
from tunebook.errors import StoreError, UsageError

if TYPE_CHECKING:
    from tunebook.book.coverage import Coverage
    from tunebook.cli.tune import TuneOptions
    from tunebook.engine import ModelRunner


def counted_calls(options: TuneOptions) -> Coverage:
    """What was counted for this environment, held against the cache that is tuned into.

    Raises UsageError for options that contradict it, and StoreError, in one line, where there is no file to read.
    """
    from tunebook.book.coverage import coverage

    for option, given in (("--resume", options.resume is not None), ("--replay", options.replay)):
        if given:
            raise UsageError(f"--from-coverage and {option} contradict each other; give one of them")
    cache = options.cache if options.cache is not None else cache_of(options.threads)
    return coverage(coverage_file(None, options.cache, options.threads), cache=cache)


def sized(options: TuneOptions, found: Coverage, runner: ModelRunner) -> TuneOptions | None:
    """The options with the sizes that cover what this model was called with; None where nothing lacks.

    Sizes that the command line names are added to them. Problems that an earlier tuning left out are gone on with, unless all
    is tuned afresh. Raises StoreError where no call of the model was counted.
    """
    if not any(row.model == runner.scope.name for row in found.problems):
        raise StoreError(
            f"{found.path}: no call of {runner.name} ({runner.scope.name}) was counted; serve it with TUNEBOOK_COVERAGE=1"
        )
    lacking = found.suggestion_for(runner.scope.name, runner.name)
    if lacking is None:
        return None
    decode = {*lacking.decode, *(sizes("--decode", options.decode) if "decode" in options.given else ())}
    prefill = {*lacking.prefill, *(sizes("--prefill", options.prefill) if "prefill" in options.given else ())}
    return replace(
        options,
        decode=",".join(map(str, sorted(decode))),
        prefill=",".join(map(str, sorted(prefill))),
        continuing=options.continuing or (lacking.continuing and not options.fresh),
    )
