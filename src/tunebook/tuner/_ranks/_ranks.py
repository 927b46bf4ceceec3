"""A session on one of several ranks: it starts as they do, shares the work, and ends with what all of them hold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from tunebook._version import __version__
from tunebook.devices import Device
from tunebook.dispatch import OPS
from tunebook.envs import envs
from tunebook.errors import RankError
from tunebook.measure import allowance, memory_limit
from tunebook.records import Member, Plan, Problem, Rejected, Tactic, Verdict
from tunebook.tuner._entrants import answer
from tunebook.tuner._outcome import Outcome
from tunebook.tuner._passes import Progress, Todo
from tunebook.tuner._passes import Report as Result
from tunebook.tuner._ranks._group import Group, of_a_collective
from tunebook.tuner._ranks._hello import Hello, Known, device_identity, meet, same_contents
from tunebook.tuner._ranks._lockstep import Lockstep
from tunebook.tuner._ranks._mail import GatheringWriter, MailingWriter
from tunebook.tuner._ranks._share import Report, Shares, budgets, check_versions, report, share
from tunebook.tuner._ranks._turns import InTurns, TurnBudget, Turns, Watched
from tunebook.tuner._tasks import Task
from tunebook.tuner._tune import ProblemTuner
from tunebook.tuner._worth import MIN_WEIGHT

if TYPE_CHECKING:
    from tunebook.tuner._session import Session

logger = logging.getLogger("tunebook.ranks")

T = TypeVar("T")


class Done(msgspec.Struct, frozen=True):
    """What one rank settled, or the leader tells of all."""

    verdicts: dict[str, Verdict]
    fresh: list[str]
    refused: list[tuple[str, Rejected]]
    left_out: int


class PublishedTo(msgspec.Struct, frozen=True):
    """What became of the publication."""

    published: bool
    problem: str
    path: str


class Ranks:
    """What a session asks of the other ranks. All call the same methods in the same order.

    Raises RankError from any of them as soon as a rank is lost, or failed.
    """

    def __init__(self, session: Session, group: Any, options: Mapping[str, object]) -> None:
        """Join the others: as many as `group` has. `options` are what all must have been started with, by name.

        Raises UsageError, on every rank, where they contradict each other, and where `group` is none of this process's.
        """
        self._session = session
        self._own = session.recall.contents
        self.group = Group(group)
        self._watched = Watched(session.device, self.group.line)
        self._turns: Turns | None = None
        self._over = False
        self._shares: Shares | None = None
        self.communicates = False  #: whether an op was met whose calls communicate
        try:
            self._join(options)
        except BaseException as error:
            self.group.fail(error)
            self.group.close()
            raise

    def _join(self, options: Mapping[str, object]) -> None:
        session = self._session
        asked = {
            "policy": session.policy.value,
            "continuing": session.continuing,
            "rounds": session.effort.max_rounds,
            "only_ops": session.selection.ops,
            "skip_ops": session.selection.skip_ops,
            "only_runners": session.selection.runners,
            "pins": dict(
                sorted((target, tactic.name) for target, tactic in session.recall.pinned.pins.tactics.items())
            ),
            "TUNEBOOK_MEMORY_LIMIT": envs.TUNEBOOK_MEMORY_LIMIT.get(),
            "TUNEBOOK_MEMORY_LIMIT_GB": envs.TUNEBOOK_MEMORY_LIMIT_GB.get(),
            "TUNEBOOK_RANK_TIMEOUT_S": self.group.timeout,
            **options,
        }
        known = Known.of(session.recall.contents)
        mine = Hello(
            device=device_identity(session.device),
            environment=session.environment,
            options={name: str(value) for name, value in asked.items()},
            cache=str(session.location.cache),
            knows=known.digest if session.recall.contents is not None else "",
            version=__version__,
        )
        hellos = meet(self.group, mine)
        self.devices = [hello.device for hello in hellos]
        session.recall.contents = same_contents(self.group, hellos, known, session.recall.contents)
        self.group.enter("in its dummy run")

    @property
    def device(self) -> Device:
        """What measures in this rank's turns."""
        return cast("Device", self._watched)

    @property
    def leads(self) -> bool:
        """Whether this rank decides what is decided once, and keeps the files."""
        return self.group.leads

    def tell(self, what: str, value: T | None, kind: type[T]) -> T:
        """What the leader says, on every rank."""
        return self.group.tell(what, value, kind)

    def least(self, value: int) -> int:
        """The least that any rank says."""
        return self.group.combine(value, int, min)

    def any_of(self, flag: bool, why: str) -> tuple[bool, str]:
        """Whether any rank says so, and why the first of them does."""
        said = self.group.gather("flag", (flag, why), tuple[bool, str])
        place = next((place for place, (one, _) in enumerate(said) if one), None)
        if place is None:
            return False, why
        alike = all(one for one, _ in said)
        return True, said[place][1] if alike else f"{self.group.names[place]}: {said[place][1]}"

    def served_alike(self, tactics: Mapping[str, Tactic]) -> dict[str, Tactic]:
        """What may serve: of the problems whose calls communicate, those that every rank serves with the same tactic."""
        mine = {key: t.name for key, t in tactics.items() if (op := OPS.get(Problem.parse(key).op)) and op.communicates}
        every = self.group.gather("served", mine, dict[str, str])
        unlike = {key for one in every for key, name in one.items() if any(o.get(key) != name for o in every)}
        for key in sorted(unlike):
            logger.warning("%s: its calls communicate, and not every rank has the same tactic: the default serves", key)
        return {key: tactic for key, tactic in tactics.items() if key not in unlike}

    def enter(self, stage: str) -> None:
        """What this rank does from now on."""
        self.group.enter(stage)

    def share(
        self,
        tasks: Sequence[Task],
        todo: Sequence[Todo],
        budget_s: float | None,
        record: Callable[[Result], None],
        progress: Progress | None,
    ) -> tuple[list[Todo], float | None]:
        """What is left for this rank to tune, and its seconds, once what all have to race together is settled."""
        group, session = self.group, self._session
        group.enter("exchanging problems")
        reports = group.gather("problems", report(tasks, todo), Report)
        check_versions(group.names, reports)
        group.enter("sharing the work")
        seed = session.rng.getrandbits(32)
        shares = group.tell("shares", share(group.names, reports, self.devices, seed) if group.leads else None, Shares)
        self._shares = shares
        self.communicates = any(seen.together for one in reports for seen in one.problems.values())
        for key, why in shares.left.items():
            logger.warning("%s is not tuned: %s", key, why)
        self._one_file(bool(shares.tuned_by or shares.together))
        budget_s = group.tell("budget", budget_s if group.leads else None, float | None)  # type: ignore[arg-type]
        together_s, mine_s = budgets(shares, self.devices, group.me, budget_s)
        items = {item.key: replace(item, task=replace(item.task, weight=shares.weights[item.key])) for item in todo}
        self._race_together([self._item(key, items, tasks) for key in shares.together], together_s, record, progress)
        here = [place for place, device in enumerate(self.devices) if device == self.devices[group.me]]
        place = sorted(set(self.devices)).index(self.devices[group.me])
        self._turns = Turns(group, str(place), len(here) == 1, self._watched, self._meanwhile)
        return [items[key] for key, place in shares.tuned_by.items() if place == group.me], mine_s

    def _item(self, key: str, items: Mapping[str, Todo], tasks: Sequence[Task]) -> Todo:
        """A problem that all race. One that this rank's pins or run answer is raced all the same, where others' do not."""
        if key in items:
            return items[key]
        task = next(task for task in tasks if task.problem.key == key)
        return Todo(task, None, None)

    def in_turns(self, tuner: ProblemTuner, budget_s: float | None) -> tuple[ProblemTuner, TurnBudget]:
        """The tuner and the budget of this rank's share: one problem at a time, and its own time counts."""
        assert self._turns is not None
        return InTurns(tuner, self._turns), TurnBudget(budget_s, self._turns)

    def gather(self, outcome: Outcome) -> None:
        """Put into `outcome` what all ranks settled: the same bytes everywhere."""
        group, session, shares = self.group, self._session, self._shares
        assert shares is not None
        group.enter("gathering results")
        if isinstance(session.record.begun, MailingWriter):
            session.record.begun.flush()
        own = [key for key, place in shares.tuned_by.items() if place == group.me]
        own += shares.together if group.leads else []
        fresh = [key for key in outcome.fresh if key in own]
        refused = [pair for pair in outcome.refused if pair[0] in own]
        every = group.gather("done", Done(outcome.verdicts, fresh, refused, outcome.left_out), Done)
        if isinstance(session.record.begun, GatheringWriter):
            session.record.begun.drain()
        everything = Done(
            _verdicts(every, {**shares.tuned_by, **dict.fromkeys(shares.together, 0)}),
            [key for one in every for key in one.fresh],
            [pair for one in every for pair in one.refused],
            sum(one.left_out for one in every) + len(shares.left),
        )
        told = group.tell("everything", everything if group.leads else None, Done)
        outcome.verdicts |= told.verdicts
        for key, verdict in told.verdicts.items():
            outcome.members[key] = self._members(key, verdict, outcome)
        outcome.fresh, outcome.refused, outcome.left_out = told.fresh, told.refused, told.left_out
        outcome.weights = dict(shares.weights)
        outcome.seen = len(shares.weights)
        group.enter("planning")

    def _members(self, key: str, verdict: Verdict, outcome: Outcome) -> tuple[Member, ...]:
        known = outcome.members.get(key)
        if known and known[0].tactic == verdict.winner:
            return known
        spec = OPS.get(Problem.parse(key).op)
        default = verdict.offered.get("default")
        if spec is None or default is None:  # no op of that name is declared here, so it is not called either
            return verdict.frontier
        return answer(verdict, spec, default.version, self._session.selection).members

    def publish(self, outcome: Outcome, plan: Plan | None, publish: Callable[[], str]) -> str:
        """Have one rank publish, once all are ready; where a rank was lost, this one publishes what it has.

        `publish` gives the path of the cache, or an empty text; so does this.
        """
        if self._over or self.group.failed:
            return publish()
        self._same_plan(plan)
        if self.leads:
            self.group.enter("publishing")
            merged, self._session.recall.contents = self._session.recall.contents, self._own
            try:
                path = publish()
            finally:
                self._session.recall.contents = merged
            said = PublishedTo(outcome.published, outcome.not_published, path)
        told = self.group.tell("published", said if self.leads else None, PublishedTo)
        outcome.published, outcome.not_published = told.published, told.problem
        return told.path

    def _same_plan(self, plan: Plan | None) -> None:
        """Wait until all ranks have planned. Raises RankError, on all of them, for one with another plan."""
        names = ("fingerprint", "tactics", "layouts", "verified", "active")
        mine = {name: repr(getattr(plan, name)) for name in names} if plan is not None else {}
        every = self.group.gather("plan", mine, dict[str, str])
        for place, other in enumerate(every):
            for name in names:
                if other.get(name) != every[0].get(name):
                    raise RankError(
                        f"{self.group.names[place]} has made another plan than {self.group.names[0]}: {name} differs",
                        rank=self.group.numbers[place],
                        stage="planning",
                    )

    def broken(self, error: BaseException, outcome: Outcome) -> RankError | None:
        """This rank goes no further: tell the others why, unless it is they who failed. What came from them is kept.

        Where a collective failed because a rank was lost, the error that names it; it is waited for.
        """
        lost = self.group.loss() if of_a_collective(error) else None
        writer = self._session.record.begun
        if isinstance(writer, GatheringWriter):
            writer.drain(last=True)
            for key, verdict in writer.received.items():
                outcome.verdicts.setdefault(key, verdict)
        self._over = True
        self.group.fail(error)
        self.close()
        return lost

    def close(self) -> None:
        """The end."""
        self.group.close()

    def _one_file(self, needed: bool) -> None:
        """The leader makes the run file, the others send it their lines."""
        session = self._session
        if self.leads:
            if needed and not isinstance(session.record.begun, GatheringWriter):
                session.record.keep_in(GatheringWriter.of(session.record.writer(), self.group))
            writer = session.record.begun
            self.group.tell("run file", str(writer.path) if writer is not None and writer.path else "", str)
            return
        path = self.group.tell("run file", None, str)
        if needed and session.record.begun is None:
            session.record.keep_in(MailingWriter(self.group, Path(path) if path else None))

    def _race_together(
        self,
        items: Sequence[Todo],
        budget_s: float | None,
        record: Callable[[Result], None],
        progress: Progress | None,
    ) -> None:
        if not items:
            return
        session, group = self._session, self.group
        free, asked = session.device.free_memory(), envs.TUNEBOOK_MEMORY_LIMIT_GB.get()
        assert self._shares is not None
        run = session.record.begun.path if session.record.begun is not None else None
        lockstep = Lockstep(
            group,
            session.device,
            session.selection,
            session.effort,
            session.record.journal,
            seed=self._shares.seed,
            memory_limit=memory_limit(free, asked),
            run=run.name if run is not None else "",
        )
        values = [max(item.task.weight, MIN_WEIGHT) for item in items]
        begun = session.device.clock()
        for done, item in enumerate(items):
            if progress is not None:
                progress(done, len(items), item.key)
            left = float("inf") if budget_s is None else max(0.0, budget_s - (session.device.clock() - begun))
            settled = lockstep.settle(item, allowance(left, values[done:], 0))
            if self.leads:
                record(Result(item, settled, left_out=not settled.verdict.rounds))

    def _meanwhile(self) -> None:
        """While it waits for its turn, the leader writes down what has come."""
        writer = self._session.record.begun
        if isinstance(writer, GatheringWriter):
            writer.drain()


def _verdicts(every: Sequence[Done], settled_by: Mapping[str, int]) -> dict[str, Verdict]:
    """The verdicts of all ranks: of whoever settled a problem, else what the first that knows it found in the cache."""
    found: dict[str, Verdict] = {}
    for place, one in enumerate(every):
        for key, verdict in one.verdicts.items():
            if settled_by.get(key) == place or key not in found:
                found[key] = verdict
    return found
