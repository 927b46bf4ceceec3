"""Loading a model for a command, with progress."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunebook.engine import ModelRunner


def load_model(model: str, threads: int | None, quiet: bool) -> ModelRunner:
    """A runner of `model`, its loading reported on standard error: a bar where somebody watches, else a few lines."""
    from tunebook.engine import ModelRunner

    if quiet:
        return ModelRunner(model, threads=threads)
    if not sys.stderr.isatty():
        last = {"what": ""}

        def line(what: str, done: float | None) -> None:
            if what != last["what"]:
                last["what"] = what
                print(f"tunebook: {what}", file=sys.stderr, flush=True)

        return ModelRunner(model, threads=threads, progress=line)
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from tunebook.cli._output import error_console

    columns = (BarColumn(bar_width=24), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    text = TextColumn("{task.description}", markup=False)
    with Progress(*columns, text, console=error_console(), transient=True) as bar:
        task = bar.add_task(f"loading {model}", total=None)

        def show(what: str, done: float | None) -> None:
            bar.update(task, description=what, total=None if done is None else 1.0, completed=done or 0.0)

        return ModelRunner(model, threads=threads, progress=show)
