"""Where the measured calls begin and end, for a profiler: waiting for a signal, perf's control, CUDA's profiler range."""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

#: So long perf may take to answer, in seconds.
PATIENCE_S = 10.0


class PerfControl:
    """The two pipes of ``perf --control=fifo:CTL,ACK``: events are counted from `enable` to `disable`."""

    def __init__(self, text: str) -> None:
        """Open ``CTL,ACK``. Raises UsageError where they are no pipes, or perf does not listen."""
        from tunebook.errors import UsageError

        self._text = text
        names = text.split(",")
        if len(names) != 2:
            raise UsageError(f"--perf-control {text}: write CTL,ACK, the two pipes of perf's --control=fifo:CTL,ACK")
        for name in names:
            try:
                if not stat.S_ISFIFO(Path(name).stat().st_mode):
                    raise UsageError(f"--perf-control {text}: {name} is no pipe; make it with mkfifo {name}")
            except OSError as error:
                raise UsageError(
                    f"--perf-control {text}: {name}: {error.strerror}; make it with mkfifo {name}"
                ) from None
        self._open: list[int] = []
        try:
            self._control, self._ack = (
                self._opened(name, flag) for name, flag in zip(names, (os.O_WRONLY, os.O_RDONLY), strict=True)
            )
        except OSError as error:  # nobody has opened the other end of CTL
            self.close()
            raise UsageError(
                f"--perf-control {text}: {error.strerror}; start it under perf with --delay=-1 --control=fifo:{text}"
            ) from None

    def _opened(self, name: str, flag: int) -> int:
        self._open.append(os.open(name, flag | os.O_NONBLOCK | os.O_CLOEXEC))
        return self._open[-1]

    def enable(self) -> None:
        self._tell(b"enable\n")

    def disable(self) -> None:
        self._tell(b"disable\n")

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop())

    def _tell(self, command: bytes) -> None:
        """Send a command and wait until perf has obeyed. Raises UsageError where it does not."""
        from tunebook.errors import UsageError

        word = command.decode().strip()
        try:
            os.write(self._control, command)
        except OSError as error:
            raise UsageError(f"--perf-control {self._text}: perf cannot be told to {word}: {error.strerror}") from None
        answer, ends = b"", time.monotonic() + PATIENCE_S
        while b"ack" not in answer:
            left = ends - time.monotonic()
            if left <= 0 or not select.select([self._ack], [], [], left)[0]:
                raise UsageError(f"--perf-control {self._text}: perf did not answer to {word} within {PATIENCE_S:g} s")
            try:
                part = os.read(self._ack, 64)
            except BlockingIOError:
                continue
            if not part:  # perf has not opened its end yet, or has gone
                time.sleep(0.01)
            answer += part


@contextmanager
def marked(device: str, *, wait: bool, perf: PerfControl | None) -> Iterator[None]:
    """The measured calls, in the block: begun when told to, with perf counting, and as the range that CUDA's tools capture."""
    if wait:
        wait_for_word()
    with ExitStack() as stack:
        if device.startswith("cuda"):
            import torch

            torch.cuda.profiler.start()
            stack.callback(torch.cuda.profiler.stop)
        if perf is not None:
            perf.enable()
            stack.callback(perf.disable)
        yield


def wait_for_word() -> None:
    """Print the process on standard error and wait for SIGUSR1, or for Enter where standard input is a terminal."""
    ours, theirs = os.pipe()
    before = signal.signal(signal.SIGUSR1, lambda signum, frame: _passed_on(theirs))
    terminal = sys.stdin is not None and sys.stdin.isatty()
    try:
        ways = f"kill -USR1 {os.getpid()}{', or Enter,' if terminal else ''} starts the calls"
        print(f"tunebook: process {os.getpid()} is ready; {ways}", file=sys.stderr, flush=True)
        heard, _, _ = select.select([ours, *([sys.stdin] if terminal else [])], [], [])
        if sys.stdin in heard:
            sys.stdin.readline()
    finally:
        signal.signal(signal.SIGUSR1, before)
        os.close(ours)
        os.close(theirs)


def _passed_on(pipe: int) -> None:
    os.write(pipe, b".")
