"""The process between the tuning and its workers: it has imported everything, starts workers, and leaves nothing behind.

It never runs a job. It ends when the tuning's process ends, however that ends, and takes the worker, the worker's children
and theirs with it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from tunebook.measure._isolate import _messages as messages
from tunebook.measure._isolate import _system as system
from tunebook.measure._isolate._messages import At, Done, End, Ended, Load, Loaded, Pause, Ready, Resume, Start, encode

#: So often, in seconds, the supervisor looks whether the tuning's process is still its parent.
LOOK_S = 1.0

#: What a new interpreter runs: `sys.path` first, for tunebook itself may lie on an entry that only the parent has.
BOOT = (
    "import json, sys; told = json.loads(sys.argv[1]); sys.path[:] = told['path']; "
    "from tunebook.measure._isolate._supervisor import main; main(told)"
)


class Server(Protocol):
    """What jobs mean. One is made in the supervisor; workers have a copy of it."""

    def load(self, payload: bytes) -> bytes:
        """Import what is named; called before workers are started, and again in a worker that is no fork."""

    def run(self, payload: bytes, fds: Sequence[int], at: Callable[[int], None]) -> bytes:
        """Do a job; `at(number)` tells the stage that begins. What it raises ends the worker."""


def main(told: dict[str, Any]) -> None:
    """The life of a supervisor, or with ``"worker"`` of a worker that is no fork of one."""
    sys.argv[:] = told["argv"]
    with contextlib.suppress(ImportError):
        import numpy  # noqa: F401 - the threads that its BLAS starts survive a fork: it knows of forks
    threads = system.threads()
    module, _, name = told["server"].partition(":")
    server: Server = getattr(importlib.import_module(module), name)()
    sock = socket.socket(fileno=told["fd"])
    if told.get("worker"):
        for payload in told["loads"]:
            server.load(payload.encode())
        work(sock, server, os.getppid())
    Supervisor(sock, server, told, threads).run()


class Supervisor:
    def __init__(self, sock: socket.socket, server: Server, told: dict[str, Any], threads: int | None) -> None:
        self._sock = sock
        self._server = server
        self._told = told
        self._parent = os.getppid()
        self._loads: list[bytes] = []
        self._worker: int | None = None
        self._execed: subprocess.Popen[bytes] | None = None
        self._spared: set[int] = set()
        self._bell, bell = os.pipe()
        os.set_blocking(bell, False)
        os.set_blocking(self._bell, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(bell, warn_on_full_buffer=False)
        system.adopt_orphans()
        self._threads = threads  #: of an interpreter that has imported nothing but numpy

    def run(self) -> None:
        """Serve until the tuning's process closes the socket or is gone. Does not return."""
        code = 0
        try:
            while os.getppid() == self._parent:
                ready, _, _ = select.select([self._sock.fileno(), self._bell], [], [], LOOK_S)
                if self._bell in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._bell, 4096)
                self._reap(os.WNOHANG)
                if self._sock.fileno() in ready:
                    got = messages.receive(self._sock)
                    if got is None:
                        break
                    self._handle(msgspec.msgpack.decode(got[0], type=messages.ToSupervisor), got[1])
        except BaseException:  # noqa: BLE001 - the last thing that it does, beside leaving nothing behind
            traceback.print_exc()
            code = 1
        finally:
            self._spared.clear()
            self._kill()
            system.sweep(None, ())
            sys.stderr.flush()
            os._exit(code)

    def _handle(self, message: messages.ToSupervisor, fds: Sequence[int]) -> None:
        match message:
            case Load(payload):
                self._loads.append(payload)
                before = system.children()
                answer = self._server.load(payload)
                self._spared |= system.children() - before
                messages.send(self._sock, encode(Loaded(answer)))
            case Start():
                self._start(fds[0])
            case End():
                self._kill()
            case Pause():
                self._signal(signal.SIGSTOP)
            case Resume():
                self._signal(signal.SIGCONT)

    def _start(self, fd: int) -> None:
        """A fork where that is safe: PyTorch's threads do not survive one, so none may have been started here."""
        threads = system.threads()
        if not self._told["fork"] or self._threads is None or threads is None or threads > self._threads:
            told = {**self._told, "worker": True, "fd": fd, "loads": [payload.decode() for payload in self._loads]}
            self._execed = subprocess.Popen(command(told), pass_fds=(fd,), start_new_session=True)
            self._worker = self._execed.pid
            os.close(fd)
            return
        gc.collect()
        gc.freeze()  # what is here is shared with the worker as long as nobody writes to it
        parent = os.getpid()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads; BLAS's are safe
            self._worker = os.fork()
        if self._worker:
            os.close(fd)
            return
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._sock.close()
            work(socket.socket(fileno=fd), self._server, parent)
        finally:
            os._exit(1)

    def _signal(self, number: int) -> None:
        if self._worker is not None:
            with contextlib.suppress(OSError):
                os.killpg(self._worker, number)

    def _kill(self) -> None:
        if self._worker is not None:
            self._signal(signal.SIGKILL)
            with contextlib.suppress(OSError):  # it may not have had its own group yet
                os.kill(self._worker, signal.SIGKILL)
            self._reap(0)

    def _reap(self, options: int) -> None:
        """Tell of a worker that ended, once its children are gone too."""
        if self._worker is None:
            return
        done, status = os.waitpid(self._worker, options)
        if done:
            group, self._worker = self._worker, None
            if self._execed is not None:
                self._execed.returncode = status  # it is reaped here, which Popen need not try again
                self._execed = None
            system.sweep(group, self._spared)
            with contextlib.suppress(OSError):
                messages.send(self._sock, encode(Ended(status)))


def command(told: dict[str, Any]) -> list[str]:
    """What starts an interpreter with `main(told)`."""
    from multiprocessing.spawn import get_executable  # knows what to run where Python is embedded

    executable = get_executable() or sys.executable
    return [os.fsdecode(executable), "-c", BOOT, json.dumps(told)]


def work(sock: socket.socket, server: Server, parent: int) -> None:
    """The life of a worker: one job after another, until the other side closes the socket. Does not return."""
    system.die_with(parent)
    system.first_to_go()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    messages.send(sock, encode(Ready()))
    while (got := messages.receive(sock)) is not None:
        payload, fds = got
        result = server.run(payload, fds, lambda stage: messages.send(sock, encode(At(stage))))
        messages.send(sock, encode(Done(result)))
    os._exit(0)
