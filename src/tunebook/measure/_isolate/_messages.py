"""What the three processes tell each other: msgpack frames with a length before them, and file descriptors beside them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

import msgspec

#: A frame holds descriptions, never tensors: more than this is garbage.
MAX_FRAME = 64 << 20
MAX_FDS = 16
_LENGTH = struct.Struct("!I")


class HostError(Exception):
    """The worker cannot be had; the text says why."""


class Load(msgspec.Struct, tag=True, frozen=True):
    """To the supervisor: import what this payload names; answered by `Loaded`."""

    payload: bytes


class Start(msgspec.Struct, tag=True, frozen=True):
    """To the supervisor, with one end of a socket: start a worker on it; the worker answers `Ready`."""


class End(msgspec.Struct, tag=True, frozen=True):
    """To the supervisor: kill the worker with all its children; answered by `Ended`, as any death of the worker is."""


class Pause(msgspec.Struct, tag=True, frozen=True):
    """To the supervisor: stop the idle worker, so that nothing it left running disturbs a measurement."""


class Resume(msgspec.Struct, tag=True, frozen=True):
    """To the supervisor: let the worker go on."""


class Loaded(msgspec.Struct, tag=True, frozen=True):
    payload: bytes


class Ended(msgspec.Struct, tag=True, frozen=True):
    """From the supervisor: the worker is gone, with all its children; `status` as ``waitpid`` gives it."""

    status: int


class Ready(msgspec.Struct, tag=True, frozen=True):
    """From the worker: it waits for jobs."""


class At(msgspec.Struct, tag=True, frozen=True):
    """From the worker: the stage of its job that begins now."""

    stage: int


class Done(msgspec.Struct, tag=True, frozen=True):
    """From the worker: the job's result."""

    payload: bytes


ToSupervisor = Load | Start | End | Pause | Resume
FromSupervisor = Loaded | Ended
FromWorker = Ready | At | Done


def encode(message: ToSupervisor | FromSupervisor | FromWorker) -> bytes:
    return msgspec.msgpack.encode(message)


def send(sock: socket.socket, frame: bytes, fds: Sequence[int] = ()) -> None:
    """Send a whole frame. Raises OSError where the other side is gone."""
    data = memoryview(_LENGTH.pack(len(frame)) + frame)
    sent = socket.send_fds(sock, [data], fds) if fds else sock.send(data)
    sock.sendall(data[sent:])


def receive(sock: socket.socket) -> tuple[bytes, list[int]] | None:
    """Wait for one frame and the descriptors that came with it; None where the other side is gone."""
    data, fds, _, _ = socket.recv_fds(sock, _LENGTH.size, MAX_FDS)
    head = data + _exactly(sock, _LENGTH.size - len(data)) if data else b""
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    frame = _exactly(sock, length)
    return (frame, list(fds)) if len(frame) == length else None


def _exactly(sock: socket.socket, count: int) -> bytes:
    """`count` bytes, or fewer where the other side is gone."""
    parts: list[bytes] = []
    while count:
        part = sock.recv(min(count, 1 << 20))
        if not part:
            break
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


class Reader:
    """Frames from a side that is not trusted to send whole ones: never waits."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._gone = False

    def next(self) -> bytes | None:
        """The next frame, None where it is not complete yet.

        Raises EOFError where the other side is gone and all that it sent was given, or sent what is no frame.
        """
        if (frame := self._frame()) is not None:
            return frame
        while not self._gone:
            try:
                part = self._sock.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            except OSError:
                part = b""
            self._gone = not part
            self._buffer += part
            if (frame := self._frame()) is not None:
                return frame
        raise EOFError

    def _frame(self) -> bytes | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > MAX_FRAME:
            raise EOFError
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        frame = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return frame
