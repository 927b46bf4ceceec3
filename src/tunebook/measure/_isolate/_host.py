"""The tuning's side of a worker process: jobs with limits of time, what became of each, and an end that leaves nothing."""

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
from dataclasses import dataclass

import msgspec

from tunebook.measure._check import Finding
from tunebook.measure._isolate import _messages as messages
from tunebook.measure._isolate._ends import ended_by_itself, last_words
from tunebook.measure._isolate._messages import (
    At,
    Done,
    End,
    Ended,
    HostError,
    Load,
    Loaded,
    Pause,
    Ready,
    Resume,
    Start,
)
from tunebook.measure._isolate._supervisor import command

#: Starting an interpreter, and importing what is asked for, may take so many seconds.
START_S = 120.0
#: A worker that was killed is gone with all its children within so many seconds.
END_S = 30.0
#: A worker whose connection broke ends by itself within so many seconds, or is ended.
BROKEN_S = 2.0
#: Time is counted in slices of so many seconds: what this process itself was stopped for is nobody's.
SLICE_S = 0.5
#: So many bytes of what a worker wrote last are kept, to tell of its end.
TAIL_BYTES = 1 << 14


@dataclass(frozen=True)
class Stage:
    """A part of a job: what it is in words ("M=16"), and the seconds that it may take."""

    words: str
    seconds: float


class _GoneError(Exception):
    """The supervisor ended."""


