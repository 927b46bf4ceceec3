"""A session: one engine start. Its blocks collect, serve what is known, race the rest, install and publish; one run file."""

from __future__ import annotations

import inspect
import logging
import math
import random
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from tunebook.devices import Device, device_of
from tunebook.envs import envs
from tunebook.errors import UsageError
from tunebook.integrations.flashinfer._install import Line, beside_runs, export, install
from tunebook.integrations.flashinfer._ledger import Ledger
from tunebook.integrations.flashinfer._meter import Entrant
from tunebook.integrations.flashinfer._package import Package, package
from tunebook.integrations.flashinfer._problems import Found, Problems, collecting, is_recording
from tunebook.integrations.flashinfer._race import race_problem
from tunebook.integrations.flashinfer._team import COMMUNICATING, Team
from tunebook.integrations.flashinfer._together import tune_together
from tunebook.integrations.flashinfer._verdict import verdict_of
from tunebook.measure import THOROUGH, Budget, Effort, allowance
from tunebook.records import Settings, Verdict
from tunebook.store import CacheContents, Location, Policy, publish, read_cache, resolve_policy
from tunebook.tuner import Outcome, RunRecord, log_policy

logger = logging.getLogger("tunebook.flashinfer")

#: A sample is a single call here, and at least a millisecond of calls elsewhere: it takes more of them to be as sure.
SINGLE_CALLS = Effort(max_rounds=80, accepted_loss=0.0015)


