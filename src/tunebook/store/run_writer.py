"""Writing a run file: appended and flushed as the tuning goes, and never in the tuning's way."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType

import msgspec

from tunebook.records import Footer, Header, Plan, PlanLine, Rejected, RunLine, Timed, TrialLine, Verdict, VerdictLine
from tunebook.store._text import cause, one_line, remedy

logger = logging.getLogger("tunebook.store")

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
            runs.mkdir(parents=True, exist_ok=True)
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
        writer = cls(path, fd)
        writer._append(header)
        if writer.problem is not None:
            # Without its header it is no run file.
            with suppress(OSError):
                path.unlink()
            writer.path = None
        return writer

    def trial(self, problem_key: str, trial: Timed | Rejected) -> None:
        """One tactic on one problem, with every sample or the reason of the rejection."""
        self._append(TrialLine(problem=problem_key, trial=trial))

    def verdict(self, verdict: Verdict) -> None:
        """What was decided about a problem; to be written before the next one is begun."""
        self._append(VerdictLine(verdict=verdict))

    def plan(self, plan: Plan) -> None:
        """The plan, and again when its verification has spoken: the last one counts."""
        self._append(PlanLine(plan=plan))

    def finish(self, footer: Footer) -> None:
        """The last line, brought to the disk, and the file is closed."""
        self._append(footer)
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

    def _append(self, line: RunLine) -> None:
        if self._fd is None:
            if self.problem is None:
                self._give_up(f"a line came after the run file {self._shown} was closed, and was not kept")
            return
        text = encode_line(line)
        try:
            # One call as a rule. A short write is a disk that filled up, and the next one says so, or a signal.
            while text:
                text = text[os.write(self._fd, text) :]
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
