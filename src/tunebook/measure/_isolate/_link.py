"""The link to a supervisor and its worker: starting the one, sockets to both, what they say and what they wrote last."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence

import msgspec

from tunebook.measure._isolate import _messages as messages
from tunebook.measure._isolate._messages import End, Ended, HostError, Resume, Start
from tunebook.measure._isolate._supervisor import command

#: A worker that was killed is gone with all its children within so many seconds.
END_S = 30.0
#: Time is counted in slices of so many seconds: what this process itself was stopped for is nobody's.
SLICE_S = 0.5
#: So many bytes of what a worker wrote last are kept, to tell of its end.
TAIL_BYTES = 1 << 14


class GoneError(Exception):
    """The supervisor ended."""


class Broken:
    """The worker's end of the connection broke, as it does where it ends; or it sent what is no message."""


class Link:
    """A supervisor, which is started here, and the worker that it has been asked for, if any."""

    def __init__(self, server: str, *, fork: bool = True) -> None:
        """Raises HostError where no supervisor can be started."""
        if sys.platform == "win32" or not hasattr(socket, "send_fds"):
            raise HostError("this system has no way to pass memory between processes")
        ours, theirs = socket.socketpair()
        log, end = os.pipe()
        os.set_blocking(log, False)
        told = {"server": server, "fd": theirs.fileno(), "path": sys.path, "argv": sys.argv, "fork": fork}
        try:
            self._process = subprocess.Popen(
                command(told),
                stdin=subprocess.DEVNULL,
                stdout=end,
                stderr=end,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            os.close(log)
            raise HostError(f"no process can be started ({error})") from error
        finally:
            theirs.close()
            os.close(end)
        _never_blocked_for_long(ours)
        self._control, self._reader, self._log = ours, messages.Reader(ours), log
        self.jobs = 0  #: of the worker that runs now
        self._tail = bytearray()
        self._worker: socket.socket | None = None
        self._worker_reader: messages.Reader | None = None

    @property
    def running(self) -> bool:
        """Whether the supervisor runs."""
        return self._process.poll() is None

    @property
    def has_worker(self) -> bool:
        """Whether there is a worker, as far as is known."""
        return self._worker is not None

    @property
    def tail(self) -> bytes:
        """What was written last by either of them, up to now."""
        self._drain()  # news of an end may overtake what was written before it
        return bytes(self._tail)

    def start_worker(self) -> None:
        """Ask for a worker; it says when it is ready. Raises GoneError."""
        ours, theirs = socket.socketpair()
        try:
            messages.send(self._control, messages.encode(Start()), (theirs.fileno(),))
        except OSError as error:
            ours.close()
            raise GoneError from error
        finally:
            theirs.close()
        _never_blocked_for_long(ours)
        self._worker, self._worker_reader = ours, messages.Reader(ours)

    def give(self, payload: bytes, fds: Sequence[int]) -> None:
        """Give the worker a job; what was written before it is forgotten. Raises GoneError.

        Where the worker alone is gone, that is heard afterwards.
        """
        assert self._worker is not None
        self.jobs += 1
        self._tail.clear()
        self.tell(Resume())
        with contextlib.suppress(OSError):
            messages.send(self._worker, payload, fds)

    def end_worker(self) -> None:
        """Kill the worker with its children, if it did not end before; returns when it is gone. Raises GoneError."""
        self.tell(End())
        if not isinstance(self.wait_for((Ended,), END_S), Ended):
            raise GoneError
        self.forget_worker()

    def forget_worker(self) -> None:
        """It ended."""
        if self._worker is not None:
            self._worker.close()
        self._worker = self._worker_reader = None
        self.jobs = 0

    def exit_code(self) -> int:
        """The exit code of a supervisor that is gone."""
        return self._process.wait()

    def close(self, seconds: float) -> None:
        """End everything: at once, or where that takes longer than so many seconds, by force.

        The supervisor kills its children when the socket closes; without it they die with it.
        """
        self.forget_worker()
        self._control.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._log)

    def tell(self, message: messages.ToSupervisor) -> None:
        """Raises GoneError."""
        try:
            messages.send(self._control, messages.encode(message))
        except OSError as error:
            raise GoneError from error

    def wait_for(self, kinds: tuple[type, ...], seconds: float) -> object:
        """The next message of one of these kinds; None where none came in time. Others are passed over. Raises GoneError."""
        spent = 0.0
        while spent < seconds:
            begun = time.monotonic()
            got = self.hear(SLICE_S)
            if isinstance(got, kinds):
                return got
            spent += min(time.monotonic() - begun, 2 * SLICE_S)
        return None

    def hear(self, seconds: float) -> object:
        """One message of the worker or the supervisor, or that a connection is `Broken`; None where none came in `seconds`.

        What a worker said before it ended is heard first. Raises GoneError.
        """
        for reader, kind in ((self._worker_reader, messages.FromWorker), (self._reader, messages.FromSupervisor)):
            if reader is None:
                continue
            try:
                frame = reader.next()
                if frame is not None:
                    return msgspec.msgpack.decode(frame, type=kind)
            except (EOFError, msgspec.DecodeError):
                if reader is self._reader:
                    raise GoneError from None
                self._worker_reader = None
                return Broken()
        with selectors.DefaultSelector() as selector:
            if self._worker is not None and self._worker_reader is not None:
                selector.register(self._worker, selectors.EVENT_READ)
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._log, selectors.EVENT_READ)
            selector.select(seconds)
        self._drain()
        return None

    def _drain(self) -> None:
        """Take what was written to the log, so that nobody waits for it, and keep the end of it."""
        for _ in range(64):  # whoever writes without end is not read without end
            try:
                part = os.read(self._log, 1 << 16)
            except OSError:
                return
            if not part:
                return
            self._tail += part
            del self._tail[:-TAIL_BYTES]


def _never_blocked_for_long(sock: socket.socket) -> None:
    """Sending fails where the other side takes nothing; `settimeout` would make receiving wait as well."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(END_S), 0))