class Session:
    """FlashInfer's problems under tunebook, over any number of blocks: an engine's start may enter several.

    Arguments as of `autotune`. `outcome` tells what was done so far, `run` names the run file once there is one. `close`
    ends the run file; what was tuned is published at the end of each block.
    """

    def __init__(
        self,
        tune_mode: bool = True,
        cache: str | Path | None = None,
        *,
        policy: Policy | str | None = None,
        budget_s: float | None = None,
        flashinfer_cache: str | Path | None = None,
        unchecked_ops: Collection[str] = (),
        thorough: bool = False,
        seed: int | None = None,
        device: str | None = None,
    ) -> None:
        if budget_s is not None and not budget_s > 0:
            raise UsageError(f"budget_s={budget_s} is not a positive number of seconds")
        envs.check()
        resolved = resolve_policy(tune_mode, policy)
        self.package: Package = package()
        self.policy = resolved.policy
        self.outcome = Outcome()
        self.flashinfer_cache = None if flashinfer_cache is None else Path(flashinfer_cache).expanduser().absolute()
        self._device = device_of(device or _current_device())
        environment = self._device.environment()
        self.environment = msgspec.structs.replace(environment, soft={**environment.soft, **self.package.facts})
        self.location = Location.of(self.environment, cache)
        self._unchecked = frozenset(unchecked_ops)
        self._effort = THOROUGH if thorough else SINGLE_CALLS
        self._rng = random.Random(seed)
        budget_s = budget_s if budget_s is not None else envs.TUNEBOOK_BUDGET_S.get()
        self._budget_s = math.inf if budget_s is None else float(budget_s)
        contents: CacheContents | None = None
        if self.policy is not Policy.FRESH:
            contents = read_cache(self.location.cache, self.environment)
            self.outcome.misses += [str(miss) for miss in contents.misses if miss.kind != "absent"]
        self._ledger = Ledger(self.package, contents, self.outcome)
        self._record = RunRecord(
            self.location,
            self.environment,
            self.policy,
            Settings(cache=str(self.location.cache), budget_s=budget_s, seed=seed, thorough=thorough),
            lambda key, rejected: self.outcome.refused.append((key, rejected)),
            None,
            datetime.now,
            model="",
            fingerprint="",
            note=f"FlashInfer {self.package.version}",
        )
        self._lines: dict[str, Line] = {}
        self._v1_file: Path | None = None  # where everything is tuned afresh
        self._problems = Problems(self.package)
        self._team: Team | None = None
        self._options = {"policy": self.policy.value, "thorough": thorough, "unchecked_ops": sorted(self._unchecked)}
        self._looked_up: set[str] = set()
        self._silent: set[str] = set()
        log_policy(resolved, self.location)

    @property
    def installed(self) -> tuple[Line, ...]:
        """The winners that were installed and that a file of FlashInfer's can hold."""
        return tuple(self._lines.values())

    @property
    def run(self) -> str | None:
        """The run file, once something was tuned."""
        return self._record.path

    @contextmanager
    def autotune(self, **flashinfer: Any) -> Iterator[Session]:
        """A block: what is known serves in it, and on leaving it the rest is tuned, unless the block raises.

        `flashinfer` are further arguments of ``flashinfer.autotune``: tuning_buckets, round_up, skip_ops and, with 0.7,
        cuda_graph_profile_replays. None is as good as not given. Raises UsageError for one that the installed one has not.

        Where ``flashinfer.autotuner.set_autotune_process_group`` has set a group, each of its ranks enters the block, each
        problem is tuned by one of them, and all serve the same tactics. Raises RankError where one is lost, or fails, and
        UsageError, on all of them, where they were started with what contradicts each other.
        """
        takes = inspect.signature(self.package.module.autotune).parameters
        given = {name: value for name, value in flashinfer.items() if value is not None}
        for name in given:
            if name not in takes:
                raise UsageError(
                    f"{name}={given[name]!r}: FlashInfer {self.package.version} has no such argument; leave it out"
                )
        with self._joined(), self._fresh_problems():
            with self.package.module.autotune(False, **given), collecting(self.package, self._note):
                yield self
            with self.package.alone():
                self._tune()

    @contextmanager
    def _joined(self) -> Iterator[None]:
        """One of the ranks of FlashInfer's group, if it has one."""
        outer, group = self._team, self.package.group
        options = {**self._options, "FlashInfer": self.package.stamp}
        self._team = None if group is None else Team(group, self._device, self.environment, options)
        try:
            yield
        except BaseException as error:
            if self._team is not None:
                self._team.broken(error)
            raise
        finally:
            if self._team is not None:
                self._team.close()
            self._team = outer

    @contextmanager
    def _fresh_problems(self) -> Iterator[None]:
        outer, self._problems = self._problems, Problems(self.package)
        self._looked_up.clear()
        try:
            yield
        finally:
            self._problems = outer  # which lets go of the caller's tensors

    def close(self) -> None:
        """End the run file, if there is one."""
        if not self._record.ended:
            outcome = self.outcome
            path = str(self.location.cache) if outcome.published else ""
            self._record.finish(outcome.seconds, len(outcome.fresh), outcome.left_out, path)

    def _note(
        self, op: str, runners: Sequence[Any], config: Any, inputs: Sequence[Any], kwargs: dict[str, Any]
    ) -> None:
        try:
            new = self._problems.note(op, runners, config, inputs, kwargs)
            if self._team is None and not is_recording():  # ranks agree first on what serves
                for one in new:
                    self._look_up(one)
        except Exception as error:  # noqa: BLE001 - functions of the op; a call must not fail for being looked at
            if op not in self._silent:
                self._silent.add(op)
                self._ledger.miss(f"{op}: its calls cannot be collected: {type(error).__name__}: {error}")

    def _look_up(self, one: Found) -> None:
        """Install what is known of a problem, and see whether that settles it."""
        self._looked_up.add(one.key)
        known = self._ledger.known(one)
        if known is None:
            return
        serving, settled = self._ledger.judged(one, known)
        if serving.member is None:
            return
        self._install(one, *serving.member)
        if settled:
            self._ledger.settle(one, known)
        else:
            self._ledger.settled.discard(one.key)

    def _tune(self) -> None:
        found = self._problems.found
        self.outcome.seen += len(found)
        if self._team is not None:
            tune_together(self, self._team)
            return
        for one in found.values():
            if one.key not in self._looked_up:
                self._look_up(one)
        if self.policy is Policy.REPLAY:
            return
        untunable = self._untunable()
        todo = [one for one in found.values() if one.key not in self._ledger.settled and one.key not in untunable]
        todo.sort(key=lambda one: (-one.weight, one.key))
        started = self._device.clock()
        total = Budget(self._seconds_left(), self._device)
        weights = [one.weight for one in todo]
        fresh: dict[str, Verdict] = {}
        try:
            for place, one in enumerate(todo):
                seconds = 0.0 if total.over() else allowance(total.left(), weights, place)
                raced = self._race(one, seconds, self._device)
                if raced is not None:
                    verdict, member = raced
                    self._install(one, *member)
                    self._ledger.conclude(one, verdict)
                    fresh[one.key] = verdict
        finally:
            self.outcome.seconds += self._device.clock() - started
            self._publish(fresh)

    def _seconds_left(self) -> float:
        return max(0.0, self._budget_s - self.outcome.seconds)

    def _untunable(self) -> set[str]:
        """Problems that FlashInfer or this session could not tune soundly; each is named among the misses."""
        hidden = self._problems.overshadowed()
        reasons = {key: f"FlashInfer serves one entry for it and for {other}" for key, other in hidden.items()}
        for one in self._problems.found.values():
            if one.op in COMMUNICATING:
                reasons[one.key] = "its calls communicate, so FlashInfer has to time it"
            elif one.recorded:
                reasons[one.key] = "it was called while a CUDA graph was recorded, and never before"
        for key in reasons.keys() - self._ledger.settled:
            self._ledger.miss(f"{key}: not tuned: {reasons[key]}")
        return set(reasons)

    def _race(self, one: Found, seconds: float, device: Device) -> tuple[Verdict, tuple[int, Any]] | None:
        """The verdict on a problem, with its winner's runner and tactic; None where it is left out, which is said."""
        raced = self._raced(one, seconds, device) if seconds > 0 else None
        if raced is None or not raced[0].rounds:
            self.outcome.left_out += 1
            self._ledger.miss(f"{one.key}: {raced[0].note if raced else 'left out: the budget was spent'}")
            return None
        verdict, entrant = raced
        assert entrant is not None
        return verdict, (entrant.place, entrant.value)

    def _raced(self, one: Found, seconds: float, device: Device) -> tuple[Verdict, Entrant | None]:
        writer = self._record.writer()
        run = writer.path.name if writer.path else ""
        with self.package.tuner._lock, one.as_called():
            raced = race_problem(
                self.package,
                one,
                device,
                self._rng,
                lambda offered: self._record.journal.begin(one.key, offered, (), None),
                Budget(seconds, device),
                self._effort,
                checked=one.op not in self._unchecked,
            )
            cut = raced.result is not None and raced.result.stopped == "time"
            verdict = verdict_of(self.package, one, raced, self._ledger.incumbent(one.key), run, cut)
        writer.verdict(verdict)
        return verdict, None if raced.result is None else raced.entrants[verdict.winner]

    def _install(self, one: Found, place: int, tactic: Any) -> None:
        line = install(self.package, one, place, tactic)
        if line is not None:
            self._lines[one.key] = line
        else:
            self._lines.pop(one.key, None)
            self._ledger.miss(
                f"{one.key}: the winner is not in files of FlashInfer's: they know the first {one.names[0]} alone"
            )

    def _publish(self, fresh: dict[str, Verdict]) -> None:
        if fresh and self.policy is Policy.REUSE:
            published = publish(self.location, self.environment, fresh, {})
            if published.note:
                logger.warning("%s", published.note)
            if published.problem:
                self.outcome.not_published = published.problem
                logger.warning("the cache was not written: %s", published.problem)
            self.outcome.published |= published.written or not published.problem
        if self.flashinfer_cache is None or not self._lines or self.policy is Policy.REPLAY:
            return
        if self.policy is Policy.FRESH and self._v1_file is None:
            self._v1_file = beside_runs(self.flashinfer_cache, datetime.now())
            logger.info("FlashInfer's configurations go to %s", self._v1_file)
        problem = export(self.package, self._v1_file or self.flashinfer_cache, self._lines.values())
        if problem is not None:
            self.outcome.not_published = problem
            logger.warning("%s", problem)


def _current_device() -> str:
    import torch

    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
