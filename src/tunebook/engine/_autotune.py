"""`autotune`: the block in which calls are collected, and on whose end they are tuned, published and served."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from tunebook.devices import Device, device_of
from tunebook.dispatch import BINDINGS, COUNTING, FREE, OPS, Scope, collecting, is_released, snapshot, tensor_bytes
from tunebook.engine._resume import refuse_other
from tunebook.engine._threads import set_threads
from tunebook.envs import envs
from tunebook.errors import UsageError
from tunebook.ops import OpSpec
from tunebook.plan import FREE_SHARE, Choices, Knowledge, MemoryLimit, Room, install, make, prepare
from tunebook.records import Problem, Settings, Tactic
from tunebook.store import Policy, ResolvedPolicy, read_run, resolve_policy
from tunebook.tuner import Collection, Isolate, Outcome, Progress, Selection, Session

logger = logging.getLogger("tunebook.engine")


class autotune:  # noqa: N801 - used as `with tb.autotune():`, like the standard library's context managers
    """Collect the calls of tunable ops in the block, and tune them on leaving it.

    tune_mode:  False never tunes: what the cache knows serves, in the block already, the rest runs the default (REPLAY).
    cache:      the cache file; by default ``winners.json`` of this environment under TUNEBOOK_CACHE_DIR.
    policy:     a `Policy` or its name; an argument beats the environment variables, these beat the default (REUSE).
    budget_s:   seconds of wall clock for the tuning; by default TUNEBOOK_BUDGET_S.
    only_ops, skip_ops, only_runners: narrow what is tuned; the default and the incumbent always race.
    isolate:    which tactics are first run in a worker process: "unproven", "always" or "never"; by default TUNEBOOK_ISOLATE.

    resume:     the run file of a block that was interrupted: it goes on in that file, as it was asked for. What the file holds
                of the problems that this block meets is not measured again.
    device:     where the calls in the block run, "cpu" or as torch calls it ("cuda:0"); calls on another one are not tuned.
    group:      a process group of torch.distributed: all its ranks enter the block, share the work, and hold the same result;
                one of them keeps the files. See docs/ranks.md.

    An exception inside the block tunes nothing, and what was known stays. A block inside a block joins the outer one: the
    outermost tunes when it is left; inner arguments must not differ from the outer ones. Blocks one after another are
    separate tunings with a run file each. Calls from any thread are collected while a block is open.

    Ctrl-C while it tunes keeps what was reached, in the cache and the run file; a note on the exception says how to go on.

    Raises ValueError (UsageError) for ``tune_mode=False`` with another policy, for a nested block that differs, for the name
    of an op or a runner that nothing has, and for an argument that contradicts the run that is resumed, or another rank;
    StoreError for a run that cannot go on here; RankError where another rank fails, dies or falls silent.
    After the block, `outcome` tells what was done and `run` names the run file.
    """

    _open: autotune | None = None

    def __init__(
        self,
        tune_mode: bool = True,
        cache: str | Path | None = None,
        *,
        policy: Policy | str | None = None,
        budget_s: float | None = None,
        only_ops: Sequence[str] = (),
        skip_ops: Sequence[str] = (),
        only_runners: Sequence[str] = (),
        progress: Progress | None = None,
        seed: int | None = None,
        isolate: Isolate | str | None = None,
        resume: str | Path | None = None,
        group: object = None,
        device: Device | str = "cpu",
    ) -> None:
        if resume is not None and group is not None:
            raise UsageError(f"resume={resume} with group=…: a run goes on in one process; leave one of the two out")
        if budget_s is not None and not budget_s > 0:
            raise UsageError(f"budget_s={budget_s} is not a positive number of seconds")
        envs.check()
        self.policy: ResolvedPolicy = resolve_policy(tune_mode, policy)
        self.cache = None if cache is None else str(cache)
        self.budget_s = budget_s
        self.selection = Selection(tuple(only_ops), tuple(skip_ops), tuple(only_runners))
        self.outcome: Outcome | None = None
        self.run: str | None = None
        self.isolate = Isolate.of(isolate)
        self.device = device_of(device) if isinstance(device, str) else device
        self.resume = resume
        self.group = group
        self._progress = progress
        self._seed = seed
        narrowed = self.selection != Selection()
        self._explicit = (
            policy is not None or not tune_mode,
            cache is not None,
            budget_s is not None,
            narrowed,
            isolate is not None,
            group is not None,
            device != "cpu",
        )
        self._stack = ExitStack()
        self._outer: autotune | None = None

    def __enter__(self) -> autotune:
        outer = autotune._open
        if outer is not None:
            self._join(outer)
            return self
        self.selection.check(dict(OPS))
        set_threads(None)
        device = self.device
        self.session = self._resumed(device) if self.resume is not None else self._session(device)
        COUNTING.beside(FREE.name, self.session.location)
        self.session.announce()
        if self.group is not None:
            self.session.join(self.group, {"budget_s": self.session.settings.budget_s, "isolate": self.isolate.value})
        self.collection = Collection(device)
        if self.policy.policy is Policy.REPLAY:
            self._serve_cached()
            autotune._open = self
            return self
        for binding in snapshot(BINDINGS):  # the defaults are what everything is compared with
            binding.restore()
        self._stack.enter_context(collecting(self.collection))
        autotune._open = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._outer is not None:
            self._outer = None
            return
        autotune._open = None
        self._stack.close()
        if kind is not None:
            logger.info("autotune: the block ended with %s; nothing is tuned, what was known stays", kind.__name__)
            if self.session.ranks is not None and error is not None:
                lost = self.session.ranks.broken(error, Outcome())
                if lost is not None:
                    raise lost from error
            return
        if self.policy.policy is Policy.REPLAY:
            return
        budget = self.session.settings.budget_s
        left = None if budget is None else max(0.0, budget - self.session.spent)
        try:
            self.outcome = self.session.tune(self.collection, left, self._progress)
            ranks, free = self.session.ranks, self.collection.device.free_memory()
            free = free if ranks is None else ranks.least(free)
            for scope in (*self.collection.scopes.values(), *([FREE] if ranks is not None else ())):
                scope.move(self.device.name.partition(":")[0])
            for scope in self.collection.scopes.values():
                serve(scope, self.outcome, self.collection, free)
            if ranks is not None:
                serve_unmet(self.outcome, self.collection)
            self.session.publish(self.outcome)
            self.session.finish()
        except BaseException as fault:  # an interruption, or a fault of the model's own: what was settled is kept
            self.session.interrupt(fault)
            raise
        self.run = self.session.run_path

    def _session(self, device: Device) -> Session:
        budget = self.budget_s if self.budget_s is not None else envs.TUNEBOOK_BUDGET_S.get()
        return Session(
            self.policy,
            cache=self.cache,
            device=device,
            selection=self.selection,
            seed=self._seed,
            isolate=self.isolate,
            settings=Settings(budget_s=budget),
        )

    def _resumed(self, device: Device) -> Session:
        """The session of the run that goes on, as it was asked for."""
        assert self.resume is not None
        refuse_other(
            self.resume,
            read_run(self.resume).header,
            policy=self.policy if self._explicit[0] else None,
            cache=self.cache,
            budget_s=self.budget_s,
            selection=None if self.selection == Selection() else self.selection,
            seed=self._seed,
            isolate=self.isolate if self._explicit[4] else None,
        )
        session = Session.resume(self.resume, device=device)
        self.policy = replace(self.policy, policy=session.policy)
        return session

    def _serve_cached(self) -> None:
        """REPLAY: what the cache answers serves from now on, in the block already; nothing is collected."""
        found, misses = self.session.recall.serving(default_versions())
        tactics = {key: Tactic.parse(members[0].tactic) for key, members in found.items()}
        if self.session.ranks is not None:
            try:
                tactics = self.session.ranks.served_alike(tactics)
            finally:
                self.session.ranks.close()
        kind = self.device.name.partition(":")[0]
        FREE.move(kind)
        for scope in {
            id(scope): scope for scope in (FREE, *(binding.scope for binding in snapshot(BINDINGS)))
        }.values():
            if scope.device == kind:
                scope.install(tactics)
        self.outcome = Outcome(seen=len(found), cached=len(found), misses=misses, members=found)

    def _join(self, outer: autotune) -> None:
        mine = (
            self.policy.policy,
            self.cache,
            self.budget_s,
            self.selection,
            self.isolate,
            self.group,
            self.device.name,
        )
        theirs = (
            outer.policy.policy,
            outer.cache,
            outer.budget_s,
            outer.selection,
            outer.isolate,
            outer.group,
            outer.device.name,
        )
        names = ("policy", "cache", "budget_s", "selection", "isolate", "group", "device")
        for name, explicit, one, other in zip(names, self._explicit, mine, theirs, strict=True):
            if explicit and one != other:
                raise UsageError(f"autotune inside autotune: {name}={one} differs from the outer block's {other}")
        self._outer = outer


def default_versions() -> dict[str, tuple[OpSpec, str]]:
    """Every op with the version of its default: the attached models' own where there are any, else the op's."""
    found: dict[str, tuple[OpSpec, str]] = {name: (op, op.default_version) for name, op in OPS.items()}
    for binding in snapshot(BINDINGS):
        if binding.default_version and binding.scope is not FREE:
            found[binding.spec.name] = (binding.spec, binding.default_version)
    return found


#: What the blocks of this process have settled, by scope: a later block adds to what an earlier one tuned.
_KNOWN: weakref.WeakKeyDictionary[Scope, Knowledge] = weakref.WeakKeyDictionary()


def serve_unmet(outcome: Outcome, collection: Collection) -> None:
    """Serve what other ranks met of free-standing ops, and this one did not: it may be called here later."""
    met = {family.name for family in collection.families.values()}
    FREE.install(
        {
            key: tactic
            for key, tactic in outcome.tactics.items()
            if (problem := Problem.parse(key)).op in OPS and problem.family not in met
        }
    )


def serve(scope: Scope, outcome: Outcome, collection: Collection, free: int) -> Choices:
    """Make a scope's plan from all that is known about it, and install it. `free` bytes of memory can be had."""
    # free-standing ops may be declared anew: their scope itself keeps what earlier blocks installed
    known = Knowledge() if scope is FREE else _KNOWN.setdefault(scope, Knowledge())
    known.learn(outcome, collection, scope)
    choices = make(known, _room(scope, free))
    install(scope, choices, known.families)
    prepare(choices, known.families, releasing=True)
    return choices


def _room(scope: Scope, free: int) -> Room:
    """What a scope's plan may hold beside its own weights; all that it does hold counts as free."""
    text = envs.TUNEBOOK_MEMORY_LIMIT.get()
    limit = MemoryLimit() if text is None else MemoryLimit.parse(text, "TUNEBOOK_MEMORY_LIMIT")
    bindings = scope.bindings
    weights = {id(v): v for binding in bindings for v in binding.constants if not is_released(v)}
    released = sum(binding.releasable for binding in bindings if binding.released)
    free += sum(binding.prepared.bytes for binding in bindings) - released
    try:
        beside = limit.beside(tensor_bytes(list(weights.values())) + released)
    except UsageError as error:  # what was tuned is not lost for it
        logger.warning("nothing is prepared: %s", error)
        beside = 0
    return Room(int(min(beside, FREE_SHARE * free)))
