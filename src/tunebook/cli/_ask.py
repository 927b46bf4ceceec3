"""Asking before a cache is changed: on a terminal, and never where nobody can answer."""

from __future__ import annotations

import sys

from tunebook.errors import UsageError


def check_asked(command: str, *, yes: bool, as_json: bool) -> None:
    """Raise UsageError where the command may not go on without ``--yes`` and nobody can be asked."""
    if yes:
        return
    if as_json:
        raise UsageError(f"{command} --json asks nothing; say --yes as well, or leave --json out to be asked")
    if sys.stdin is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(f"{command} changes the cache, and there is no terminal to ask on; say --yes")


def agreed(question: str) -> bool:
    """Ask on the terminal; anything but a yes is a no, and so is the end of the input."""
    sys.stdout.flush()
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
