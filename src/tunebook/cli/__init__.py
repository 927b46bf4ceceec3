"""The command line: a module a command; the only place that turns errors into exit codes."""

from __future__ import annotations

from typing import Annotated

import typer

from tunebook._version import __version__
from tunebook.cli import diff, doctor, env, generate, history, report, show, tune
from tunebook.cli._run import EXIT_CODES
from tunebook.envs import ask_for_huge_pages

_EPILOG = "Exit codes: " + "; ".join(f"{code}: {meaning}" for code, meaning in EXIT_CODES.items()) + "."

app = typer.Typer(
    name="tunebook",
    help="An autotuner for LLM-inference kernels whose results can be trusted, seen and kept.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
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


for module in (tune, show, history, diff, report, generate, env, doctor):
    epilog = getattr(module, "EPILOG", _EPILOG)
    app.command(epilog=epilog)(getattr(module, module.__name__.rpartition(".")[2]))


def main() -> None:
    """The entry point of the command ``tunebook``."""
    ask_for_huge_pages()
    app()


__all__ = ["app", "main"]
