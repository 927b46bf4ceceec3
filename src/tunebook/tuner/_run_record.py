"""The run file of a session: begun when first needed, gone on with where a run is resumed, ended once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from tunebook._version import __version__
from tunebook.records import Environment, Footer, Header, Rejected, ResumedLine, Settings
from tunebook.store import Location, Policy, RunWriter, new_session_id
from tunebook.tuner._commit import working_commit
from tunebook.tuner._journal import Journal
from tunebook.tuner._resumed import Resumed


class RunRecord:
    """Where a session's lines go; `refused` is told of each rejection as it is written, `mhz` tells the device's clock."""

    def __init__(
        self,
        location: Location,
        environment: Environment,
        policy: Policy,
        settings: Settings,
        refused: Callable[[str, Rejected], None],
        resumed: Resumed | None,
        now: Callable[[], datetime],
        *,
        model: str,
        fingerprint: str,
        note: str,
        mhz: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.ended = False
        self._location = location
        self._environment = environment
        self._policy = policy
        self._settings = settings
        self._refused = refused
        self._races = resumed.races if resumed is not None else 0
        self._now = now
        self._mhz = mhz
        self._model, self._fingerprint, self._note = model, fingerprint, note
        self._id = new_session_id()
        self._journal: Journal | None = None
        self._writer: RunWriter | None = None
        if resumed is not None:
            self._writer = resumed.writer
            self._writer.resume(
                ResumedLine(resumed=now().isoformat(timespec="seconds"), version=__version__, command=tuple(sys.argv))
            )

    @property
    def begun(self) -> RunWriter | None:
        """What lines go to, once there are any."""
        return self._writer

    @property
    def problem(self) -> str | None:
        """Why the file is missing or not complete, or None."""
        return self._writer.problem if self._writer is not None else None

    @property
    def path(self) -> str | None:
        """The file, once something was tuned."""
        return str(self._writer.path) if self._writer is not None and self._writer.path is not None else None

    @property
    def journal(self) -> Journal:
        """What is told of all that is measured."""
        if self._journal is None:
            self._journal = Journal(self.writer().append, self._refused, self._races, self._mhz)
        return self._journal

    def keep_in(self, writer: RunWriter) -> None:
        """Send lines there from now on."""
        self._writer = writer

    def writer(self) -> RunWriter:
        """The file, created when first needed."""
        if self._writer is None:
            now, (commit, dirty) = self._now(), working_commit(Path())
            header = Header(
                session=self._id,
                started=now.isoformat(timespec="seconds"),
                policy=self._policy.value,
                environment=self._environment,
                version=__version__,
                model=self._model,
                command=tuple(sys.argv),
                note=self._note,
                fingerprint=self._fingerprint,
                settings=self._settings,
                commit=commit,
                dirty=dirty,
            )
            self._writer = RunWriter.create(self._location.runs, self._location.cache.stem, header, now)
        return self._writer

    def finish(self, seconds: float, problems: int, left_out: int, published: str) -> None:
        """Write the last line, if there are any."""
        if self._writer is None:
            return
        self.ended = True
        finished = self._now().isoformat(timespec="seconds")
        footer = Footer(finished=finished, seconds=seconds, problems=problems, left_out=left_out, published=published)
        self._writer.finish(footer)
