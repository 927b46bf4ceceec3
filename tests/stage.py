"""Runs `tunebook` on a terminal, in pipes, or with nobody reading, many times at little cost.

A new interpreter takes seconds to import torch and transformers. So one process imports them, and each command runs in a
process forked from it, with its own streams, variables and directory. Threads do not survive a fork: torch starts its own
when it computes, which that process never does. What an interpreter decides at its start, the encoding of its streams, is
given by the caller. It ends like one: exit functions run and streams are flushed, but modules are not taken apart, which
would take longer than the command.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, NoReturn, TextIO, cast

#: Nothing that is run here is silent for so long, in seconds, unless it hangs.
LIVENESS_S = 180.0
_MESSAGE = 1 << 16
#: What commands import, themselves or late.
IMPORTED = (
    "rich.logging", "rich.progress", "rich.table", "typer.rich_utils", "transformers.models.mixtral.modeling_mixtral",
    "tunebook.book.confirm", "tunebook.cli", "tunebook.engine", "tunebook.kernels", "tunebook.report",
)  # fmt: skip

Streams = Literal["terminal", "pipes", "closed"]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The exit code, and what was written; on a terminal all of it is in `out`."""

    code: int
    out: bytes
    err: bytes


class Stage:
    """A process that has imported tunebook and all that it needs, and forks itself for each command."""

    def __init__(self, package: Path) -> None:
        self._package = package
        self._line: socket.socket | None = None

    def _started(self) -> socket.socket:
        """The line to the process, which is started when it is needed, and anew when it had to be ended."""
        if self._line is None:
            self._line, theirs = socket.socketpair()
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(self._package)},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # so that it can be ended with a command that hangs
            )
            theirs.close()
        return self._line

    def run(
        self,
        *arguments: object,
        environment: Mapping[str, str],
        directory: Path,
        streams: Streams = "pipes",
        columns: int = 60,
        encoding: str = "utf-8",
        typed: bytes = b"",
    ) -> Ended:
        """Run ``tunebook`` with these arguments. `streams` "closed": nobody reads standard output.

        `typed` is what somebody types on the terminal.
        """
        given, reading = _opened(streams, columns)
        if typed:
            os.write(reading[0], typed)
        request = {
            "arguments": [str(argument) for argument in arguments],
            "environment": dict(environment),
            "directory": str(directory),
            "encoding": encoding,
        }
        message = json.dumps(request).encode()
        assert len(message) < _MESSAGE
        line = self._started()
        socket.send_fds(line, [message], given)
        for descriptor in set(given):
            os.close(descriptor)
        written = self._read(reading)
        answer = line.recv(_MESSAGE)
        assert answer, "the process on the stage has ended"
        return Ended(code=json.loads(answer)["code"], out=written[0], err=written[1])

    def _read(self, reading: Sequence[int]) -> list[bytes]:
        """What comes from standard output and standard error until both are closed."""
        written = dict.fromkeys(reading, b"")
        open_ = {descriptor for descriptor in reading if descriptor >= 0}
        while open_:
            ready = select.select(list(open_), [], [], LIVENESS_S)[0]
            if not ready:
                self.close()
                raise AssertionError(f"nothing was written for {LIVENESS_S} s: {written}")
            for descriptor in ready:
                part = b""
                with contextlib.suppress(OSError):  # how Linux tells that the other end of a terminal is closed
                    part = os.read(descriptor, _MESSAGE)
                written[descriptor] += part
                if not part:
                    os.close(descriptor)
                    open_.remove(descriptor)
        return [written[descriptor] for descriptor in reading]

    def close(self) -> None:
        if self._line is None:
            return
        self._line.close()
        self._line = None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _opened(streams: Streams, columns: int) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Standard input, output and error for the command, and where its output and its errors are read (-1: nowhere)."""
    if streams == "terminal":
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, columns))
        return (theirs, theirs, theirs), (ours, -1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    (out, to_out), (err, to_err) = os.pipe(), os.pipe()
    if streams == "closed":
        os.close(out)
        out = -1
    return (nothing, to_out, to_err), (out, err)


def _serve(line: socket.socket) -> None:
    """Fork for each request."""
    for name in IMPORTED:
        import_module(name)
    import tunebook.cli

    while True:
        message, descriptors, _, _ = socket.recv_fds(line, _MESSAGE, 3)
        if not message:
            return
        child = os.fork()
        if not child:
            line.close()
            _become(json.loads(message), descriptors)
            _end(_code_of(tunebook.cli.main))
        for descriptor in descriptors:
            os.close(descriptor)
        status = os.waitpid(child, 0)[1]
        line.sendall(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode())


def _become(request: dict[str, object], descriptors: Sequence[int]) -> None:
    """Take on the streams, variables, directory and arguments of a request."""
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
    for descriptor in descriptors:
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    os.chdir(str(request["directory"]))
    encoding = str(request["encoding"])
    sys.stdin = sys.__stdin__ = _stream(0, "r", encoding, "strict")  # type: ignore[misc, assignment]
    sys.stdout = sys.__stdout__ = _stream(1, "w", encoding, "strict")  # type: ignore[misc, assignment]
    sys.stderr = sys.__stderr__ = _stream(2, "w", encoding, "backslashreplace")  # type: ignore[misc, assignment]
    sys.argv = ["tunebook", *request["arguments"]]  # type: ignore[misc]


def _code_of(command: Callable[[], None]) -> int:
    """Run a command, and give the exit code that an interpreter would make of how it ended."""
    try:
        command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001 - whatever it is, an interpreter prints it
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """What an interpreter does at its end: 120 is its exit code where standard output cannot be flushed."""
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"Exception ignored while flushing sys.stdout: {error!r}", file=sys.stderr)
        code = 120
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code)


def _stream(descriptor: int, mode: str, encoding: str, errors: str) -> TextIO:
    """A standard stream as an interpreter makes it."""
    return cast("TextIO", open(descriptor, mode, encoding=encoding, errors=errors, closefd=False))


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
