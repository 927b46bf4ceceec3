"""Who races: what the cache answers, which runners are new or changed since, and which tactics are refused unrun."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from tunebook.errors import UsageError
from tunebook.ops import OpSpec, Runner
from tunebook.records import DEFAULT, Member, Offered, Problem, Rejected, Tactic, Verdict


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
    """The tactics that race on a problem, the refusals, the runners that cannot run here, and what was offered."""

    tactics: list[Tactic] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    unavailable: list[Rejected] = field(default_factory=list)
    offered: dict[str, Offered] = field(default_factory=dict)


def entrants(problem: Problem, spec: OpSpec, default_version: str, selection: Selection, known: Answer | None) -> Field:
    """The default, the incumbent, and the tactics of every runner that races; on a warm cache the changed runners alone."""
    found = Field(tactics=[DEFAULT], offered={DEFAULT.runner: Offered(version=default_version, space="")})
    incumbent = known.tactic if known else None
    queues: list[list[Tactic]] = []
    if incumbent is not None and incumbent != DEFAULT:
        found.tactics.append(incumbent)
    for name, runner in spec.runners.items():
        if not selection.takes_runner(name) or (incumbent is not None and known and name not in known.changed):
            continue
        why = runner.requirement.reason()
        if why is not None:
            found.unavailable.append(Rejected(tactic=name, reason="unavailable", detail=why))
            continue
        found.offered[name] = runner.offered
        fits: list[Tactic] = []
        for tactic in runner.combinations:
            refusal = runner.refusal(tactic, problem)
            if refusal is not None:
                found.rejected.append(Rejected(tactic=tactic.name, reason="constraints", detail=refusal))
            elif tactic not in found.tactics:
                fits.append(tactic)
        queues.append(fits)
    for turn in itertools.zip_longest(*queues):  # one of each runner in turn: where time is short, each was tried
        found.tactics += [tactic for tactic in turn if tactic is not None]
    return found
