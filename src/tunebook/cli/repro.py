"""`tunebook repro`: one trial alone, without the model: one process to point a profiler at."""

from __future__ import annotations

import logging
import math
import shlex
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunebook.cli._options import Json
from tunebook.cli._output import only_json, print_json, progress_bar, say
from tunebook.cli._run import blaming, edge

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tunebook.book.repro import Recordings
    from tunebook.cli._gate import PerfControl
    from tunebook.cli._repro_report import Outcome
    from tunebook.dispatch import Op
    from tunebook.records import Problem

#: The measured calls take so long unless they are counted.
SECONDS = 3.0


def repro(
    problem: Annotated[str, typer.Argument(help="A problem's key, or a part of it that no other problem has.")],
    tactic: Annotated[str, typer.Argument(help="A tactic's name as `tunebook show` prints it, or default.")],
    run: Annotated[
        str | None,
        typer.Option(help="The run or cache that tells of it: a path, latest, previous or cache. Default: the cache."),
    ] = None,
    with_: Annotated[
        list[Path] | None,
        typer.Option("--with", help="A Python file that declares the op or the runner. May be repeated."),
    ] = None,
    calls: Annotated[int | None, typer.Option(help="Measure so many calls.")] = None,
    seconds: Annotated[float | None, typer.Option(help=f"Measure for so long. Default: {SECONDS:g}.")] = None,
    warmup: Annotated[
        int | None, typer.Option(help="Calls before the measured ones. Default: until they are steady.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads. Default: TUNEBOOK_THREADS, else those of the run, else torch's.")
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(help="Layers that take turns. Default: enough for each call to find its weights cold; 1: warm."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of the inputs.")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A size of the bucket (M=13), or what no key tells (keys=2048)."
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for SIGUSR1 or Enter before the measured calls, to attach a profiler.")
    ] = False,
    perf_control: Annotated[
        str | None,
        typer.Option(
            metavar="CTL,ACK", help="Have perf (--delay=-1 --control=fifo:CTL,ACK) count the measured calls alone."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run TACTIC on PROBLEM alone, on inputs made again, and print how to profile just this process."""
    with edge():
        options = ReproOptions(
            problem=problem,
            tactic=tactic,
            run=run,
            files=tuple(with_ or ()),
            calls=calls,
            seconds=seconds,
            warmup=warmup,
            threads=threads,
            layers=layers,
            seed=seed,
            chosen=tuple(set_ or ()),
            wait=wait,
            perf_control=perf_control,
            as_json=as_json,
        )
        _repro(options)


@dataclass(frozen=True, kw_only=True)
class ReproOptions:
    """What the command line said."""

    problem: str
    tactic: str
    run: str | None
    files: tuple[Path, ...]
    calls: int | None
    seconds: float | None
    warmup: int | None
    threads: int | None
    layers: int | None
    seed: int
    chosen: tuple[str, ...]
    wait: bool
    perf_control: str | None
    as_json: bool

    def check(self) -> None:
        """Raise UsageError for values that cannot be meant."""
        from tunebook.errors import UsageError

        if self.calls is not None and self.seconds is not None:
            raise UsageError("--calls and --seconds contradict each other; give one of them")
        for name, value, least in (("calls", self.calls, 1), ("warmup", self.warmup, 0), ("layers", self.layers, 1)):
            if value is not None and value < least:
                raise UsageError(f"--{name} {value} is less than {least}")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise UsageError(f"--seconds {self.seconds} is not a positive number of seconds")
        if not 0 <= self.seed < 1 << 32:
            raise UsageError(f"--seed {self.seed} is not from 0 to {(1 << 32) - 1}")


def _repro(options: ReproOptions) -> None:
    from tunebook.cli._gate import PerfControl
    from tunebook.cli._repro_report import document, print_outcome
    from tunebook.errors import OpError

    options.check()
    perf = PerfControl(options.perf_control) if options.perf_control is not None else None
    try:
        recordings = _recordings(options)
        problem = _problem(options, recordings)
        with only_json(options.as_json), blaming(options.files):
            outcome = _run(options, problem, recordings, perf)
    finally:
        if perf is not None:
            perf.close()
    if options.as_json:
        print_json(document(outcome))
    else:
        print_outcome(outcome)
    if outcome.wrong is not None:
        raise OpError(f"{outcome.trial.name} on {problem} is wrong: {outcome.wrong}")


def _recordings(options: ReproOptions) -> Recordings | None:
    """What was named; else the cache of this machine, or its newest run, if there is one."""
    from tunebook.book import NAMES, place_of, resolve
    from tunebook.book.repro import Recordings
    from tunebook.errors import StoreError

    if options.run is not None:
        named = options.run in NAMES
        return Recordings(resolve(options.run, place_of(None, options.threads)) if named else Path(options.run))
    try:
        place = place_of(None, options.threads)
        there = place.cache.exists() or place.cache.with_name(f"{place.cache.name}.d").is_dir()
        return Recordings(resolve("cache" if there else "latest", place))
    except StoreError:
        if not _whole(options.problem):
            raise
        return None


def _whole(text: str) -> Problem | None:
    """The problem whose key this is, or None for a part of one."""
    from tunebook.records import Problem

    try:
        return Problem.parse(text)
    except ValueError:
        return None


def _problem(options: ReproOptions, recordings: Recordings | None) -> Problem:
    """The problem that is meant. Prints all of several, and raises UsageError then; StoreError where there is none."""
    from tunebook.book.repro import problems_named
    from tunebook.cli._text import clean
    from tunebook.errors import StoreError, UsageError
    from tunebook.records import Problem

    text = options.problem
    found = problems_named(text, recordings.keys) if recordings is not None else []
    if len(found) == 1:
        return Problem.parse(found[0])
    if found:
        if options.as_json:
            print_json({"problems": found})
        else:
            for key in found:
                say(clean(key))
        raise UsageError(f"{clean(text)!r} is a part of {len(found)} problems; give more of the one that is meant")
    whole = _whole(text)
    if whole is not None and options.run is None:
        return whole
    assert recordings is not None
    raise StoreError(f"{recordings.path}: no problem contains {clean(text)!r}; `tunebook show` lists them")


def _run(options: ReproOptions, problem: Problem, recordings: Recordings | None, perf: PerfControl | None) -> Outcome:
    """Load the op, set the trial up, call it."""
    from tunebook.book.repro import choices, find_tactic, measure, set_up, warm_up
    from tunebook.cli._gate import marked
    from tunebook.cli._profilers import profilers
    from tunebook.cli._repro_report import Outcome
    from tunebook.devices import cpu_model
    from tunebook.engine import set_threads

    set_threads(_threads(options, recordings))
    op = _op(problem, options.files)
    tactic = find_tactic(options.tactic, op, problem)
    sizes, chosen = choices(options.chosen, op, problem)
    told = recordings.of(problem.key, tactic) if recordings is not None else None
    lone = told is not None and not told.model
    with progress_bar(options.as_json) as progress:
        trial = set_up(
            op, problem, tactic, sizes, chosen, seed=options.seed, layers=options.layers, lone=lone, progress=progress
        )
        inner = warm_up(trial, options.warmup)
    with marked(trial.device.name, wait=options.wait, perf=perf):
        measured = measure(
            trial, inner, calls=options.calls, seconds=options.seconds if options.seconds is not None else SECONDS
        )
    process = _process(options, problem.key, tactic.name, recordings)
    return Outcome(
        trial=trial,
        measured=measured,
        told=told,
        sizes=sizes,
        options=chosen,
        seed=options.seed,
        version=op.runners[tactic.runner].version if tactic.runner in op.runners else op.default_version,
        process=shlex.join(process),
        profilers=profilers(process, trial.device.name, system=sys.platform, processor=cpu_model()),
    )


def _threads(options: ReproOptions, recordings: Recordings | None) -> int | None:
    """What was asked for; else, unless the environment says it, what the run had."""
    from tunebook.envs import envs

    if options.threads is not None or envs.TUNEBOOK_THREADS.get() is not None:
        return options.threads
    environment = recordings.environment if recordings is not None else None
    text = environment.hard.get("threads", "") if environment is not None else ""
    return int(text) if text.isdecimal() and len(text) < 10 else None


def _op(problem: Problem, files: Sequence[Path]) -> Op[..., object]:
    """The op of a problem, declared by tunebook or by one of the files."""
    import tunebook.kernels  # noqa: F401 - declares the shipped ops
    from tunebook.dispatch import OPS
    from tunebook.errors import UsageError
    from tunebook.ops import load_file

    with _untuned():
        for file in files:
            load_file(file)
    op = OPS.get(problem.op)
    if op is None:
        raise UsageError(
            f"op {problem.op} is none of {', '.join(sorted(OPS))}; give the file that declares it: --with FILE"
        )
    return op


@contextmanager
def _untuned() -> Iterator[None]:
    """Files that are imported tune nothing, unless a block of theirs names a policy itself; and do not tell of a cache."""
    from tunebook.envs import envs

    logger = logging.getLogger("tunebook")
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        with envs.TUNEBOOK_AUTOTUNE.override(False):
            yield
    finally:
        logger.setLevel(level)


def _process(options: ReproOptions, key: str, tactic: str, recordings: Recordings | None) -> list[str]:
    """The command line of this very trial, every choice spelt out."""
    import torch

    words = [sys.executable, "-m", "tunebook", "repro", key, tactic]
    if recordings is not None:
        words += ["--run", str(recordings.path)]
    for file in options.files:
        words += ["--with", str(file)]
    named = {"calls": options.calls, "seconds": options.seconds, "warmup": options.warmup, "layers": options.layers}
    for name, value in {**named, "threads": torch.get_num_threads(), "seed": options.seed or None}.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    for text in options.chosen:
        words += ["--set", text]
    return words
