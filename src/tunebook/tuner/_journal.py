"""What the run file is told of a problem while it is tuned: each tactic that passed or was rejected, each sample, at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from tunebook.measure import Entry, Finding, RaceResult
from tunebook.records import (
    LookLine,
    Offered,
    OutLine,
    PassedLine,
    ProblemLine,
    RaceLine,
    Rejected,
    RunLine,
    SampleLine,
    TrialLine,
)
from tunebook.store import Recorded

Write = Callable[[RunLine], None]


class Journal:
    """A session's: `write` appends a line to the run file, `refused` is told of each rejection, by problem.

    Races are numbered on from `races`, which the file may hold already. `mhz` tells a device's clock, once a round.
    """

    def __init__(
        self,
        write: Write = lambda line: None,
        refused: Callable[[str, Rejected], None] = lambda key, rejected: None,
        races: int = 0,
        mhz: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._write = write
        self._refused = refused
        self._mhz = mhz
        self._numbers = itertools.count(races + 1)

    def begin(
        self, key: str, offered: dict[str, Offered], refused: Iterable[Rejected], known: Recorded | None
    ) -> ProblemJournal:
        """A problem is begun, on which these tactics race; some are refused unrun. What the file holds is not told again."""
        if known is None or known.offered != offered:
            self._write(ProblemLine(problem=key, offered=offered))
        journal = ProblemJournal(key, self._write, self._refused, self._numbers, self._mhz)
        if known is not None:
            journal.know(known)
        for rejected in refused:
            journal.rejected(rejected)
        return journal


class ProblemJournal:
    """One problem's; it watches the problem's races, and knows how far the present one is.

    `began` counts the rounds of races that were given up: the file numbers the rounds of a problem on from there.
    """

    def __init__(
        self,
        key: str,
        write: Write,
        refused: Callable[[str, Rejected], None],
        numbers: Iterator[int],
        mhz: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.key = key
        self.number = 0
        self.began = 0
        self._rounds = 0
        self._write = write
        self._refused = refused
        self._numbers = numbers
        self._mhz = mhz
        self._places: dict[str, int] = {}
        self._told: set[str] = set()
        self._entries: Sequence[Entry] = ()
        self._alive: set[str] = set()

    def know(self, known: Recorded) -> None:
        """What an earlier process told."""
        self._told.update(known.rejected)
        self.began = known.rounds
        if known.races:
            *_, last = known.races
            self.number, self.began = last.line.race, last.line.first
            self._places = {name: place for place, name in enumerate(last.line.tactics)}
            self._rounds = known.rounds - self.began

    def rejected(self, rejected: Rejected) -> None:
        """A tactic is out, for good; told once."""
        if rejected.tactic not in self._told:
            self._told.add(rejected.tactic)
            self._write(TrialLine(problem=self.key, trial=rejected))
            self._refused(self.key, rejected)

    def passed(self, tactic: str, seconds: float, error: float = 0.0, size: int = 0, workspace: int = 0) -> None:
        """A tactic passed its check, and its first look took so long; the default's is told in the same way."""
        self._write(
            PassedLine(problem=self.key, tactic=tactic, seconds=seconds, error=error, bytes=size, workspace=workspace)
        )

    def looked(self, tactic: str, seconds: float, turn: int) -> None:
        """Another call before the race, as `LookLine` numbers it."""
        self._write(LookLine(problem=self.key, tactic=tactic, seconds=seconds, turn=turn))

    def race(self, tactics: Sequence[str], inner: int, halved: bool) -> None:
        """A race begins from its first round; what was raced before is given up."""
        self.began += self._rounds
        self._rounds = 0
        self._entries = ()
        self.number = next(self._numbers)
        self._places = {name: place for place, name in enumerate(tactics)}
        self._write(
            RaceLine(
                race=self.number, problem=self.key, tactics=tuple(tactics), inner=inner, first=self.began, halved=halved
            )
        )

    def started(self, entries: Sequence[Entry], survivors: Sequence[Entry]) -> None:
        self._entries = entries
        self._alive = {entry.name for entry in survivors}

    def turn(self, entry: Entry) -> None:
        if entry.failed is not None:
            self.rejected(rejection(entry.name, entry.failed))
            return
        number = entry.rounds[-1]
        # Asked for between two samples, so that it takes none of their time.
        mhz = self._mhz() if number >= self._rounds else None
        self._rounds = max(self._rounds, number + 1)
        self._write(
            SampleLine(
                race=self.number,
                round=self.began + number,
                tactic=self._places[entry.name],
                seconds=entry.samples[-1],
                mhz=mhz,
            )
        )

    def out(self, entries: Sequence[Entry]) -> None:
        self._alive -= {entry.name for entry in entries}
        self._write(OutLine(race=self.number, tactics=tuple(self._places[entry.name] for entry in entries)))

    def so_far(self, default: str) -> RaceResult | None:
        """The present race by its whole rounds, or None where there are too few, or one failed in it: it is to begin again."""
        if any(entry.failed is not None for entry in self._entries):
            return None
        return by_now(self._entries, self._alive, default)


def by_now(entries: Sequence[Entry], alive: set[str], default: str) -> RaceResult | None:
    """A race of which these samples are known, and who was not eliminated. Samples of a round that was cut short are left out.

    None where not even two rounds are whole. Its losses are not reckoned.
    """
    throughout = [entry for entry in entries if entry.name in alive or entry.name == default]
    rounds = min((_length(entry) for entry in throughout), default=0)
    if rounds < 2:
        return None
    kept = {entry.name: Entry(entry.candidate, entry.samples[:rounds], entry.rounds[:rounds]) for entry in entries}
    survivors = tuple(kept[entry.name] for entry in entries if entry.name in alive)
    return RaceResult(tuple(kept.values()), survivors, kept[default], rounds, "time", 0.0, (0.0,) * len(survivors))


def _length(entry: Entry) -> int:
    """How many samples have their round: an interruption may come between the two."""
    return min(len(entry.samples), len(entry.rounds))


def rejection(tactic: str, finding: Finding) -> Rejected:
    """A finding as the record that is kept of it."""
    return Rejected(tactic=tactic, reason=finding.reason, detail=finding.detail, ran=finding.ran, harm=finding.harm)
