"""The edge: logging, and the only place that turns errors into exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tunebook.envs import envs
from tunebook.errors import TunebookError, UsageError

EXIT_CODES = {
    0: "done",
    1: "an error; one line on standard error names it",
    2: "the command line cannot be understood, or its values contradict each other",
    3: "done, but the cache could not be written; the message says why and where the result is",
    130: "interrupted; what was tuned is kept",
}


@contextmanager
def edge() -> Iterator[None]:
    """Run a command: warnings on misspelt variables first, errors as one line and an exit code."""
    try:
        configure_logging()
        envs.check()
        yield
    except TunebookError as error:
        print(f"tunebook: error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from error
    except KeyboardInterrupt:
        print("tunebook: interrupted; what was tuned is kept. The same command goes on from there", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        sys.stderr.close()  # the reader is gone; Python's own complaint at exit would be noise
        raise SystemExit(0) from None


def configure_logging() -> None:
    """Log under ``tunebook`` to standard error, at TUNEBOOK_LOG_LEVEL."""
    logger = logging.getLogger("tunebook")
    logger.setLevel(envs.TUNEBOOK_LOG_LEVEL.get())
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.addHandler(_handler())
    logger.propagate = False


def _handler() -> logging.Handler:
    if sys.stderr.isatty():
        from rich.logging import RichHandler

        from tunebook.cli._output import error_console

        return RichHandler(
            console=error_console(), show_path=False, show_time=False, markup=False, rich_tracebacks=False
        )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    return handler


def sizes(option: str, text: str) -> tuple[int, ...]:
    """``1,4,16`` as numbers; empty for none. Raises UsageError that names the option and the part that is wrong."""
    found = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if not part.isascii() or not part.isdigit() or int(part) < 1:
            raise UsageError(f"{option} {text!r}: {part!r} is not a whole number of at least 1; write it as 1,4,16")
        found.append(int(part))
    return tuple(found)
