"""A session: one engine start. Collects, settles what the cache does not answer, records everything, publishes."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

from tunebook.devices import Device, device_of
from tunebook.dispatch import tensor_bytes
from tunebook.envs import envs
from tunebook.measure import CONTINUED, THOROUGH, USUAL, Budget, memory_limit
from tunebook.ops import OpSpec
from tunebook.records import (
    Environment,
    Footer,
    Header,
    Member,
    Plan,
    Problem,
    Rejected,
    Verdict,
)
from tunebook.store import (
    CacheContents,
    Location,
    Miss,
    Policy,
    ResolvedPolicy,
    RunWriter,
    new_session_id,
    publish,
    read_cache,
)
from tunebook.tuner._collect import Collection
from tunebook.tuner._entrants import Answer, Selection, answer, available_runners
from tunebook.tuner._held import Held, held_bytes
from tunebook.tuner._outcome import Outcome, log_policy
from tunebook.tuner._passes import Passes, Progress, Report, Todo
from tunebook.tuner._tasks import tasks
from tunebook.tuner._tune import ProblemTuner
from tunebook.tuner._worth import surer

logger = logging.getLogger("tunebook.tuner")


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
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.policy = policy.policy
        self.device = device or device_of("cpu")
        self.environment: Environment = self.device.environment()
        self.location = Location.of(self.environment, cache)
        self.selection = selection or Selection()
        self.model = model
        self.note = note
        self.continuing = continuing
        self.effort = THOROUGH if thorough else CONTINUED if continuing else USUAL
        self.rng = random.Random(seed)
        self.contents: CacheContents | None = None
        self._now = now
        self._writer: RunWriter | None = None
        self._id = new_session_id()
        self._started = self.device.clock()
        self.outcome = Outcome()
        self._settled = 0
        self._left_out = 0
        self._published = ""
        self._resolved = policy
        if self.policy is not Policy.FRESH:
            self.contents = read_cache(self.location.cache, self.environment)

    @property
    def misses(self) -> tuple[Miss, ...]:
        """What of the cache cannot be served; entries that are bad are known once they were looked up."""
        return self.contents.misses if self.contents else ()

    def announce(self) -> None:
        """Log under which policy, by whose decision and with which cache this session runs, and what of the cache is missed."""
        log_policy(self._resolved, self.location)
        for miss in self.misses:
            logger.log(logging.INFO if miss.kind == "absent" else logging.WARNING, "cache miss: %s", miss)

    def serving(self, ops: Mapping[str, tuple[OpSpec, str]]) -> tuple[dict[str, tuple[Member, ...]], list[str]]:
        """What the cache can answer without a call: the members that may serve, by problem; each miss in words (logged too).

        `ops` gives each op with the version of its default.
        """
        found: dict[str, tuple[Member, ...]] = {}
        misses: list[str] = []
        for key in self.contents.verdicts if self.contents else ():
            spec, default_version = ops.get(Problem.parse(key).op, (None, ""))
            known = self.known(key, spec, default_version) if spec else None
            misses += [f"{key}: {note}" for note in (known.notes if known else ("the op is not declared here",))]
            if known is not None and known.members:
                found[key] = known.members
        for note in misses:
            logger.info("cache miss: %s", note)
        return found, misses

    @property
    def run_problem(self) -> str | None:
        """Why the run file is missing or not complete, or None."""
        return self._writer.problem if self._writer is not None else None

    @property
    def run_path(self) -> str | None:
        """The run file, once something was tuned."""
        return str(self._writer.path) if self._writer is not None and self._writer.path is not None else None

    def plan_of(self, fingerprint: str) -> Plan | None:
        """What the cache remembers of a model's plan; never under FRESH."""
        return self.contents.plans.get(fingerprint) if self.contents else None

    def verdict_of(self, key: str) -> Verdict | None:
        return self.contents.verdicts.get(key) if self.contents else None

    def known(self, key: str, spec: OpSpec, default_version: str) -> Answer | None:
        """What the cache answers for a problem, or None where it holds nothing about it."""
        verdict = self.verdict_of(key)
        if verdict is None:
            return None
        known = answer(verdict, spec, default_version, self.selection)
        if self.continuing and verdict.status == "unresolved":
            every = tuple(name for name in available_runners(spec) if self.selection.takes_runner(name))
            return replace(known, changed=every, notes=(*known.notes, "unresolved: the tuning goes on"))
        return known

    def tune(self, collection: Collection, budget_s: float | None, progress: Progress | None = None) -> Outcome:
        """Settle what was collected. With REPLAY nothing is measured; what is not known keeps the default."""
        started = self.device.clock()
        outcome = self.outcome = Outcome()
        todo: list[Todo] = []
        for task in tasks(collection):
            key = task.problem.key
            outcome.seen += 1
            outcome.weights[key] = task.weight
            layer = task.family.layers[0]
            known = self.known(key, task.spec, layer.default_version)
            if known is not None:
                outcome.misses += [f"{key}: {note}" for note in known.notes]
                if known.tactic is not None:
                    outcome.members[key] = known.members
                    outcome.verdicts[key] = self.contents.verdicts[key]  # type: ignore[union-attr]  # known came from it
            takes = self.selection.takes_op(task.spec.name)
            if (known is not None and known.complete) or not takes or self.policy is Policy.REPLAY:
                outcome.cached += known is not None and known.tactic is not None
                continue
            todo.append(Todo(task, known, self.verdict_of(key)))
        for note in outcome.misses:
            logger.info("cache miss: %s", note)
        layers = [layer.constants for family in collection.families.values() for layer in family.layers]
        self._settle(todo, outcome, budget_s, tensor_bytes(layers), progress)
        outcome.seconds = self.device.clock() - started
        self._left_out += outcome.left_out
        return outcome

    def _settle(
        self,
        todo: list[Todo],
        outcome: Outcome,
        budget_s: float | None,
        weights: int,
        progress: Progress | None,
    ) -> None:
        if not todo:
            return
        writer = self.writer()
        free = self.device.free_memory()
        tuner = ProblemTuner(
            self.device,
            self.rng,
            memory_limit=memory_limit(free, envs.TUNEBOOK_MEMORY_LIMIT_GB.get()),
            held=Held(held_bytes(memory_limit(free, None), weights)),
            effort=self.effort,
            run=writer.path.name if writer.path else "",
        )
        budget = Budget(budget_s, self.device)
        passes = Passes(tuner, budget, self.selection, self._record, progress, continuing=self.continuing)
        passes.run(todo, outcome.verdicts)

    def _record(self, report: Report) -> None:
        """Put a result into the run file and the outcome. A former verdict that still serves is not replaced by a lesser one."""
        writer, outcome, key, verdict = self.writer(), self.outcome, report.todo.key, report.settled.verdict
        outcome.left_out += report.left_out
        if report.left_out and report.todo.serving is not None:
            return
        for trial in report.settled.trials:
            writer.trial(key, trial)
            if isinstance(trial, Rejected) and trial.reason != "unavailable":
                outcome.refused.append((key, trial))
        if not report.left_out and not report.again:
            outcome.fresh.append(key)
            self._settled += 1
        if report.todo.serving is not None and surer(report.todo.serving, verdict):
            return
        writer.verdict(verdict)
        task = report.todo.task
        outcome.verdicts[key] = verdict
        outcome.members[key] = answer(verdict, task.spec, task.family.layers[0].default_version, self.selection).members
        logger.debug("%s: %s, %.2fx the default", key, verdict.winner, verdict.speedup)

    def publish(self, outcome: Outcome, plan: Plan | None = None) -> None:
        """Put verdicts and plan into the run file and, with REUSE, into the cache."""
        if plan is not None and self._writer is not None:
            self._writer.plan(plan)
        fresh = {key: v for key, v in outcome.verdicts.items() if self.verdict_of(key) != v}
        unchanged = plan is None or self.plan_of(plan.fingerprint) == plan
        if self.policy is not Policy.REUSE or (not fresh and unchanged):
            return
        plans = {} if plan is None else {plan.fingerprint: plan}
        published = publish(self.location, self.environment, fresh, plans)
        if published.note:
            logger.warning("%s", published.note)
        if published.problem:
            outcome.not_published = published.problem
            logger.warning(
                "the cache %s: %s", "lacks a part" if published.written else "was not written", published.problem
            )
        if published.written or not published.problem:
            outcome.published = True
            self._published = str(published.path)

    def writer(self) -> RunWriter:
        """The session's run file, created when first needed."""
        if self._writer is None:
            from tunebook._version import __version__

            now = self._now()
            header = Header(
                session=self._id,
                started=now.isoformat(timespec="seconds"),
                policy=self.policy.value,
                environment=self.environment,
                version=__version__,
                model=self.model,
                command=tuple(sys.argv),
                note=self.note,
            )
            self._writer = RunWriter.create(self.location.runs, self.location.cache.stem, header, now)
        return self._writer

    def interrupt(self) -> None:
        """Keep what was settled before an interruption: publish it, and close the run file without its last line."""
        self.publish(self.outcome)
        if self._writer is not None:
            self._writer.close()
            logger.warning("interrupted: %d problems were tuned, run file %s", self._settled, self.run_path)

    def finish(self) -> None:
        """Write the run file's last line, and log how it went."""
        seconds = self.device.clock() - self._started
        if self._writer is not None:
            self._writer.finish(
                Footer(
                    finished=self._now().isoformat(timespec="seconds"),
                    seconds=seconds,
                    problems=self._settled,
                    left_out=self._left_out,
                    published=self._published,
                )
            )
        logger.info(
            "autotune completed: %d problems tuned in %.1f s, %d from the cache, %d left out, run file %s",
            self._settled,
            seconds,
            self.outcome.cached,
            self._left_out,
            self.run_path or "none",
        )
        if self.policy is Policy.FRESH and self._writer is not None:
            logger.warning(
                "cache reuse is off: this tuning cost %.1f s and every start will cost as much again; "
                "unset the variable (or drop --fresh) to reuse the cache",
                seconds,
            )
