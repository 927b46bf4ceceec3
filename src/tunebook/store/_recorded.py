"""What a run file tells, line by line: from this trials are shown, and a tuning is resumed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import Any

from tunebook.records import (
    DEFAULT,
    Footer,
    Header,
    LookLine,
    Offered,
    OutLine,
    PassedLine,
    Plan,
    PlanLine,
    ProblemLine,
    RaceLine,
    Rejected,
    ResumedLine,
    SampleLine,
    Tactic,
    Timed,
    TrialLine,
    Verdict,
    VerdictLine,
)

#: The round of a tactic's first look.
_FIRST_LOOK = -1


@dataclass(slots=True)
class RecordedRace:
    """A race as the file tells it. By tactic: seconds and rounds, numbered as in the file; `out` were eliminated.

    `newcomers` passed their checks after it had begun, and were to race next.
    """

    line: RaceLine
    seconds: dict[str, list[float]]
    rounds: dict[str, list[int]]
    out: set[str] = field(default_factory=set)
    newcomers: set[str] = field(default_factory=set)

    @property
    def runners(self) -> set[str]:
        return {Tactic.parse(name).runner for name in self.line.tactics}


@dataclass(slots=True)
class Looked:
    """A tactic that passed its check: `looks` are its first look and the turns of halving, `fair` whether it had two looks."""

    line: PassedLine
    looks: list[float]
    fair: bool = False


@dataclass(slots=True)
class Recorded:
    """How far the tuning of one problem came.

    `offered` is what races on it, in which versions; `passed` and `rejected` are by tactic, `races` in order, `rounds` is
    how many of all of them are numbered. `open` says that the race which the verdict comes from may go on.
    """

    offered: dict[str, Offered] = field(default_factory=dict)
    passed: dict[str, Looked] = field(default_factory=dict)
    rejected: dict[str, Rejected] = field(default_factory=dict)
    races: list[RecordedRace] = field(default_factory=list)
    rounds: int = 0
    verdict: Verdict | None = None
    open: bool = False

    @property
    def seconds(self) -> float:
        """What was measured of it took at least so long."""
        sampled = sum(sum(map(sum, race.seconds.values())) * race.line.inner for race in self.races)
        return max(sampled, self.verdict.measured if self.verdict is not None else 0.0)

    def without(self, runners: Collection[str]) -> Recorded:
        """The same without the tactics of these runners, and without the races that they were in or that were before those."""
        if not runners:
            return self
        if DEFAULT.runner in runners:  # everything was checked against it
            return Recorded(dict(self.offered), rounds=self.rounds, verdict=self.verdict, open=self.open)
        return Recorded(
            dict(self.offered),
            {name: looked for name, looked in self.passed.items() if Tactic.parse(name).runner not in runners},
            {name: refused for name, refused in self.rejected.items() if Tactic.parse(name).runner not in runners},
            list(reversed([*takewhile(lambda race: race.runners.isdisjoint(runners), reversed(self.races))])),
            self.rounds,
            self.verdict,
            self.open,
        )

    def changed(self, offered: dict[str, Offered]) -> list[str]:
        """The runners that are not offered as they were."""
        return [name for name, known in self.offered.items() if offered.get(name) != known]


class Reading:
    """Takes a run's lines in order, each by the function that `takes` has for its type.

    These raise ValueError for a line that does not fit those before it. What the lines come to is in the attributes; of verdicts
    (by problem), plans (by fingerprint) and footers the last one counts.
    """

    def __init__(self) -> None:
        self.problems: dict[str, Recorded] = {}
        self.verdicts: dict[str, Verdict] = {}
        self.plans: dict[str, Plan] = {}
        self.resumed: list[ResumedLine] = []
        self.footer: Footer | None = None
        self._races: dict[int, RecordedRace] = {}
        self._order: list[TrialLine | Callable[[], Iterator[TrialLine]]] = []
        self.takes: Mapping[type, Callable[[Any], None]] = {
            Header: self._header,
            ResumedLine: self.resumed.append,
            ProblemLine: self._problem,
            PassedLine: self._passed,
            LookLine: self._look,
            RaceLine: self._race,
            SampleLine: self._sample,
            OutLine: self._out,
            TrialLine: self._trial,
            VerdictLine: self._verdict,
            PlanLine: self._plan,
            Footer: self._end,
        }

    @property
    def trials(self) -> Iterator[TrialLine]:
        """Each tactic's looks, samples of a race, and rejections, in the order in which each began."""
        for item in self._order:
            if isinstance(item, TrialLine):
                yield item
            else:
                yield from item()

    def _header(self, line: Header) -> None:
        raise ValueError("a second header")

    def _problem(self, line: ProblemLine) -> None:
        before = self._of(line.problem)
        begun = before.without(before.changed(line.offered))
        begun.offered = line.offered
        self.problems[line.problem] = begun

    def _passed(self, line: PassedLine) -> None:
        looked = Looked(line, [line.seconds])
        recorded = self._of(line.problem)
        recorded.rejected.pop(line.tactic, None)
        recorded.passed[line.tactic] = looked
        if recorded.races:
            recorded.races[-1].newcomers.add(line.tactic)
        self._order.append(partial(self._looks, line.problem, looked))

    def _look(self, line: LookLine) -> None:
        looked = self._of(line.problem).passed.get(line.tactic)
        if looked is None:
            raise ValueError(f"{line.tactic} is looked at and did not pass a check")
        if line.turn >= _FIRST_LOOK:
            looked.looks[0], looked.fair = min(looked.looks[0], line.seconds), True
        else:
            looked.looks.append(line.seconds)

    def _race(self, line: RaceLine) -> None:
        if line.race in self._races:
            raise ValueError(f"race {line.race} begins twice")
        race = RecordedRace(line, {name: [] for name in line.tactics}, {name: [] for name in line.tactics})
        recorded = self._of(line.problem)
        self._races[line.race] = race
        recorded.races.append(race)
        self._order.append(partial(_timed, race, recorded))

    def _sample(self, line: SampleLine) -> None:
        race = self._races.get(line.race) or self._known(line.race)
        tactics, number = race.line.tactics, line.round
        name = tactics[line.tactic] if line.tactic < len(tactics) else self._name(race, line.tactic)
        rounds = race.rounds[name]
        if number < race.line.first or (rounds and number <= rounds[-1]):
            raise ValueError(f"race {line.race}: a second sample of {name} in round {number}, or one of another race")
        rounds.append(number)
        race.seconds[name].append(line.seconds)
        known = self.problems[race.line.problem]
        if number >= known.rounds:
            known.rounds = number + 1

    def _out(self, line: OutLine) -> None:
        race = self._known(line.race)
        race.out.update(self._name(race, place) for place in line.tactics)

    def _trial(self, line: TrialLine) -> None:
        self._order.append(line)
        if isinstance(line.trial, Rejected):
            self._of(line.problem).rejected[line.trial.tactic] = line.trial

    def _verdict(self, line: VerdictLine) -> None:
        verdict = line.verdict
        recorded = self._of(verdict.problem)
        recorded.verdict, recorded.open = verdict, line.open
        self.verdicts[verdict.problem] = verdict

    def _plan(self, line: PlanLine) -> None:
        self.plans[line.plan.fingerprint] = line.plan

    def _end(self, line: Footer) -> None:
        self.footer = line

    def _looks(self, problem: str, looked: Looked) -> Iterator[TrialLine]:
        """The calls before the race, of those that do not race, and of those that halving called."""
        line, recorded = looked.line, self.problems[problem]
        if len(looked.looks) == 1:
            raced = any(race.seconds.get(line.tactic) for race in recorded.races)
            if raced or line.tactic in recorded.rejected:
                return
        rounds = tuple(_FIRST_LOOK - i for i in range(len(looked.looks)))
        trial = Timed(
            tactic=line.tactic, samples=tuple(looked.looks), rounds=rounds, bytes=line.bytes, error=line.error
        )
        yield TrialLine(problem=problem, trial=trial, rank=line.rank)

    def _of(self, problem: str) -> Recorded:
        return self.problems.setdefault(problem, Recorded())

    def _known(self, number: int) -> RecordedRace:
        race = self._races.get(number)
        if race is None:
            raise ValueError(f"race {number} did not begin")
        return race

    def _name(self, race: RecordedRace, place: int) -> str:
        if place >= len(race.line.tactics):
            raise ValueError(f"race {race.line.race} has {len(race.line.tactics)} tactics, and none at {place}")
        return race.line.tactics[place]


def _timed(race: RecordedRace, recorded: Recorded) -> Iterator[TrialLine]:
    """The samples of each tactic in a race."""
    for name, samples in race.seconds.items():
        if not samples:
            continue
        looked = recorded.passed.get(name)
        yield TrialLine(
            problem=race.line.problem,
            trial=Timed(
                tactic=name,
                samples=tuple(samples),
                rounds=tuple(race.rounds[name]),
                inner=race.line.inner,
                bytes=looked.line.bytes if looked is not None else 0,
                error=looked.line.error if looked is not None else None,
            ),
            race=race.line.race,
            rank=race.line.rank,
        )
