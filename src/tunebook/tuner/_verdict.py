"""From a race to its verdict: what was chosen, what stays from before, and the remark."""

from __future__ import annotations

from dataclasses import dataclass

from tunebook.measure import SCREENING, Choice, Entry, RaceResult, choose, drifted, rescale
from tunebook.records import DEFAULT, Member, Offered, Rejected, Tactic, Verdict
from tunebook.tuner._entrants import Answer, Field
from tunebook.tuner._lineup import Lineup, at_rest
from tunebook.tuner._replicas import Contender
from tunebook.tuner._tasks import Task

#: So many rejections stand in a verdict, every runner's and every reason among them, beside those that did harm, which are all
#: remembered; the run file has all.
MAX_REJECTED = 32


@dataclass
class Standing:
    """A problem whose race was run, and can go on: the race so far."""

    task: Task
    field: Field
    known: Answer | None
    before: Verdict | None
    inputs: int  #: bytes
    lineup: Lineup
    result: RaceResult
    inner: int
    spent: float = 0.0
    cut: bool = False  #: whether it was time that ended the race
    interrupted: bool = False  #: whether somebody else did

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
        rounds=lineup.journal.began + result.rounds,
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
    """All that did harm; of the others at most `MAX_REJECTED`, one of each runner and reason before a second one of any."""
    others = [r for r in rejected if not r.harm]
    if len(others) <= MAX_REJECTED:
        return tuple(rejected)
    kinds = {(Tactic.parse(r.tactic).runner, r.reason): r for r in reversed(others)}
    ranked = sorted(others, key=lambda r: kinds[Tactic.parse(r.tactic).runner, r.reason] is not r)
    dropped = {r.tactic for r in ranked[MAX_REJECTED:]}
    return tuple(r for r in rejected if r.tactic not in dropped)


def _note(standing: Standing, seen: int, space: int) -> str:
    lineup, result = standing.lineup, standing.result
    drift = drifted(result)
    more = len(lineup.rejected) - len(_foremost(lineup.rejected))
    recalled = len(standing.field.recalled)
    parts = (
        f"saw {seen:,} of {space:,} tactics" if seen < space else "",
        "" if lineup.halved else "the time ended while they were narrowed down",
        "it was interrupted" if standing.interrupted else "its time was up" if standing.cut else "",
        f"the machine drifted: last rounds {drift:.2f}x the first" if drift is not None else "",
        f"{recalled:,} that were rejected before were not tried again" if recalled else "",
        f"{more:,} more rejections are in the run file" if more > 0 else "",
    )
    return ", ".join(part for part in parts if part)
