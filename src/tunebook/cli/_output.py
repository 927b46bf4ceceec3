"""What commands print beside tables: one JSON document with --json, lines, progress, and intervals."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, Literal

from tunebook.cli._text import encodable, is_unicode

if TYPE_CHECKING:
    from rich.console import Console

    from tunebook.tuner import Progress


#: Where nobody watches, progress is a line after this many seconds.
QUIET_S = 5.0
#: What a reader may want to copy from a line.
_COPIED = re.compile(r"[/|=`]|--\w|\btunebook \w")


@contextmanager
def only_json(wanted: bool) -> Iterator[None]:
    """Where `wanted`, what anything inside prints goes to standard error: Python code, C code and child processes alike.

    Standard output is then the document's alone; print it afterwards.
    """
    if not wanted:
        yield
        return
    sys.stdout.flush()
    kept = None
    with suppress(OSError):  # one of the two is closed: there is nothing to keep apart
        kept = os.dup(1)
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            _flush_c()  # what C code has buffered goes where it was meant to go
            os.dup2(kept, 1)
            os.close(kept)


def _flush_c() -> None:
    import ctypes

    with suppress(OSError, TypeError, AttributeError):  # no C library under that name: it has no buffer of ours either
        ctypes.CDLL(None).fflush(None)


def print_json(document: Any) -> None:
    """One document on standard output; it is the same document in every encoding."""
    escaped = not is_unicode(sys.stdout.encoding)
    print(json.dumps(document, indent=2, ensure_ascii=escaped, default=str))


def say(text: str = "") -> None:
    """A line of the command's own result.

    On a terminal that is too narrow for it, prose is broken between words. A line that holds something to copy, such as a
    path, a key or a command, is left to the terminal, which folds it and copies it whole.
    """
    if sys.stdout.isatty() and not _COPIED.search(text):
        from rich.console import Console
        from rich.text import Text

        console = Console()
        text = "\n".join(line.plain for line in Text(encodable(text)).wrap(console, console.width))
    print(text)


def nobody_reads() -> None:
    """What standard output still holds is dropped: its reader is gone, and the interpreter would complain of it at the end."""
    with suppress(OSError, ValueError):  # a stream without a descriptor has no reader
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)


def flush() -> None:
    """Write out what standard output still holds, here and not at the interpreter's end, which complains of a missing reader."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        nobody_reads()


@functools.cache
def error_console() -> Console:
    """Where progress and logs go: one for both, so that a log line does not tear a bar."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress]:
    """A ``progress(done, total, what)`` that draws a bar with the time left; a line now and then where nobody watches."""
    if quiet:
        yield lambda done, total, what: None
    elif sys.stderr.isatty():
        with _rich_bar() as report:
            yield report
    else:
        yield _lines()


def cut() -> Literal["ellipsis", "crop"]:
    """How a description gives way on standard error: spelt out, an ellipsis would take three columns, and the bar two lines."""
    return "ellipsis" if encodable("…", error=True) == "…" else "crop"


@contextmanager
def _rich_bar() -> Iterator[Progress]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    bar = Progress(
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=12),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        # the only one that gives way on a narrow terminal
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow=cut())),
        console=error_console(),
        transient=True,
        expand=True,
    )
    with bar:
        task = bar.add_task("", total=1)
        totals = {"seen": 0}

        def report(done: int, total: int, what: str) -> None:
            if total != totals["seen"]:
                totals["seen"] = total
                bar.reset(task, total=total)
            bar.update(task, completed=done, description=encodable(what, error=True))

        yield report


def _lines() -> Progress:
    import time

    began = last = time.monotonic()
    stage, before = 0, 0

    def report(done: int, total: int, what: str) -> None:
        nonlocal began, last, stage, before
        now = time.monotonic()
        if done == 0 or total != stage:  # a new stage, whose first report may come after its first step
            began, last, stage, before = now, max(last, now - QUIET_S), total, done
        elif now - last >= QUIET_S and done > before:
            last = now
            left = (now - began) / (done - before) * (total - done)
            print(f"tunebook: {done}/{total}, about {left:.0f} s left: {what}", file=sys.stderr, flush=True)

    return report


def interval(value: float, low: float, high: float) -> str:
    """``1.84× [1.79, 1.90]``"""
    return f"{value:.2f}× [{low:.2f}, {high:.2f}]"
