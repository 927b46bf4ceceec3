"""`tunebook tune`: the main job."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunebook.cli._options import Json
from tunebook.cli._output import only_json, print_json, progress_bar, say
from tunebook.cli._run import blaming, edge, sizes

if TYPE_CHECKING:
    from tunebook.engine import ModelRunner, TuneReport
    from tunebook.tuner import Selection


def tune(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A built-in model, or a checkpoint directory.")] = "smollm2-moe",
    cache: Annotated[
        Path | None, typer.Option(help="The cache file. Default: this environment's winners.json.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Tune afresh: neither read nor write the cache; the result is a run file.")
    ] = False,
    replay: Annotated[bool, typer.Option("--replay", help="Only serve what the cache knows; never tune.")] = False,
    budget: Annotated[float | None, typer.Option(help="Seconds of wall clock. Default: TUNEBOOK_BUDGET_S.")] = None,
    decode: Annotated[str, typer.Option(help="Decode batch sizes.")] = "1,4,16",
    prefill: Annotated[str, typer.Option(help="Prefill lengths.")] = "128,512",
    from_coverage: Annotated[
        bool, typer.Option("--from-coverage", help="Tune the sizes that `tunebook coverage` found served untuned.")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="Threads. Default: TUNEBOOK_THREADS, else torch's.")] = None,
    with_: Annotated[
        list[Path] | None, typer.Option("--with", help="A Python file that adds runners to ops. May be repeated.")
    ] = None,
    op: Annotated[list[str] | None, typer.Option("--op", help="Tune only this op. May be repeated.")] = None,
    skip_op: Annotated[
        list[str] | None, typer.Option("--skip-op", help="Do not tune this op. May be repeated.")
    ] = None,
    only_runner: Annotated[
        list[str] | None, typer.Option("--only-runner", help="Race only this runner's tactics. May be repeated.")
    ] = None,
    continue_: Annotated[
        bool, typer.Option("--continue", help="Go on with what an earlier tuning left unresolved or left out.")
    ] = False,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Race longer, until choices are surer; give it a larger budget.")
    ] = False,
    memory_limit: Annotated[
        str | None,
        typer.Option(help="What all weights may take while serving: 1.1x of the model's own, or 3GiB. Default: 1.1x."),
    ] = None,
    mix: Annotated[
        str | None,
        typer.Option(help="What to plan for: 'decode 1=100,prefill 512=1', 'equal', or a file of recorded calls."),
    ] = None,
    batch_invariant: Annotated[
        bool, typer.Option("--batch-invariant", help="Plan for one result whatever the batch.")
    ] = False,
    isolate: Annotated[
        str | None,
        typer.Option(
            help="Whose first run takes place in a worker process: always, unproven or never. Default: TUNEBOOK_ISOLATE."
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Go on in the run file of a tuning that was interrupted, as it was asked for; nothing is measured twice.",
        ),
    ] = None,
    note: Annotated[str, typer.Option(help="A note for the run file.")] = "",
    as_json: Json = False,
) -> None:
    """Load MODEL, tune its kernels on what it really calls, prove the gain on the whole model, and keep the result."""
    with edge():
        report = run(
            TuneOptions(
                model=model,
                cache=cache,
                fresh=fresh,
                replay=replay,
                continuing=continue_,
                thorough=thorough,
                budget=budget,
                decode=decode,
                prefill=prefill,
                from_coverage=from_coverage,
                threads=threads,
                files=tuple(with_ or ()),
                selection=(tuple(op or ()), tuple(skip_op or ()), tuple(only_runner or ())),
                memory_limit=memory_limit,
                mix=mix,
                batch_invariant=batch_invariant,
                isolate=isolate,
                note=note,
                as_json=as_json,
                resume=resume,
                given=_given(context),
            )
        )
    if report is not None and not kept(report):
        raise SystemExit(3)


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """What the command line said; `selection` is (ops, skipped ops, runners), `given` the parameters that it named itself.

    `attached` are the ops that a run which is resumed had attached, where these were not all.
    """

    model: str
    cache: Path | None
    fresh: bool
    replay: bool
    continuing: bool
    thorough: bool
    budget: float | None
    decode: str
    prefill: str
    threads: int | None
    files: tuple[Path, ...]
    selection: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
    memory_limit: str | None
    mix: str | None
    batch_invariant: bool
    isolate: str | None
    note: str
    as_json: bool
    from_coverage: bool = False
    resume: Path | None = None
    given: frozenset[str] = frozenset()
    attached: tuple[str, ...] = ()


def run(options: TuneOptions) -> TuneReport | None:
    """The command without its edge: checks every argument before the model is loaded. None: there was nothing to tune."""
    from tunebook.cli._from_coverage import counted_calls, sized
    from tunebook.cli._load import load_model
    from tunebook.cli._resume import as_begun
    from tunebook.cli._tune_report import print_report
    from tunebook.engine import ATTACHABLE, parse_mix, requests
    from tunebook.errors import UsageError
    from tunebook.ops import load_file
    from tunebook.plan import MemoryLimit
    from tunebook.store import Policy, resolve_policy
    from tunebook.tuner import Isolate, Selection

    if options.resume is not None:
        options = as_begun(options, options.resume)
    for one, other in itertools.combinations(("fresh", "replay", "continuing"), 2):
        if getattr(options, one) and getattr(options, other):
            names = [f"--{'continue' if name == 'continuing' else name}" for name in (one, other)]
            raise UsageError(f"{names[0]} and {names[1]} contradict each other; give one of them")
    if options.budget is not None and not options.budget > 0:
        raise UsageError(f"--budget {options.budget} is not a positive number of seconds")
    wanted = requests(sizes("--decode", options.decode), sizes("--prefill", options.prefill))
    if options.memory_limit is not None:
        MemoryLimit.parse(options.memory_limit, "--memory-limit")
    if options.mix is not None:
        parse_mix(options.mix, None, "--mix")
    isolate = Isolate.of(options.isolate, "--isolate ")
    counted = counted_calls(options) if options.from_coverage else None
    policy = resolve_policy(True, Policy.FRESH if options.fresh else Policy.REPLAY if options.replay else None)
    quiet = options.as_json
    with only_json(quiet):
        before = runner_names()
        for file in options.files:
            load_file(file)
        own = runner_names() - before
        selection = Selection(*options.selection)
        left = tuple(name for name in ATTACHABLE if selection.takes_op(name))
        fallback = options.attached or (left if left != ATTACHABLE else ())
        with (
            blaming(options.files),
            load_model(options.model, options.threads, quiet, fallback) as runner,
            progress_bar(quiet) as progress,
        ):
            lacking = sized(options, counted, runner) if counted is not None else options
            if lacking is not None:
                options = lacking
                wanted = requests(sizes("--decode", options.decode), sizes("--prefill", options.prefill))
            asked: dict[str, Any] = {
                "cache": options.cache,
                "policy": policy,
                "budget_s": options.budget,
                "wanted": wanted,
                "selection": fitting(selection, runner),
                "note": options.note,
                "continuing": options.continuing,
                "thorough": options.thorough,
                "memory_limit": options.memory_limit,
                "mix": options.mix,
                "batch_invariant": options.batch_invariant,
                "isolate": isolate,
                "files": options.files,
            }
            if options.resume is not None:
                asked = {"resume": options.resume}
            report = runner.autotune(**asked, progress=progress) if lacking is not None else None
    if report is None:
        _nothing_lacks(options.model, quiet)
    elif quiet:
        print_json(report.document())
    else:
        print_report(report, own)
    return report


def _nothing_lacks(model: str, quiet: bool) -> None:
    """Say that no call was counted that a tuning would cover."""
    why = "what was counted of its calls is tuned"
    if quiet:
        print_json({"model": model, "tuned": False, "why": why})
    else:
        say(f"{model}: there is nothing to tune: {why}")


def _given(context: typer.Context) -> frozenset[str]:
    """The parameters that the command line names."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")


def fitting(selection: Selection, runner: ModelRunner) -> Selection:
    """The selection without skipped ops that exist and were not even attached: skipping them is done."""
    attached = {binding.spec.name for binding in runner.attachment.bindings.values()}
    known = {op for op, _ in runner_names()}
    return replace(selection, skip_ops=tuple(op for op in selection.skip_ops if op in attached or op not in known))


def kept(report: TuneReport) -> bool:
    """Whether the result is where it belongs: in the cache, or for a fresh tuning in a complete run file."""
    fresh = report.session.policy.value == "fresh"
    return not report.outcome.not_published and not (fresh and report.run_problem)


def runner_names() -> set[tuple[str, str]]:
    """(op, runner) of everything that is declared now."""
    import tunebook.kernels  # noqa: F401 - declares the shipped ops
    from tunebook.dispatch import OPS

    return {(op.name, runner) for op in OPS.values() for runner in op.runners}
