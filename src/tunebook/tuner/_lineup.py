"""The line-up of a race: who passed, who was screened out, who was rejected and why, and who was not reached yet."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field

from tunebook.dispatch import Binding
from tunebook.measure import SCREENING, Candidate, Entry, Finding, Passed
from tunebook.records import DEFAULT, Rejected, Tactic
from tunebook.tuner._entrants import SMALL_SPACE, Field
from tunebook.tuner._journal import ProblemJournal, rejection
from tunebook.tuner._replicas import Contender

logger = logging.getLogger("tunebook.tuner")


@dataclass
class Lineup:
    """One problem's tactics on their way into the race.

    `order` gives those that are still to be tried; `seen` counts those that were, the default among them, of `space`.
    `looks` are each one's calls before the race, in seconds, by name: the first look, then what halving added. `former` is
    what a race told of those that it eliminated, where others entered later and it began again. `screened`, `admitted` and
    `former` hold no prepared weights (their `calls` are empty); `contenders`, the default first, do, on the layers `rotation`,
    which are `narrowed` where memory allows fewer than there should be. `workspaces` is what calls take beside, in bytes.
    What happens to a tactic goes through the methods here, which tell `journal`. Of a tuning that is resumed, `fair` had two
    first looks, `turns` are the turns of halving that were measured already, and while it is `cold` the checks were made in
    another process: nothing here was called yet. `proven` are the names of those that a former verdict says are right.
    """

    order: Iterator[Tactic]
    space: int
    journal: ProblemJournal
    incumbent: str = ""
    large: bool = False
    seen: int = 1
    halved: bool = True  #: whether halving, if there was any, went on to its end
    contenders: list[Contender] = dataclass_field(default_factory=list)
    rotation: Sequence[Binding] = ()
    narrowed: bool = False
    workspaces: dict[str, int] = dataclass_field(default_factory=dict)
    admitted: dict[str, Contender] = dataclass_field(default_factory=dict)
    screened: dict[str, Contender] = dataclass_field(default_factory=dict)
    rejected: list[Rejected] = dataclass_field(default_factory=list)
    looks: dict[str, list[float]] = dataclass_field(default_factory=dict)
    former: dict[str, Entry] = dataclass_field(default_factory=dict)
    fair: set[str] = dataclass_field(default_factory=set)
    turns: dict[str, list[float]] = dataclass_field(default_factory=dict)
    cold: bool = False
    proven: frozenset[str] = frozenset()

    @property
    def unreached(self) -> int:
        """How many tactics should have been tried and were not: of a large space, those that make the least sample."""
        wanted = min(self.space, SMALL_SPACE + 1) if self.large else self.space
        return max(0, wanted - self.seen)

    def look(self, name: str) -> float:
        """The least of a tactic's calls so far, in seconds."""
        return min(self.looks[name])

    @property
    def best(self) -> float:
        """The least look of all that may still race."""
        return min(self.look(name) for name in (DEFAULT.name, *self.admitted))

    def look_at_default(self, seconds: float) -> None:
        """The default's first look; it needs no check."""
        self.looks[DEFAULT.name] = [seconds]
        self.journal.passed(DEFAULT.name, seconds)

    def admit(self, candidate: Contender, passed: Passed) -> None:
        """It passed its check, the last call of which is its first look."""
        name = candidate.name
        self.admitted[name] = at_rest(candidate)
        self.looks[name] = [passed.seconds]
        self.journal.passed(name, passed.seconds, passed.error, candidate.bytes, self.workspaces.get(name, 0))

    def look_again(self, name: str, seconds: float) -> None:
        """A fair look, which replaces that of the check where it is less."""
        self.looks[name] = [min(seconds, self.look(name))]
        self.fair.add(name)
        self.journal.looked(name, seconds, SCREENING)

    def turn(self, name: str, seconds: float) -> None:
        """One more call, in a turn of halving."""
        self.looks[name].append(seconds)
        self.journal.looked(name, seconds, SCREENING + 1 - len(self.looks[name]))

    def known_turn(self, name: str) -> float | None:
        """The next turn of halving that an earlier process measured, or None."""
        turns = self.turns.get(name)
        if not turns:
            return None
        self.looks[name].append(turns.pop(0))
        return self.looks[name][-1]

    def reject(self, tactic: Tactic, finding: Finding) -> None:
        rejected = rejection(tactic.name, finding)
        self.rejected.append(rejected)
        self.journal.rejected(rejected)
        logger.debug("%s rejected (%s): %s", tactic.name, finding.reason, finding.detail)
        self.admitted.pop(tactic.name, None)

    def screen(self, name: str) -> None:
        """It does not race."""
        self.screened[name] = self.admitted.pop(name)

    def beside(self) -> list[Entry]:
        """Those that do not race, with what is known of them: their looks, as rounds before the first.

        Of a large space's sample the best with and without prepared weights of each runner: the frontier needs no more.
        """
        found = {name: self._entry(name) for name in self.screened} | self.former
        if not self.large:
            return list(found.values())
        best: dict[tuple[str, bool], Entry] = {}
        for entry in sorted(found.values(), key=lambda entry: min(entry.samples)):
            candidate = entry.candidate
            assert isinstance(candidate, Contender)
            best.setdefault((candidate.tactic.runner, bool(candidate.layout)), entry)
        return list(best.values())

    def _entry(self, name: str) -> Entry:
        samples = self.looks[name]
        return Entry(self.screened[name], list(samples), [SCREENING - i for i in range(len(samples))])


def lineup_of(field: Field, rng: random.Random, journal: ProblemJournal) -> Lineup:
    """Nobody tried yet; the default, which needs no check, counts as seen, and so do those that are recalled."""
    incumbent = field.first[1].name if len(field.first) > 1 else ""
    return Lineup(
        field.order(rng),
        field.tactics,
        journal,
        incumbent=incumbent,
        large=field.large,
        seen=1 + len(field.recalled),
        proven=field.proven,
        rejected=[*field.rejected, *field.recalled, *field.carried],
    )


def at_rest(candidate: Candidate) -> Contender:
    """The same without its calls, so that it holds no prepared weights."""
    assert isinstance(candidate, Contender)
    return replace(candidate, calls=(), flush=None)
