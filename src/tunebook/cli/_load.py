"""Loading a model for a command, with progress."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunebook.engine import ModelRunner
    from tunebook.engine.models import Progress

logger = logging.getLogger("tunebook.cli")


def load_model(model: str, threads: int | None, quiet: bool, fallback: Sequence[str] = ()) -> ModelRunner:
    """A runner of `model`, its loading reported on standard error: a bar where somebody watches, else a few lines.

    Everything that can be tuned is attached. Where the model has experts that are refused, only the ops of `fallback` are;
    without any, the refusal is raised.
    """
    from tunebook.engine import ModelRunner, models, set_threads
    from tunebook.errors import ModelError

    set_threads(threads)
    with _progress(model, quiet) as progress:
        loaded = models.load(model, progress=progress)
    try:
        return ModelRunner(loaded, threads=threads)
    except ModelError as error:
        if not fallback:
            raise
        logger.info("only %s is attached: %s", ", ".join(fallback), error)
        return ModelRunner(loaded, threads=threads, ops=tuple(fallback))


@contextmanager
def _progress(model: str, quiet: bool) -> Iterator[Progress | None]:
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar(model) as report:
            yield report
    else:
        yield _lines()


def _lines() -> Progress:
    last = ""

    def line(what: str, done: float | None) -> None:
        nonlocal last
        if what != last:
            last = what
            print(f"tunebook: {what}", file=sys.stderr, flush=True)

    return line


@contextmanager
def _bar(model: str) -> Iterator[Progress]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    from tunebook.cli._output import cut, error_console
    from tunebook.cli._text import encodable

    columns = (BarColumn(bar_width=24), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    gives_way = Column(ratio=1, no_wrap=True, overflow=cut())
    text = TextColumn("{task.description}", markup=False, table_column=gives_way)
    with Progress(*columns, text, console=error_console(), transient=True, expand=True) as bar:
        task = bar.add_task(encodable(f"loading {model}", error=True), total=None)

        def show(what: str, done: float | None) -> None:
            what = encodable(what, error=True)
            bar.update(task, description=what, total=None if done is None else 1.0, completed=done or 0.0)

        yield show
