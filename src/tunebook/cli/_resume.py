"""`tunebook tune --resume RUN`: the options as the run was begun with; others on the command line are refused."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunebook.cli._run import sizes
from tunebook.errors import StoreError, UsageError

if TYPE_CHECKING:
    from tunebook.cli.tune import TuneOptions
    from tunebook.records import Header

#: A whole number of threads as an environment writes it.
_DIGITS = 4


def as_begun(options: TuneOptions, path: Path) -> TuneOptions:
    """The options with which the run at `path` can go on: its model, threads and ops.

    Python files are not loaded because a run file names them, which may be another person's: they are given again. Raises
    StoreError for a file that is no run of `tunebook tune`, and UsageError, which names the option and both values, for one on
    the command line that is not as it was.
    """
    from tunebook.store import read_run

    header = read_run(path).header
    settings = header.settings
    if not settings.source:
        what = "a block of calls" if not header.model else f"{header.model}, which was given as an object"
        raise StoreError(
            f"{path}: this run tuned {what}, so that no command can resume it; give resume={str(path)!r} in Python"
        )
    _refuse_other(options, path, header)
    if _files(options) != settings.files:
        files = " ".join(f"--with {shlex.quote(file)}" for file in settings.files) or "no --with"
        raise UsageError(f"the run {path} was begun with {files}; give the same")
    threads = header.environment.hard.get("threads", "")
    return replace(
        options,
        model=settings.source,
        fresh=False,
        replay=False,
        continuing=False,
        threads=int(threads) if threads.isdecimal() and len(threads) <= _DIGITS else None,
        selection=(settings.ops, settings.skip_ops, settings.runners),
        attached=settings.attached,
    )


def _refuse_other(options: TuneOptions, path: Path, header: Header) -> None:
    settings = header.settings
    decode, prefill = (
        tuple(int(found[1]) for text in settings.wanted if (found := re.fullmatch(f"{phase} ([0-9]{{1,18}})", text)))
        for phase in ("decode", "prefill")
    )
    ops, skip_ops, runners = options.selection
    # by parameter: the option, what was given, what the run was begun with
    table: dict[str, tuple[str, Callable[[], Any], Any]] = {
        "model": ("MODEL", lambda: _source(options.model, settings.source), settings.source),
        "cache": ("--cache", lambda: str(Path(options.cache or "").expanduser().absolute()), settings.cache),
        "fresh": ("--fresh", lambda: options.fresh, header.policy == "fresh"),
        "replay": ("--replay", lambda: options.replay, False),
        "budget": ("--budget", lambda: options.budget, settings.budget_s),
        "decode": ("--decode", lambda: tuple(sorted(set(sizes("--decode", options.decode)))), decode),
        "prefill": ("--prefill", lambda: tuple(sorted(set(sizes("--prefill", options.prefill)))), prefill),
        "threads": ("--threads", lambda: str(options.threads), header.environment.hard.get("threads", "")),
        "op": ("--op", lambda: ops, settings.ops),
        "skip_op": ("--skip-op", lambda: skip_ops, settings.skip_ops),
        "only_runner": ("--only-runner", lambda: runners, settings.runners),
        "continue_": ("--continue", lambda: options.continuing, settings.continuing),
        "thorough": ("--thorough", lambda: options.thorough, settings.thorough),
        "memory_limit": ("--memory-limit", lambda: _limit(options.memory_limit), settings.memory_limit),
        "mix": ("--mix", lambda: _mix(options.mix), (settings.mix_given, settings.mix)),
        "batch_invariant": ("--batch-invariant", lambda: options.batch_invariant, settings.batch_invariant),
        "isolate": ("--isolate", lambda: options.isolate, settings.isolate),
        "note": ("--note", lambda: options.note, header.note),
    }
    for name in options.given:
        if name in table:
            option, now, then = table[name]
            if now() != then:
                raise UsageError(
                    f"{option} contradicts the run {path}, which was begun with {_shown(then)} there; leave it out"
                )


def _files(options: TuneOptions) -> tuple[str, ...]:
    return tuple(str(file.expanduser().resolve()) for file in options.files)


def _source(model: str, source: str) -> str:
    """The model as the run names it: a directory by its path."""
    return source if model == source else str(Path(model).expanduser().resolve())


def _limit(text: str | None) -> str:
    from tunebook.plan import MemoryLimit

    return "" if text is None else str(MemoryLimit.parse(text, "--memory-limit"))


def _mix(text: str | None) -> tuple[bool, Any]:
    from tunebook.engine import parse_mix

    return text is not None, None if text is None else parse_mix(text, None, "--mix")


def _shown(value: Any) -> str:
    """What a run was begun with, in words."""
    if isinstance(value, bool) or value in (None, "", ()):
        return "it" if value is True else "nothing"
    if isinstance(value, tuple) and isinstance(value[0], bool):
        return str(value[1] or "equal") if value[0] else "nothing"
    return ",".join(map(str, value)) if isinstance(value, Iterable) and not isinstance(value, str) else str(value)
