"""From a race to its verdict: what was chosen, what stays from before, what the run file is told, and the remark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field

from tunebook.dispatch import Binding
from tunebook.measure import SCREENING, Choice, Entry, RaceResult, choose, drifted, rescale
from tunebook.records import DEFAULT, Member, Offered, Rejected, Tactic, Timed, Verdict
from tunebook.tuner._entrants import Answer, Field
from tunebook.tuner._lineup import Lineup, at_rest
from tunebook.tuner._replicas import Contender
from tunebook.tuner._tasks import Task

Trial = Timed | Rejected

#: So many rejections stand in a verdict, every runner's and every reason among them; the run file has all.
MAX_REJECTED = 32


@dataclass
class Standing:
    """A problem whose race was run, and can go on: the race so far, and what of it the run file was told."""

    task: Task
    field: Field
    known: Answer | None
    before: Verdict | None
    layers: Sequence[Binding]
    inputs: int  #: bytes
    lineup: Lineup
    result: RaceResult
    inner: int
    spent: float = 0.0
    cut: bool = False  #: whether it was time that ended the race
    began: int = (
        0  #: rounds of races that were given up because others entered; this one's rounds are counted on from there
    )
    told: dict[str, int] = dataclass_field(default_factory=dict)
    told_looks: set[str] = dataclass_field(default_factory=set)
    told_rejected: int | None = None

    @property
    def key(self) -> str:
        return self.task.problem.key

    @property
    def incumbent(self) -> str | None:
        return self.known.tactic.name if self.known and self.known.tactic else None

    def begin_again(self, former: RaceResult) -> None:
        """The race was begun again after `former`: who does not race any more is known from that alone."""
        racing = {entry.name for entry in self.result.entries}
        refused = {rejected.tactic for rejected in self.lineup.rejected}
        for entry in former.entries:
            if entry.name not in racing | refused:
                rounds = [SCREENING] * len(entry.samples)  # they pair with no round of the new race
                self.lineup.former[entry.name] = Entry(at_rest(entry.candidate), list(entry.samples), rounds)
        self.began += former.rounds
        self.told.clear()


def judge(standing: Standing, run: str) -> Verdict:
    """What the race says by now."""
    field, lineup, result = standing.field, standing.lineup, standing.result
    beside = lineup.beside()
    groups = {e.name: _group(e) for e in (*result.entries, *beside)}
    choice = choose(result, groups.__getitem__, standing.incumbent, beside)
    offered: dict[str, Offered] = dict(field.offered)
    frontier = choice.frontier
    before = standing.before if standing.incumbent is not None else None
    seen = lineup.seen
    if before is not None:
        runners = {name: o for name, o in before.offered.items() if name not in offered}
        offered = {**runners, **offered}
        same_default = before.offered.get(DEFAULT.runner) == field.offered[DEFAULT.runner]
        frontier += _older(before, choice, result, set(field.offered), same_default)
        seen += round(field.former * (before.seen / before.space if before.space else 1.0))
    space = field.tactics + field.former
    return Verdict(
        problem=standing.key,
        winner=choice.winner,
        status=choice.status if not lineup.unreached and lineup.halved else "unresolved",
        speedup=choice.speedup.value,
        low=choice.speedup.low,
        high=choice.speedup.high,
        seconds=choice.seconds,
        frontier=frontier,
        offered=offered,
        ties=choice.ties,
        rejected=_foremost(lineup.rejected),
        run=run,
        rounds=standing.began + result.rounds,
        measured=standing.spent,
        note=_note(standing, seen, space),
        loss=choice.loss,
        space=space,
        seen=seen,
    )


def left_out(task: Task, field: Field, run: str, why: str) -> Verdict:
    """The verdict on a problem that was not measured: unresolved, the default serves, and that is an answer."""
    return Verdict(
        problem=task.problem.key,
        winner=DEFAULT.name,
        status="unresolved",
        speedup=1.0,
        low=1.0,
        high=1.0,
        seconds=task.weight / max(1, task.calls) if task.seen else 0.0,
        frontier=(Member(tactic=DEFAULT.name, ratio=1.0, low=1.0, high=1.0),),
        offered=field.offered,
        run=run,
        note=f"left out: {why}",
        space=field.tactics,
    )


def news(standing: Standing) -> tuple[Trial, ...]:
    """The trials that the run file was not told yet: of a race that went on, the new rounds alone."""
    lineup = standing.lineup
    first = standing.told_rejected is None
    refusals = [*(standing.field.unavailable if first else ()), *lineup.rejected[standing.told_rejected or 0 :]]
    standing.told_rejected = len(lineup.rejected)
    looks = [_looks(standing, name) for name in lineup.looks if name not in standing.told_looks]
    rounds = [_rounds(standing, entry) for entry in standing.result.entries]
    return (*refusals, *(trial for trial in (*looks, *rounds) if trial is not None))


def _looks(standing: Standing, name: str) -> Timed | None:
    """The calls before the race, of those that do not race, and of those that halving called."""
    lineup = standing.lineup
    samples = lineup.looks[name]
    if name not in lineup.screened and len(samples) == 1:
        return None
    standing.told_looks.add(name)
    size = next((c.bytes for c in (lineup.screened.get(name), lineup.admitted.get(name)) if c is not None), 0)
    rounds = tuple(SCREENING - i for i in range(len(samples)))
    return Timed(tactic=name, samples=tuple(samples), rounds=rounds, bytes=size, error=lineup.errors.get(name))


def _rounds(standing: Standing, entry: Entry) -> Timed | None:
    """The rounds of a race since the last time, numbered on from those of races that were given up."""
    told = standing.told.get(entry.name, 0)
    standing.told[entry.name] = len(entry.samples)
    if len(entry.samples) == told:
        return None
    return Timed(
        tactic=entry.name,
        samples=tuple(entry.samples[told:]),
        rounds=tuple(standing.began + number for number in entry.rounds[told:]),
        inner=standing.inner,
        bytes=entry.candidate.bytes,
        error=standing.lineup.errors.get(entry.name),
    )


def _group(entry: Entry) -> tuple[str, str]:
    candidate = entry.candidate
    assert isinstance(candidate, Contender)
    return candidate.tactic.runner, candidate.layout


def _older(
    before: Verdict, choice: Choice, result: RaceResult, raced: set[str], same_default: bool
) -> tuple[Member, ...]:
    """What the former frontier still tells: members whose runners did not race now, against the new winner."""
    names = {entry.name for entry in result.entries}
    changed = raced - ({DEFAULT.runner} if same_default else set())  # a changed runner's former ratio says nothing now
    kept = {
        m.tactic: m for m in before.frontier if m.tactic not in names and Tactic.parse(m.tactic).runner not in raced
    }
    now_known = {member.tactic for member in choice.frontier}
    anchor = next(
        (m for m in before.frontier if m.tactic in now_known and Tactic.parse(m.tactic).runner not in changed), None
    )
    if anchor is None:
        return ()
    now = next(m for m in choice.frontier if m.tactic == anchor.tactic)
    return rescale(kept, now.ratio / anchor.ratio)


def _foremost(rejected: list[Rejected]) -> tuple[Rejected, ...]:
    """At most `MAX_REJECTED`, in order: one of each runner and reason before a second one of any."""
    if len(rejected) <= MAX_REJECTED:
        return tuple(rejected)
    kinds = {(Tactic.parse(r.tactic).runner, r.reason): r for r in reversed(rejected)}
    ranked = sorted(rejected, key=lambda r: kinds[Tactic.parse(r.tactic).runner, r.reason] is not r)
    chosen = {r.tactic for r in ranked[:MAX_REJECTED]}
    return tuple(r for r in rejected if r.tactic in chosen)


def _note(standing: Standing, seen: int, space: int) -> str:
    lineup, result = standing.lineup, standing.result
    drift = drifted(result)
    more = len(lineup.rejected) - MAX_REJECTED
    parts = (
        f"saw {seen:,} of {space:,} tactics" if seen < space else "",
        "" if lineup.halved else "the time ended while they were narrowed down",
        "its time was up" if standing.cut else "",
        f"the machine drifted: last rounds {drift:.2f}x the first" if drift is not None else "",
        f"{more:,} more rejections are in the run file" if more > 0 else "",
    )
    return ", ".join(part for part in parts if part)