class Host:
    """Runs jobs in a worker process, which is started when one has to be `ready`.

    `server` names what does the jobs there, as ``module:class``; see `Server`. Nothing of it is imported here.
    Not for several threads at once.
    """

    def __init__(self, server: str, *, start_s: float = START_S) -> None:
        self._server = server
        self._start_s = start_s
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._reader: messages.Reader | None = None
        self._log = -1
        self._tail = bytearray()
        self._worker: socket.socket | None = None
        self._worker_reader: messages.Reader | None = None
        self._loads: list[bytes] = []
        self._begun: bytes | None = None  #: what the supervisor imports, and hears nothing meanwhile
        self.started = 0  #: workers so far
        self.jobs = 0  #: of the worker that runs now

    def begin(self, payload: bytes) -> None:
        """Have the supervisor begin to import what `payload` names; `load` with the same payload waits for it.

        Raises HostError where no supervisor can be started.
        """
        self._supervise()
        self._ask(payload)

    def load(self, payload: bytes) -> bytes:
        """Have the supervisor import what `payload` names; workers that start from now on have it.

        Raises HostError where it ends, or does not answer in time.
        """
        if self._begun is not None and self._begun != payload:
            self._answer(self._begun)
        self._supervise()
        if self._begun is None:
            self._ask(payload)
        return self._answer(payload)

    def ready(self) -> int:
        """Have a worker that waits for a job; how many it has done. Raises HostError where none can be started."""
        if self._worker is not None and self._died_idle():
            self._forget_worker()
        if self._worker is None:
            self._start()
        return self.jobs

    @property
    def alive(self) -> bool:
        """Whether there is a worker, as far as is known."""
        return self._worker is not None

    def run(self, payload: bytes, fds: Sequence[int], stages: Sequence[Stage]) -> bytes | Finding:
        """Have the worker that is `ready` do a job of these stages.

        Its result, or why it had to be ended: then the next one that is `ready` is another.
        """
        assert self._worker is not None
        self._tail.clear()
        self.jobs += 1
        try:
            self._tell(Resume())
            with contextlib.suppress(OSError):  # it is gone: that is told below
                messages.send(self._worker, payload, fds)
            return self._watch(stages)
        except _GoneError:
            self._abandon()
            return Finding("crash", "the supervising process ended with it", harm=True)
        except BaseException:
            self._abandon()
            raise

    def _died_idle(self) -> bool:
        """Whether the worker, or its supervisor, ended since its last job."""
        try:
            got = self._next(0.0)
            got = self._next(0.0) if got is None else got  # the first call may have read what the second one finds
            if got is not None and not isinstance(got, Ended):
                self._end()
            return got is not None
        except _GoneError:
            self._abandon()
            return True

    def replace(self) -> None:
        """End the worker; the next job has a new one."""
        if self._worker is not None:
            with contextlib.suppress(_GoneError):
                self._end()
            self._forget_worker()

    def close(self) -> None:
        """End the worker and its supervisor; returns when they and all that they started are gone."""
        self._abandon()
        self._loads.clear()

    def _watch(self, stages: Sequence[Stage]) -> bytes | Finding:
        stage, spent = 0, 0.0
        while True:
            left = stages[stage].seconds - spent
            if left <= 0:
                self._end()
                self._forget_worker()
                words = f"{stages[stage].words}: not done within {stages[stage].seconds:.0f} s"
                return Finding("timeout", words, harm=True)
            begun = time.monotonic()
            got = self._next(min(left, SLICE_S))
            spent += min(time.monotonic() - begun, 2 * SLICE_S)
            match got:
                case None:
                    continue
                case At(number) if 0 <= number < len(stages):
                    stage, spent = number, 0.0
                case Done(payload):
                    self._tell(Pause())
                    return payload
                case Ended(status):
                    self._forget_worker()
                    return ended_by_itself(stages[stage].words, status, bytes(self._tail))
                case _:  # its connection broke, as it does where it ends; or it answers nonsense
                    ended = self._await((Ended,), BROKEN_S)
                    if isinstance(ended, Ended):
                        self._forget_worker()
                        return ended_by_itself(stages[stage].words, ended.status, bytes(self._tail))
                    self._end()
                    self._forget_worker()
                    words = f"{stages[stage].words}: it broke the connection to the tuning"
                    return Finding("crash", words, harm=True)

    def _supervise(self) -> None:
        """Start the supervisor where none runs, with all that the former one had loaded."""
        if self._process is not None and self._process.poll() is None:
            return
        self._abandon()
        if sys.platform == "win32" or not hasattr(socket, "send_fds"):
            raise HostError("this system has no way to pass memory between processes")
        ours, theirs = socket.socketpair()
        log, end = os.pipe()
        os.set_blocking(log, False)
        told = {"server": self._server, "fd": theirs.fileno(), "path": sys.path, "argv": sys.argv}
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
        before, self._loads = self._loads, []
        for payload in before:
            self._ask(payload)
            self._answer(payload)

    def _ask(self, payload: bytes) -> None:
        self._begun = payload
        with contextlib.suppress(_GoneError):  # that is found where the answer is waited for
            self._tell(Load(payload))

    def _answer(self, payload: bytes) -> bytes:
        try:
            answer = self._await((Loaded,), self._start_s)
        except _GoneError:
            code = self._process.wait() if self._process is not None else 0
            self._drain()
            tail = last_words(bytes(self._tail))
            self._abandon()
            raise HostError(f"the process that imports the tactics ended with code {code}{tail}") from None
        if not isinstance(answer, Loaded):
            self._abandon()
            raise HostError(f"importing the tactics took longer than {self._start_s:.0f} s")
        self._begun = None
        self._loads.append(payload)
        return answer.payload

    def _start(self) -> None:
        self._supervise()
        ours, theirs = socket.socketpair()
        assert self._control is not None
        try:
            messages.send(self._control, messages.encode(Start()), (theirs.fileno(),))
        except OSError as error:
            ours.close()
            self._abandon()
            raise HostError("the supervising process is gone") from error
        finally:
            theirs.close()
        _never_blocked_for_long(ours)
        self._worker, self._worker_reader, self.jobs = ours, messages.Reader(ours), 0
        self.started += 1
        try:
            answer = self._await((Ready, Ended), self._start_s)
        except _GoneError:
            answer = None
        if not isinstance(answer, Ready):
            self._abandon()
            raise HostError("the worker process did not start")

    def _end(self) -> int:
        """Kill the worker with its children; the status it ended with, which is another where it ended before."""
        self._tell(End())
        ended = self._await((Ended,), END_S)
        if not isinstance(ended, Ended):
            raise _GoneError
        return ended.status

    def _forget_worker(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._worker = self._worker_reader = None
        self.jobs = 0

    def _abandon(self) -> None:
        """End everything at once. The supervisor kills its children when the socket closes; without it they die with it."""
        self._forget_worker()
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(0.0 if self._begun is not None else END_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(OSError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        if self._log >= 0:
            os.close(self._log)
        self._process = self._control = self._reader = None
        self._log, self._begun = -1, None

    def _tell(self, message: messages.ToSupervisor) -> None:
        assert self._control is not None
        try:
            messages.send(self._control, messages.encode(message))
        except OSError as error:
            raise _GoneError from error

    def _await(self, kinds: tuple[type, ...], seconds: float) -> object:
        """The next message of one of these kinds; None where none came in time. Others are passed over."""
        spent = 0.0
        while spent < seconds:
            begun = time.monotonic()
            got = self._next(SLICE_S)
            if isinstance(got, kinds):
                return got
            spent += min(time.monotonic() - begun, 2 * SLICE_S)
        return None

    def _next(self, seconds: float) -> object:
        """One message of the worker or the supervisor; None where none came in `seconds`, False where the worker's end broke.

        What a worker said before it ended is heard first.
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
                    raise _GoneError from None
                self._worker_reader = None
                return False
        with selectors.DefaultSelector() as selector:
            if self._worker is not None and self._worker_reader is not None:
                selector.register(self._worker, selectors.EVENT_READ)
            if self._control is not None:
                selector.register(self._control, selectors.EVENT_READ)
            if self._log >= 0:
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
