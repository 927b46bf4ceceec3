"""The command line: a module a command; the only place that turns errors into exit codes."""

from __future__ import annotations

from typing import Annotated

import typer

from tunebook._version import __version__
from tunebook.cli import (
    convert,
    coverage,
    diff,
    doctor,
    env,
    export,
    generate,
    history,
    import_,
    merge,
    pin,
    pins,
    promote,
    report,
    repro,
    rollback,
    show,
    tune,
    unpin,
)
from tunebook.cli._output import flush
from tunebook.cli._run import EXIT_CODES
from tunebook.cli._text import bear_any_encoding
from tunebook.envs import ask_for_huge_pages

_EPILOG = "Exit codes: " + "; ".join(f"{code}: {meaning}" for code, meaning in EXIT_CODES.items()) + "."

app = typer.Typer(
    name="tunebook",
    help="An autotuner for LLM-inference kernels whose results can be trusted, seen and kept.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut long words of an option's help on a narrow terminal
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tunebook {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


_COMMANDS = (
    *(tune, show, history, diff, promote, rollback, pin, unpin, pins, merge, export, import_),
    *(coverage, report, convert, repro, generate, env, doctor),
)
for module in _COMMANDS:
    function = module.__name__.rpartition(".")[2]
    # ``import_`` is named so for Python's sake
    app.command(function.rstrip("_"), epilog=getattr(module, "EPILOG", _EPILOG))(getattr(module, function))


def main() -> None:
    """The entry point of the command ``tunebook``."""
    bear_any_encoding()
    ask_for_huge_pages()
    try:
        app()
    finally:
        flush()


__all__ = ["app", "main"]
