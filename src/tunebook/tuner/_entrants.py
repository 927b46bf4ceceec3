"""Who races: what the cache answers, which runners are new or changed since, and which tactics are refused unrun."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from tunebook.errors import UsageError
from tunebook.ops import OpSpec, Runner
from tunebook.records import DEFAULT, Member, Offered, Problem, Rejected, Tactic, Verdict
from tunebook.search import space_filling

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
    runners that must race the incumbent; `notes` name each reason why the verdict was not simply taken.
    """

    members: tuple[Member, ...]
    changed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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
    for member in verdict.frontier:
        reason = _refused(Tactic.parse(member.tactic), verdict, spec, runners, default_changed)
        if reason is None:
            members.append(member)
        elif not members:  # a winner that does not serve is worth a word; what stands behind the one that does is not
            notes.append(f"{member.tactic}: {reason}")
    if default_changed:
        changed.append(DEFAULT.runner)
    return Answer(tuple(members), tuple(changed), tuple(notes))


def _refused(
    tactic: Tactic, verdict: Verdict, spec: OpSpec, runners: dict[str, Runner], default_changed: bool
) -> str | None:
    """Why a remembered tactic does not serve today, or None."""
    if tactic == DEFAULT:
        return "the default has changed" if default_changed else None
    runner = runners.get(tactic.runner)
    if runner is None:
        known = spec.runners.get(tactic.runner)
        why = known.requirement.reason() if known else None
        return f"runner {tactic.runner} is not available: {why}" if why else f"runner {tactic.runner} is not offered"
    if not runner.offers(tactic):
        return "the op does not offer this tactic"
    known_version = verdict.offered.get(tactic.runner)
    if known_version is None or known_version.version != runner.version:
        return f"version {known_version.version if known_version else '-'} ≠ {runner.version}"
    return None


@dataclass
class Field:
    """The tactics that race on a problem, the refusals, the runners that cannot run here, and what was offered.

    `first` are the default and the incumbent; `queues` the other tactics that fit, by runner, as declared; `former` is how
    many more fit of which a former verdict speaks, so that they need not race.
    """

    first: list[Tactic] = field(default_factory=list)
    queues: list[list[Tactic]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    unavailable: list[Rejected] = field(default_factory=list)
    offered: dict[str, Offered] = field(default_factory=dict)
    former: int = 0

    @property
    def tactics(self) -> int:
        """How many there are, the default among them."""
        return len(self.first) + sum(map(len, self.queues))

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
    for name, runner in spec.runners.items():
        if not selection.takes_runner(name):
            continue
        why = runner.requirement.reason()
        if incumbent is not None and known and name not in known.changed:
            others = [tactic for tactic in runner.space_of(problem) if why is None and tactic != incumbent]
            found.former += sum(runner.refusal(tactic, problem) is None for tactic in others)
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
            elif tactic not in found.first:
                fits.append(tactic)
        found.queues.append(fits)
    return found
