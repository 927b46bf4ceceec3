"""Bytes in and out: bounded reading that never blocks, and replacing a file so that readers see all of it or none."""

from __future__ import annotations

import os
import secrets
import stat
import time
from pathlib import Path

from tunebook.store._text import cause, one_line
from tunebook.store.misses import Miss

_STALE_S = 3600.0


def read_bounded(path: Path, limit: int) -> bytes | Miss:
    """The bytes of a regular file of at most `limit` bytes, else the miss: absent, empty or unreadable.

    The file is opened without blocking and must be a regular one: a named pipe or a device put where a cache is
    expected would else hold the start up for ever.
    """
    where = one_line(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            return Miss(kind="unreadable", where=where, detail=f"it is {_kind(status.st_mode)}, not a file")
        with os.fdopen(fd, "rb") as file:
            data = b"" if status.st_size > limit else file.read(status.st_size + 1)
            if len(data) > status.st_size:
                # It has grown since, or does not tell its size. Asking for the limit at once would reserve that much.
                data += file.read(limit + 1 - len(data))
            if status.st_size > limit or len(data) > limit:
                size = max(status.st_size, len(data))
                return Miss(
                    kind="unreadable", where=where, detail=f"{size} bytes are more than the {limit} that are read"
                )
    except FileNotFoundError:
        broken = " (a symbolic link whose target is missing)" if os.path.islink(path) else ""
        return Miss(kind="absent", where=where, detail=f"there is no such file{broken}")
    except OSError as error:
        return Miss(kind="unreadable", where=where, detail=cause(error))
    except ValueError as error:  # a path with a null character in it
        return Miss(kind="unreadable", where=where, detail=one_line(error))
    if not data or data.isspace():
        return Miss(kind="empty", where=where, detail="the file is empty")
    return data


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a named pipe" if stat.S_ISFIFO(mode) else "a device or a socket"


def replace_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a reader, and a machine that loses power, finds the old bytes or the new ones.

    The permissions follow the umask. Raises ``OSError``; then nothing has changed and nothing is left lying about.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make a rename last. Not every file system can, and the file is in its place already, so a failure is no error."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError:
        pass


def sweep(path: Path) -> None:
    """Remove what writers of `path` that were killed left behind an hour ago or longer. Best effort, under the lock."""
    try:
        for left in path.parent.glob(f".{_literal(path.name)}.*.tmp"):
            if time.time() - left.lstat().st_mtime > _STALE_S:
                left.unlink(missing_ok=True)
    except OSError:
        pass


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
