"""A session: one engine start. Collects, settles what the cache does not answer, records everything, publishes."""

from __future__ import annotations

import functools
import logging
import random
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tunebook.devices import Device, device_of
from tunebook.measure import CONTINUED, THOROUGH, USUAL
from tunebook.records import Environment, Plan, Rejected, Settings
from tunebook.store import Location, Policy, ResolvedPolicy, better_supported, resolve_policy
from tunebook.tuner._collect import Collection
from tunebook.tuner._entrants import Selection, answer
from tunebook.tuner._isolation import Isolate, Tally
from tunebook.tuner._measuring import Measuring
from tunebook.tuner._outcome import Outcome, log_policy
from tunebook.tuner._passes import Progress, Report
from tunebook.tuner._pending import pending
from tunebook.tuner._publication import Publication
from tunebook.tuner._recall import Recall
from tunebook.tuner._resumed import Resumed
from tunebook.tuner._run_record import RunRecord
from tunebook.tuner._tasks import tasks

if TYPE_CHECKING:
    from tunebook.tuner._ranks import Ranks

logger = logging.getLogger("tunebook.tuner")

# So long, in seconds, an interrupted session waits for others who hold the cache's lock; its results are safe beside it.
_INTERRUPTED_PATIENCE_S = 1.0


class Session:
    """Everything between the start of a tuning and its publication.

    `tune` may be called several times (an engine start enters several contexts): they share one run file.
    """

    def __init__(
        self,
        policy: ResolvedPolicy,
        *,
        cache: str | None = None,
        device: Device | None = None,
        selection: Selection | None = None,
        model: str = "",
        note: str = "",
        seed: int | None = None,
        continuing: bool = False,
        thorough: bool = False,
        fingerprint: str = "",
        settings: Settings | None = None,
        resumed: Resumed | None = None,
        isolate: Isolate | str | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.policy = policy.policy
        self.isolate = Isolate.of(isolate)
        self.first_runs = Tally()
        self.device = device or device_of("cpu")
        self.environment: Environment = self.device.environment()
        self.location = Location.of(self.environment, cache)
        self.selection = selection or Selection()
        self.model = model
        self.fingerprint = fingerprint
        self.note = note
        self.settings = msgspec.structs.replace(
            settings or Settings(),
            cache=str(self.location.cache),
            seed=seed,
            ops=self.selection.ops,
            skip_ops=self.selection.skip_ops,
            runners=self.selection.runners,
            continuing=continuing,
            thorough=thorough,
            isolate=self.isolate.value,
        )
        self.continuing = continuing
        self.effort = THOROUGH if thorough else CONTINUED if continuing else USUAL
        self.rng = random.Random(seed)
        self._started = self.device.clock()
        self.outcome = Outcome()
        self._settled = resumed.settled if resumed is not None else 0
        self._left_out = 0
        self._published = ""
        self._resolved = policy
        self._resumed = resumed
        self.ranks: Ranks | None = None  #: the others, where several ranks tune together
        self.recall = Recall(
            self.policy, self.location, self.environment, self.selection, resumed, continuing=continuing
        )
        self.record = RunRecord(
            self.location,
            self.environment,
            self.policy,
            self.settings,
            self._refused,
            resumed,
            now,
            model=model,
            fingerprint=fingerprint,
            note=note,
            mhz=getattr(self.device, "mhz", lambda: None),
        )
        self._measuring = Measuring(
            self.device, self.rng, self.effort, self.selection, self.isolate, self.record, continuing, self.first_runs
        )
        self._publication = Publication(self.policy, self.location, self.environment, self.recall, self.record)

    @classmethod
    def resume(
        cls,
        path: Path | str,
        *,
        device: Device | None = None,
        model: str = "",
        fingerprint: str = "",
        now: Callable[[], datetime] = datetime.now,
    ) -> Session:
        """The session that wrote the run at `path`, to go on in it: as it was asked for, with all that it measured.

        Raises StoreError, in one line, for a run that cannot go on here.
        """
        device = device or device_of("cpu")
        environment = device.environment()
        resumed = Resumed.open(path, environment, fingerprint, model)
        header, settings = resumed.header, resumed.settings
        usual = str(Location.of(environment).cache) == settings.cache
        policy = replace(resolve_policy(True, header.policy), why=f"as the run {resumed.path.name} was")
        return cls(
            policy,
            cache=None if usual else settings.cache,
            device=device,
            selection=resumed.selection,
            model=header.model,
            note=header.note,
            seed=settings.seed,
            continuing=settings.continuing,
            thorough=settings.thorough,
            isolate=settings.isolate or None,
            fingerprint=header.fingerprint,
            settings=settings,
            resumed=resumed,
            now=now,
        )

    def join(self, group: object, options: Mapping[str, object]) -> Ranks:
        """Tune together with the other ranks of a process group from now on. `options` are what all were asked for, by name.

        Raises UsageError, on every rank, for options and environments that contradict each other; RankError for a rank
        that does not come.
        """
        from tunebook.tuner._ranks import Ranks

        self.ranks = Ranks(self, group, options)
        self.recall.together = True
        return self.ranks

    @property
    def spent(self) -> float:
        """Seconds that were measured before the run was resumed."""
        return self._resumed.spent if self._resumed is not None else 0.0

    def announce(self) -> None:
        """Log under which policy, by whose decision and with which cache this session runs, and what of the cache is missed."""
        log_policy(self._resolved, self.location)
        for miss in self.recall.misses:
            logger.log(logging.INFO if miss.kind == "absent" else logging.WARNING, "cache miss: %s", miss)
        if pins := self.recall.pinned.pins.tactics:
            logger.info("%d pins in %s go before the cache", len(pins), self.recall.pinned.pins.path)
        if self._resumed is not None:
            logger.info(
                "the run %s goes on: %d problems are settled in it, %.1f s were measured",
                self._resumed.path,
                self._resumed.settled,
                self._resumed.spent,
            )

    @property
    def run_problem(self) -> str | None:
        """Why the run file is missing or not complete, or None."""
        return self.record.problem

    @property
    def run_path(self) -> str | None:
        """The run file, once something was tuned."""
        return self.record.path

    def tune(self, collection: Collection, budget_s: float | None, progress: Progress | None = None) -> Outcome:
        """Settle what was collected. With REPLAY nothing is measured; what is not known keeps the default."""
        started = self.device.clock()
        outcome = self.outcome = Outcome()
        todo = pending(collection, self.policy, self.selection, self.recall, self._resumed, outcome)
        if self.ranks is not None:
            todo, budget_s = self.ranks.share(tasks(collection), todo, budget_s, self._record, progress)
        self._measuring.settle(todo, collection, outcome.verdicts, budget_s, self._record, progress, self.ranks)
        if self.ranks is not None:
            self.ranks.gather(outcome)
            self._settled = outcome.tuned
        outcome.seconds = self.device.clock() - started
        self._left_out += outcome.left_out
        return outcome

    def _record(self, report: Report) -> None:
        """Put a result into the run file and the outcome. A former verdict that still serves is not replaced by a lesser one."""
        writer, outcome, key, verdict = self.record.writer(), self.outcome, report.todo.key, report.settled.verdict
        if report.left_out and self._resumed is not None and self._resumed.decided(key):
            outcome.resumed += 1  # what was decided before the interruption stands
            return
        outcome.left_out += report.left_out
        if report.left_out and report.todo.serving is not None:
            return
        if not report.left_out and not report.again:
            outcome.fresh.append(key)
            self._settled += 1
        if report.todo.serving is not None and better_supported(report.todo.serving, verdict):
            return
        writer.verdict(verdict, open=report.settled.open is not None)
        task = report.todo.task
        outcome.verdicts[key] = verdict
        outcome.members[key] = answer(verdict, task.spec, task.family.layers[0].default_version, self.selection).members
        logger.debug("%s: %s, %.2fx the default", key, verdict.winner, verdict.speedup)

    def _refused(self, key: str, rejected: Rejected) -> None:
        if rejected.reason != "unavailable":
            self.outcome.refused.append((key, rejected))

    def propose(self, plan: Plan) -> None:
        """Put a plan into the run file before it is proven; an interruption of the proof leaves it."""
        self._publication.propose(plan)

    def publish(self, outcome: Outcome, plan: Plan | None = None, *, patience: float | None = None) -> None:
        """Put verdicts and plan into the run file and, with REUSE, into the cache; of several ranks one does.

        `patience` is how many seconds others who hold the cache's lock are waited for (None: as many as the store does).
        """
        publish = functools.partial(self._publication.publish, outcome, plan, patience)
        path = publish() if self.ranks is None else self.ranks.publish(outcome, plan, publish)
        self._published = path or self._published

    def interrupt(self, error: BaseException) -> None:
        """Keep what was reached before an interruption, and note on the error how to go on.

        The race that was under way is judged by what it has. With REUSE all verdicts are published, and the plan, unverified,
        where the cache holds none; others who hold the cache's lock are hardly waited for. The run file is closed without its
        last line.
        """
        try:
            report = self._measuring.by_now()
            if report is not None:
                self._record(report)
        except Exception as fault:  # noqa: BLE001 - its samples are in the run file; what was decided before is published
            logger.warning("the race that was under way was not judged: %s", fault)
        lost = self.ranks.broken(error, self.outcome) if self.ranks is not None else None
        self.publish(self.outcome, self._publication.unproven, patience=_INTERRUPTED_PATIENCE_S)
        if self.record.begun is not None and not self.record.ended:
            self.record.begun.close()
            logger.warning("interrupted: %d problems were tuned, run file %s", self._settled, self.run_path)
        going_on = self.ranks is None and not self.record.ended
        if self.run_path is not None and self.run_problem is None and going_on:
            error.add_note(self._remedy(self.run_path))
        if lost is not None:
            raise lost from error

    def _remedy(self, path: str) -> str:
        """How an interrupted tuning goes on."""
        if self.settings.source:
            files = "".join(f" --with {shlex.quote(file)}" for file in self.settings.files)
            return f"go on with: tunebook tune --resume {shlex.quote(path)}{files}"
        return f"go on with: {'runner.autotune' if self.model else 'tunebook.autotune'}(resume={path!r})"

    def finish(self) -> None:
        """Write the run file's last line, and log how it went."""
        seconds = self.device.clock() - self._started + self.spent
        self.record.finish(seconds, self._settled, self._left_out, self._published)
        if self.ranks is not None:
            self.ranks.close()
        logger.info(
            "autotune completed: %d problems tuned in %.1f s, %d from the cache, %d left out, run file %s",
            self._settled,
            seconds,
            self.outcome.cached,
            self._left_out,
            self.run_path or "none",
        )
        if self.policy is Policy.FRESH and self.record.begun is not None:
            logger.warning(
                "cache reuse is off: this tuning cost %.1f s and every start will cost as much again; "
                "unset the variable (or drop --fresh) to reuse the cache",
                seconds,
            )
