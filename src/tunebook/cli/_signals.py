"""Ctrl-C and SIGTERM while a command runs: the first ends it in order, the second at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

#: What a terminal that hid its cursor for a progress bar needs to show it again.
_SHOW_CURSOR = b"\x1b[?25h"


class Terminated(KeyboardInterrupt):
    """SIGTERM: whatever ends in order on Ctrl-C does so on this too."""


@dataclass
class Heard:
    """The signal that ended the command, or None."""

    signum: int | None = None

    @property
    def code(self) -> int:
        """The exit code that says so: that of Ctrl-C for an interruption which was no signal."""
        return 128 + (self.signum or signal.SIGINT)


@contextmanager
def heeding() -> Iterator[Heard]:
    """Raise KeyboardInterrupt on the first SIGINT, `Terminated` on the first SIGTERM; the second signal ends the process at once.

    Nothing is flushed or cleaned up then, which files bear. Only in the main thread, and only for signals that this process
    does not ignore already; handlers are put back afterwards.
    """
    heard = Heard()

    def hear(signum: int, frame: FrameType | None) -> None:
        if heard.signum is not None:
            if sys.__stderr__ is not None and sys.__stderr__.isatty():
                os.write(sys.__stderr__.fileno(), _SHOW_CURSOR)
            os._exit(128 + signum)
        heard.signum = signum
        raise KeyboardInterrupt if signum == signal.SIGINT else Terminated

    before = {}
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                before[signum] = signal.signal(signum, hear)
    try:
        yield heard
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
