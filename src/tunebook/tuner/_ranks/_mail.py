"""One run file for all ranks: the leader writes it, the others send it their lines after each problem."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from tunebook.records import Footer, Header, OutLine, PlanLine, RaceLine, RunLine, SampleLine, Verdict, VerdictLine
from tunebook.store import RunWriter

if TYPE_CHECKING:
    from tunebook.tuner._ranks._group import Group

#: The races of the rank at place p are numbered from p times this: each number occurs once in the file.
RACES_PER_RANK = 1_000_000

_Line = TypeVar("_Line", bound=RunLine)


class GatheringWriter(RunWriter):
    """The leader's: its own lines, and after each verdict those that have come from the others."""

    _group: Group
    received: dict[str, Verdict]  #: the others' verdicts by problem

    @classmethod
    def of(cls, writer: RunWriter, group: Group) -> GatheringWriter:
        """Takes the place of `writer`, which is not used any more."""
        made = cls.__new__(cls)
        made.__dict__.update(writer.__dict__, _group=group, received={})
        return made

    def append(self, line: RunLine) -> None:
        super().append(_marked(line, self._group.number))
        if isinstance(line, VerdictLine):
            self.drain()

    def drain(self, *, last: bool = False) -> None:
        """Write down what has come; the `last` time also where a rank was lost."""
        if self._group.failed and not last:
            return
        for _, lines in self._group.mail(list[RunLine], last=last):
            for line in lines:
                super().append(line)
                if isinstance(line, VerdictLine):
                    self.received[line.verdict.problem] = line.verdict


class MailingWriter(RunWriter):
    """Another rank's: `path` is the file that the leader writes. The lines of a problem go there with its verdict."""

    def __init__(self, group: Group, path: Path | None) -> None:
        super().__init__(path, None)
        self._group = group
        self._lines: list[RunLine] = []

    def append(self, line: RunLine) -> None:
        if isinstance(line, Header | PlanLine | Footer):  # the leader's are the file's
            return
        self._lines.append(_numbered(_marked(line, self._group.number), self._group.me))
        if isinstance(line, VerdictLine):
            self.flush()

    def flush(self) -> None:
        """Send what was not sent yet."""
        lines, self._lines = self._lines, []
        if lines and not self._group.failed:
            self._group.send(lines)

    def finish(self, footer: Footer) -> None:
        """Nothing: the leader writes the last line, when all have sent theirs."""

    def close(self) -> None:
        """Nothing: there is no file here."""


def _marked(line: _Line, number: int) -> _Line:
    """The line with the rank that it comes from, where its kind has a place for that."""
    return msgspec.structs.replace(line, rank=number) if "rank" in line.__struct_fields__ else line


def _numbered(line: _Line, place: int) -> _Line:
    if isinstance(line, RaceLine | SampleLine | OutLine):
        return msgspec.structs.replace(line, race=line.race + place * RACES_PER_RANK)
    return line
