"""Bytes in and out: bounded reading that never blocks, and replacing a file so that readers see all of it or none."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Identity:
    """Which file stands at a path: replacing it changes this, on whatever host it is done."""

    device: int
    inode: int
    size: int
    written: int  #: when it was last changed, in nanoseconds of its file system's clock

    @classmethod
    def of(cls, path: Path) -> Identity | None:
        """None where there is no such file, or none that can be read."""
        try:
            # A network file system may answer stat out of what it remembers; when a file is opened it asks the server.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                status = os.fstat(fd)
            finally:
                os.close(fd)
        except (OSError, ValueError):
            return None
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def replace_atomically(path: Path, data: bytes, *, after: int = 0, check: Callable[[], None] | None = None) -> int:
    """Put `data` at `path` so that a reader, and a machine that loses power, finds the old bytes or the new ones.

    The permissions follow the umask. The file is dated later than `after`, in nanoseconds, also where the clock was set
    back meanwhile; returns its date. `check` is called right before the old file is replaced. Raises ``OSError``, or what
    `check` raises; then nothing has changed and nothing is left lying about.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            written = os.fstat(fd).st_mtime_ns
            if written <= after:
                with suppress(OSError, OverflowError):  # some file systems end in 2038; the date only breaks ties
                    os.utime(temporary, ns=(after + 1, after + 1))
                written = os.fstat(fd).st_mtime_ns
            os.fsync(fd)
        if check is not None:
            check()
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)
    return written


def own_directory(directory: Path) -> None:
    """Make a directory in which files of ours are kept, where it is not there.

    Raises ``OSError``, also where it is a symbolic link: whoever may write beside the cache must not make us write elsewhere.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if directory.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link, and nothing is written through one")


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


def sweep(directory: Path, name: str = "") -> None:
    """Remove what killed writers of the file `name` in `directory`, or of any file there, left behind. Best effort.

    A temporary file that is dated over an hour away is such a one; dated ahead, where the clock was set back since.
    """
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if not entry.name.startswith(f".{name}") or not entry.name.endswith(".tmp"):
                    continue
                if abs(time.time() - entry.stat(follow_symlinks=False).st_mtime) > _STALE_S:
                    os.unlink(entry.path)
    except OSError:
        pass
