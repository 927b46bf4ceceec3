"""The edge: logging, and the only place that turns errors into exit codes."""

from __future__ import annotations

import logging
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tunebook.cli._output import nobody_reads
from tunebook.cli._signals import Heard, heeding
from tunebook.cli._text import encodable
from tunebook.envs import envs
from tunebook.errors import TunebookError, UsageError, UserCodeError

#: Of a message of others, so much is shown.
LONGEST = 400
#: How a note on an interruption begins that says what to do.
GO_ON = "go on with: "

EXIT_CODES = {
    0: "done",
    1: "an error; one line on standard error names it",
    2: "the command line cannot be understood, or its values contradict each other",
    3: "done, but the result could not be kept where it belongs; the message says why and where else it is",
    70: "a fault of tunebook itself; with TUNEBOOK_LOG_LEVEL=DEBUG the traceback is shown",
    130: "interrupted (Ctrl-C); what was tuned is kept, and the message says how to go on",
    143: "the same, by SIGTERM",
}


@contextmanager
def edge() -> Iterator[None]:
    """Run a command: warnings on misspelt variables first, errors as one line and an exit code; signals end it in order.

    With TUNEBOOK_LOG_LEVEL=DEBUG an error that was not raised on purpose shows its traceback as well.
    """
    with heeding() as heard:
        try:
            configure_logging()
            envs.check()
            yield
            sys.stdout.flush()  # here a full disk or a reader that is gone is still an error like others
        except BaseException as error:
            if heard.signum is not None or isinstance(error, KeyboardInterrupt):  # or what others made of one
                raise SystemExit(_interrupted(error, heard)) from None
            if isinstance(error, TunebookError):
                print(f"tunebook: error: {error}", file=sys.stderr)
                raise SystemExit(2 if isinstance(error, UsageError) else 1) from error
            if isinstance(error, BrokenPipeError):
                nobody_reads()
                raise SystemExit(0) from None
            if isinstance(error, Exception):  # the outermost place: the user gets a line and an exit code in any case
                raise SystemExit(_unexpected(error)) from error
            raise


def _interrupted(error: BaseException, heard: Heard) -> int:
    """Print what an interruption leaves and how to go on, and give its exit code."""
    how = "terminated" if heard.signum == signal.SIGTERM else "interrupted"
    remedy = next((note for note in getattr(error, "__notes__", ()) if note.startswith(GO_ON)), None)
    kept = f"what was measured is kept; {remedy}" if remedy else "no tuning was begun"
    with suppress(OSError, ValueError):
        print(f"tunebook: {how}; {kept}", file=sys.stderr)
    return heard.code


def _unexpected(error: Exception) -> int:
    """Print what was not raised on purpose, and give its exit code: the machine's limits are no fault of ours."""
    if logging.getLogger("tunebook").isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)
    refused = _out_of_memory(error)
    if refused is not None:
        remedy = "give smaller sizes (--decode, --prefill) or a smaller model, or free some memory"
        print(f"tunebook: error: out of memory{refused}; {remedy}", file=sys.stderr)
        return 1
    if isinstance(error, OSError):
        print(f"tunebook: error: {_one_line(error)}", file=sys.stderr)
        return 1
    print(
        f"tunebook: internal error: {type(error).__name__}: {_one_line(error)}; "
        "run again with TUNEBOOK_LOG_LEVEL=DEBUG and report it",
        file=sys.stderr,
    )
    return 70


def _out_of_memory(error: Exception) -> str | None:
    """What an allocation that failed had asked for, in words, or None for any other error."""
    text = str(error)
    if not isinstance(error, MemoryError) and not re.search("can't allocate memory|out of memory", text):
        return None
    from tunebook._figures import size

    asked = re.search(r"(?:allocate|allocating) (\d+) bytes", text)
    return f" ({size(int(asked[1]))} were asked for at once)" if asked else ""


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


@contextmanager
def blaming(files: Sequence[Path]) -> Iterator[None]:
    """Turn an exception that came out of the user's files, or of what lies beside them, into a UserCodeError of one line."""
    try:
        yield
    except (TunebookError, MemoryError):
        raise
    except Exception as error:
        folders = [file.expanduser().resolve().parent for file in files]
        frames = traceback.extract_tb(error.__traceback__)
        place = next((f for f in reversed(frames) if any(Path(f.filename).is_relative_to(d) for d in folders)), None)
        if place is None or _is_ours(place.filename):
            raise
        raise UserCodeError(
            f"{place.filename}:{place.lineno}: {type(error).__name__}: {_one_line(error)}, raised while the model ran"
        ) from error


def _is_ours(filename: str) -> bool:
    return Path(filename).is_relative_to(Path(__file__).resolve().parents[1])


def configure_logging() -> None:
    """Log under ``tunebook`` to standard error, at TUNEBOOK_LOG_LEVEL."""
    logger = logging.getLogger("tunebook")
    logger.setLevel(envs.TUNEBOOK_LOG_LEVEL.get())
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.addHandler(_handler())
    logger.propagate = False


class _Encodable(logging.Formatter):
    """What standard error can show, before lines are broken."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that logging has for it
        return encodable(super().formatMessage(record), error=True)


def _handler() -> logging.Handler:
    if sys.stderr.isatty():
        from rich.logging import RichHandler

        from tunebook.cli._output import error_console

        shown = RichHandler(
            console=error_console(), show_path=False, show_time=False, markup=False, rich_tracebacks=False
        )
        shown.setFormatter(_Encodable("%(message)s"))
        return shown
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    return handler


def sizes(option: str, text: str) -> tuple[int, ...]:
    """``1,4,16`` as numbers; empty for none. Raises UsageError that names the option and the part that is wrong."""
    found = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if not re.fullmatch("[0-9]{1,18}", part) or int(part) < 1:
            raise UsageError(f"{option} {text!r}: {part!r} is not a whole number of at least 1; write it as 1,4,16")
        found.append(int(part))
    return tuple(found)
