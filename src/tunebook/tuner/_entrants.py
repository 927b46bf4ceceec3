"""Who races: what the cache answers, which runners are new or changed since, and which tactics are refused unrun."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tunebook.errors import UsageError
from tunebook.ops import OpSpec, Runner
from tunebook.records import DEFAULT, Member, Offered, Problem, Rejected, Tactic, Verdict
from tunebook.search import space_filling
from tunebook.store._text import one_line
from tunebook.tuner._admissible import foreign, incredible, misplaced, not_offered

#: A problem with so many tactics beside the default has each of them tried; of more, a sample.
SMALL_SPACE = 24


@dataclass(frozen=True)
class Selection:
    """What narrows a tuning: only these ops, not those, only these runners (the default and the incumbent always race)."""

    ops: tuple[str, ...] = ()
    skip_ops: tuple[str, ...] = ()
    runners: tuple[str, ...] = ()

    def check(self, specs: dict[str, OpSpec]) -> None:
        """Raise UsageError for a name that nothing has."""
        for name in (*self.ops, *self.skip_ops):
            if name not in specs:
                raise UsageError(f"op {name!r} is none of this model's: {', '.join(sorted(specs)) or 'it has none'}")
        known = {runner for spec in specs.values() for runner in spec.runners}
        for name in self.runners:
            if name not in known:
                raise UsageError(f"runner {name!r} is offered by no op here; there are {', '.join(sorted(known))}")

    def takes_op(self, name: str) -> bool:
        return (not self.ops or name in self.ops) and name not in self.skip_ops

    def takes_runner(self, name: str) -> bool:
        return not self.runners or name in self.runners


@dataclass(frozen=True)
class Answer:
    """What a cached verdict is worth today.

    `members` are those of the frontier that may serve, best first (none: the verdict is worth nothing); `changed` are the
    runners that must race the incumbent; `notes` name each reason why the verdict was not simply taken. `rejected` are the
    tactics that ran and were rejected, and need not run again: neither their runner nor what they are judged by has changed.
    """

    members: tuple[Member, ...]
    changed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    #: What the pin that decided this is for (``linear@M≤16``); empty where none did.
    pin: str = ""

    @property
    def tactic(self) -> Tactic | None:
        return Tactic.parse(self.members[0].tactic) if self.members else None

    @property
    def complete(self) -> bool:
        return self.tactic is not None and not self.changed


def available_runners(spec: OpSpec) -> dict[str, Runner]:
    """The runners that can run here."""
    return {name: runner for name, runner in spec.runners.items() if runner.requirement.reason() is None}


def answer(verdict: Verdict, spec: OpSpec, default_version: str, selection: Selection) -> Answer:
    """Compare a verdict with what the op offers today."""
    runners = available_runners(spec)
    problem = Problem.parse(verdict.problem)
    if (wrong := foreign(problem, spec) or incredible(verdict)) is not None:
        return Answer((), notes=(one_line(wrong),))
    notes: list[str] = []
    changed: list[str] = []
    for name, runner in runners.items():
        known = verdict.offered.get(name)
        if known is None:
            notes.append(f"runner {name} is new")
        elif known.version != runner.version:
            notes.append(f"runner {name} is {runner.version}, the verdict is about {known.version}")
        elif known.space != runner.offered.space:
            notes.append(f"runner {name} offers other tactics than the verdict is about")
        else:
            continue
        if selection.takes_runner(name):
            changed.append(name)
    known_default = verdict.offered.get(DEFAULT.runner)
    default_changed = known_default is not None and known_default.version != default_version
    if known_default is not None and default_changed:
        notes.append(f"the default is {default_version!r}, the verdict is about {known_default.version!r}")
    members: list[Member] = []
    tried: set[Tactic] = set()
    for member in verdict.frontier:
        tactic = Tactic.parse(member.tactic)
        if tactic in tried:
            continue
        tried.add(tactic)
        if tactic == DEFAULT and default_changed:
            reason: str | None = "the default has changed"
        else:
            reason = (
                not_offered(tactic, problem, spec, runners)
                or _outdated(tactic, verdict, runners)
                or misplaced(member, tactic, runners)
            )
        if reason is None:
            members.append(member)
        elif not members:  # a winner that does not serve is worth a word; what stands behind the one that does is not
            notes.append(f"{member.tactic}: {reason}")
    if default_changed:
        changed.append(DEFAULT.runner)
    rejected = tuple(
        known
        for known in verdict.rejected
        if (known.ran or known.harm)
        and (tactic := Tactic.parse(known.tactic)) != DEFAULT
        and (known.harm or not default_changed)  # the others are judged by the default
        and not_offered(tactic, problem, spec, runners) is None
        and _outdated(tactic, verdict, runners) is None
    )
    return Answer(tuple(members), tuple(changed), tuple(map(one_line, notes)), rejected)


def _outdated(tactic: Tactic, verdict: Verdict, runners: Mapping[str, Runner]) -> str | None:
    """Why a remembered tactic is not what it was when the verdict was reached, or None."""
    if tactic == DEFAULT:
        return None
    known, now = verdict.offered.get(tactic.runner), runners[tactic.runner].version
    return None if known is not None and known.version == now else f"version {known.version if known else '-'} ≠ {now}"


@dataclass
class Field:
    """The tactics that race on a problem, the refusals, the runners that cannot run here, and what was offered.

    `first` are the default and the incumbent; `queues` the other tactics that fit, by runner, as declared; `former` is how
    many more fit of which a former verdict speaks, so that they need not race. `recalled` are those of the runners that race
    which a former verdict rejected: they count as tried; `carried` are such rejections of the other runners. `proven` are the
    names of those that the former verdict says are right.
    """

    first: list[Tactic] = field(default_factory=list)
    queues: list[list[Tactic]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    unavailable: list[Rejected] = field(default_factory=list)
    offered: dict[str, Offered] = field(default_factory=dict)
    former: int = 0
    recalled: list[Rejected] = field(default_factory=list)
    carried: list[Rejected] = field(default_factory=list)
    proven: frozenset[str] = frozenset()

    @property
    def tactics(self) -> int:
        """How many there are, the default and those that are recalled among them."""
        return len(self.first) + sum(map(len, self.queues)) + len(self.recalled)

    @property
    def large(self) -> bool:
        """Whether there are so many that a sample of them is tried."""
        return self.tactics - 1 > SMALL_SPACE

    def order(self, rng: random.Random) -> Iterator[Tactic]:
        """All but the default, in the order in which they are tried: the incumbent, then one of each runner in turn.

        In a large space each runner's come in a space-filling order, so that those that are reached are spread over it.
        """
        queues = [space_filling(queue, rng) if self.large else queue for queue in self.queues]
        turns = itertools.zip_longest(*queues)
        yield from self.first[1:]
        yield from (tactic for turn in turns for tactic in turn if tactic is not None)


def entrants(problem: Problem, spec: OpSpec, default_version: str, selection: Selection, known: Answer | None) -> Field:
    """The default, the incumbent, and the tactics of every runner that races; on a warm cache the changed runners alone."""
    found = Field(first=[DEFAULT], offered={DEFAULT.runner: Offered(version=default_version, space="")})
    incumbent = known.tactic if known else None
    if incumbent is not None and incumbent != DEFAULT:
        found.first.append(incumbent)
    if known is not None:
        found.proven = frozenset(member.tactic for member in known.members)
    before = {} if known is None else {rejected.tactic: rejected for rejected in known.rejected}
    for name, runner in spec.runners.items():
        if not selection.takes_runner(name):
            continue
        why = runner.requirement.reason()
        if incumbent is not None and known and name not in known.changed:
            others = [tactic for tactic in runner.space_of(problem) if why is None and tactic != incumbent]
            found.former += sum(runner.refusal(tactic, problem) is None for tactic in others)
            found.carried += [r for tactic in others if (r := before.get(tactic.name)) is not None]
            continue
        if why is not None:
            found.unavailable.append(Rejected(tactic=name, reason="unavailable", detail=why))
            continue
        found.offered[name] = runner.offered
        fits: list[Tactic] = []
        for tactic in runner.space_of(problem):
            refusal = runner.refusal(tactic, problem)
            if refusal is not None:
                found.rejected.append(Rejected(tactic=tactic.name, reason="constraints", detail=refusal))
            elif tactic in found.first:
                continue
            elif tactic.name in before:
                found.recalled.append(before[tactic.name])
            else:
                fits.append(tactic)
        found.queues.append(fits)
    return found
