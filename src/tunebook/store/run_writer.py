"""Writing a run file: appended and flushed as the tuning goes, and never in the tuning's way."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import logging
import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from tunebook.errors import StoreError
from tunebook.records import (
    Footer,
    Header,
    Plan,
    PlanLine,
    Rejected,
    ResumedLine,
    RunLine,
    Timed,
    TrialLine,
    Verdict,
    VerdictLine,
)
from tunebook.store._text import cause, one_line, remedy
from tunebook.store.files import own_directory

logger = logging.getLogger("tunebook.store")

_BLOCK: Final = 1 << 16

_encoder = msgspec.json.Encoder(order="deterministic")


class RunWriter:
    """The run file of one session, open for appending.

    Every line is one write call, so that a killed process loses at most the line in progress. What cannot be kept does
    not stop a tuning: the first failure is remembered in `problem` and logged once, and nothing more is written. `path`
    is None where no file could be created.
    """

    def __init__(self, path: Path | None, fd: int | None, problem: str | None = None) -> None:
        self.path = path
        self.problem: str | None = None
        self._fd = fd
        self._amid = False
        if problem is not None:
            self._give_up(problem)

    @classmethod
    def create(cls, runs: Path, stem: str, header: Header, now: datetime) -> RunWriter:
        """Create ``runs/<stem>.<YYYYmmdd_HHMMSS>[-n].jsonl`` exclusively, with its header. Never raises ``OSError``.

        `now` is written as it is, so give local time. Where the name is taken, by a tuning in the same second or
        because the clock was put back, the next free `-n` is used.
        """
        base = f"{stem}.{now:%Y%m%d_%H%M%S}"
        path = runs / f"{base}.jsonl"
        try:
            own_directory(runs)
            for n in itertools.count(1):
                try:
                    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666)
                    break
                except FileExistsError:
                    path = runs / f"{base}-{n}.jsonl"
        except OSError as error:
            return cls(
                None, None, f"no run file could be created in {one_line(runs)}: {cause(error)} ({remedy(error)})"
            )
        _alone(fd)
        writer = cls(path, fd)
        writer.append(header)
        if writer.problem is not None:
            # Without its header it is no run file.
            with suppress(OSError):
                path.unlink()
            writer.path = None
        return writer

    @classmethod
    def reopen(cls, path: Path) -> RunWriter:
        """The run file of a tuning that goes on; nothing is written yet, and no other process writes it.

        Raises StoreError where it cannot be written, and where the process that writes it is alive.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError as error:
            raise StoreError(f"{one_line(path)}: the run cannot go on in this file: {cause(error)}") from error
        if not _alone(fd):
            os.close(fd)
            raise StoreError(f"{one_line(path)}: another process is writing this run; wait for it, or end it first")
        return cls(path, fd)

    def resume(self, line: ResumedLine) -> None:
        """Cut off a torn last line, and say that the tuning goes on."""
        if self._fd is not None:
            try:
                _cut(self._fd)
            except OSError as error:
                self._failed(error)
                return
        self.append(line)

    def trial(self, problem_key: str, trial: Timed | Rejected) -> None:
        """The reason of a tactic's rejection, or all its samples at once."""
        self.append(TrialLine(problem=problem_key, trial=trial))

    def verdict(self, verdict: Verdict, *, open: bool = False) -> None:
        """What was decided about a problem, to be written before the next one is begun; `open`: its race may go on."""
        self.append(VerdictLine(verdict=verdict, open=open))

    def plan(self, plan: Plan) -> None:
        """The plan, and again when its verification has spoken: the last one counts."""
        self.append(PlanLine(plan=plan))

    def finish(self, footer: Footer) -> None:
        """The last line, brought to the disk, and the file is closed."""
        self.append(footer)
        if self._fd is not None:
            try:
                os.fsync(self._fd)
            except OSError as error:
                self._failed(error)
        self.close()

    def close(self) -> None:
        """Close the file. Without a footer before, a reader sees that the session did not end by itself."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            try:
                os.close(fd)
            except OSError as error:  # some network file systems tell of a failed write only here
                self._failed(error)

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def append(self, line: RunLine) -> None:
        """Write one line, whole, before anything else is done."""
        if self._fd is None:
            if self.problem is None:
                self._give_up(f"a line came after the run file {self._shown} was closed, and was not kept")
            return
        text = encode_line(line)
        if self._amid:  # an exception came between the two parts of a line: what follows must not be lost with it
            text = b"\n" + text
        self._amid = True
        try:
            # One call as a rule. A short write is a disk that filled up, and the next one says so, or a signal.
            while text:
                text = text[os.write(self._fd, text) :]
            self._amid = False
            deleted = os.fstat(self._fd).st_nlink == 0
        except OSError as error:
            self._failed(error)
            return
        if deleted:
            # Writing to a deleted file succeeds, and keeps nothing.
            self._failed(FileNotFoundError(errno.ENOENT, "it was deleted while it was written"))

    def _failed(self, error: OSError) -> None:
        self._give_up(
            f"the run file {self._shown} is not complete: {cause(error)} ({remedy(error)}); the tuning itself goes on"
        )
        self.close()

    def _give_up(self, problem: str) -> None:
        if self.problem is None:
            self.problem = problem
            logger.warning("%s", problem)

    @property
    def _shown(self) -> str:
        return one_line(self.path)


def _alone(fd: int) -> bool:
    """Whether no other process writes this file; none can from now on, until this one closes it or ends, however it ends.

    Where the file system has no locks, nobody can tell.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _cut(fd: int) -> None:
    """End the file with its last whole line; one that lacks nothing but its line break gets that."""
    start = end = os.lseek(fd, 0, os.SEEK_END)
    blocks: list[bytes] = []
    while start > 0 and not (blocks and b"\n" in blocks[-1]):
        size = min(_BLOCK, start)
        start -= size
        blocks.append(os.pread(fd, size, start))
    last = b"".join(reversed(blocks)).rpartition(b"\n")[2]
    if not last:
        return
    try:
        msgspec.json.decode(last)
    except (msgspec.DecodeError, RecursionError):
        os.ftruncate(fd, end - len(last))
    else:
        os.write(fd, b"\n")


def encode_line(line: RunLine) -> bytes:
    """One line of a run file, its line break included."""
    if isinstance(line, Header):
        # A header says its schema also while that is the first one, which the record would leave out.
        fields = {"type": "header", "schema": line.schema, **msgspec.to_builtins(line)}
        return _bytes(fields) + b"\n"
    return _bytes(line) + b"\n"


def _bytes(value: object) -> bytes:
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        # A command line or a path with bytes that are no text: question marks for them, rather than no line at all.
        return json.dumps(msgspec.to_builtins(value), ensure_ascii=False).encode("utf-8", "replace")
