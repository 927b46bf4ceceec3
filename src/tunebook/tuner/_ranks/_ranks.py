"""A session on one of several ranks: it starts as they do, shares the work, and ends with what all of them hold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from tunebook.devices import Device
from tunebook.dispatch import OPS
from tunebook.envs import envs
from tunebook.errors import RankError
from tunebook.measure import allowance, memory_limit
from tunebook.records import Plan, Problem, Tactic
from tunebook.tuner._outcome import Outcome
from tunebook.tuner._passes import Progress, Todo
from tunebook.tuner._passes import Report as Result
from tunebook.tuner._ranks._gather import gather
from tunebook.tuner._ranks._group import Group, of_a_collective
from tunebook.tuner._ranks._hello import Known, hello, meet, same_contents
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
        contents = self._session.recall.contents
        known = Known.of(contents)
        hellos = meet(self.group, hello(self._session, options, known, self.group.timeout))
        self.devices = [one.device for one in hellos]
        self._session.recall.contents = same_contents(self.group, hellos, known, contents)
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
        assert self._shares is not None
        self.group.enter("gathering results")
        gather(self.group, self._shares, self._session.record, self._session.selection, outcome)
        self.group.enter("planning")

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
