"""A binding: an op with its constants (one layer's weights), and the hot path from a call to the tactic that serves it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from tunebook.dispatch._caller import Call, Table, fast_entry, make_caller, signature
from tunebook.dispatch._calls import counting, on_contiguous, requires_grad_of, versions, with_constants
from tunebook.dispatch._collecting import BINDINGS, collector
from tunebook.dispatch._coverage import Coverage
from tunebook.dispatch._originals import converted, fill, is_released, release, restored, tensors_of
from tunebook.dispatch._prepared import Prepared
from tunebook.dispatch._scope import FREE, Scope
from tunebook.errors import OpError
from tunebook.ops import Description, OpSpec
from tunebook.records import DEFAULT, Problem, Tactic

logger = logging.getLogger("tunebook.dispatch")

#: What describing arguments that are no call of the op may raise.
UNDESCRIBED = (OpError, AttributeError, TypeError, IndexError, ValueError)
#: One binding keeps at most this many resolved signatures; then it begins anew.
MAX_KEPT = 1 << 16


class _Chosen(NamedTuple):
    """What serves a call: `tactic`, of another bucket if it is `lent`; without one the default, of which nothing was said."""

    call: Call
    tactic: Tactic | None = None
    lent: bool = False


class Binding:
    """Calls of an op with the same constants.

    A call looks its signature up in `table` and runs what it finds. What the table does not hold is resolved once:
    problem, tactic, prepared weights, guards; the callable is then kept under that signature. `default` replaces the op's
    own default function (an attached module's original forward); `default_version` identifies it.
    """

    def __init__(
        self,
        spec: OpSpec,
        constants: tuple[Any, ...] = (),
        *,
        scope: Scope = FREE,
        name: str = "",
        default: Call | None = None,
        default_version: str = "",
    ) -> None:
        if len(constants) != len(spec.constants):
            raise OpError(f"op {spec.name} has constants ({', '.join(spec.constants)}), {len(constants)} were given")
        self.spec = spec
        self.constants = constants
        self.scope = scope
        self.name = name
        self.default: Call = default or with_constants(spec.function, len(spec.dynamic), constants)
        self.default_version = default_version
        self.prepared = Prepared()
        self.versions = versions(constants)
        #: What releasing the constants would free, in bytes; 0 unless whoever owns them allows it.
        self.releasable = 0
        #: The tactic whose prepared weights the released constants can be made from again.
        self.source: Tactic | None = None
        self.followers: list[Callable[[], Any]] = []  #: called when the constants' memory moves
        self._tables = {True: Table(), False: Table()}
        self.table = Table()
        self.fast = self.table.fast
        #: The position of the one argument that tells all; without it each is looked at.
        self.lead = spec.dynamic.index(spec.lead) if spec.lead else 0 if len(spec.dynamic) == 1 else None
        self._coverage = (
            Coverage(scope, self.lead, self._problem_of, steps=scope is not FREE) if Coverage.wanted() else None
        )
        scope.add(self)
        BINDINGS.add(self)
        self.switch()

    def caller(self) -> Call:
        """The function to call, of the op's dynamic arguments. It follows what this binding serves."""
        return make_caller(self, [self.spec.signature.parameters[name] for name in self.spec.dynamic])

    def wants_grad(self) -> bool:
        """Whether a constant asks for a gradient: no tactic gives one."""
        return requires_grad_of(self.constants)

    def asks_grad(self, args: tuple[Any, ...]) -> bool:
        """Whether an argument or a constant asks for a gradient."""
        return requires_grad_of(args) or self.wants_grad()

    def _unfit(self, args: tuple[Any, ...]) -> str:
        """Why no tactic may serve a call right now, whatever its shapes; empty where one may."""
        import torch

        if torch.is_grad_enabled() and self.asks_grad(args):
            return "default: gradients are on (use torch.inference_mode())"
        return "default: autocast is on" if torch._C._is_any_autocast_enabled() else ""

    def resolve(self, args: tuple[Any, ...]) -> Call:
        """The callable for these arguments, kept for the next call where that is safe. Never raises for what is not tuned."""
        by = collector()
        if by is not None:
            return by.note(self, args)
        unfit = self._unfit(args)
        if unfit:
            call = self._counted(unfit, self.default)
            return call if self._coverage is None else self._coverage.unfit(args, call)
        table = self.table  # what is resolved under one state must not be kept under another
        call, tactic, lent = self._choose(args, tuned=table is self._tables[True])
        if self.scope.recording:
            call = self._recorded(args, call)
        if self._coverage is not None:
            call = self._coverage.counted(args, call, tactic, lent)
        try:
            key = signature(args, self.lead)
            if len(table.full) >= MAX_KEPT:
                table.clear()
            table.full[key] = call
            entry = fast_entry(args, self.lead, call)
            if entry is not None:
                table.fast.setdefault(*entry)
        except (AttributeError, TypeError):  # no tensor, or nothing that can be hashed: resolved again at each call
            pass
        return call

    def _choose(self, args: tuple[Any, ...], tuned: bool) -> _Chosen:
        if not tuned:
            return _Chosen(self.default)
        if any(value.device.type != self.scope.device for value in args if hasattr(value, "device")):
            return _Chosen(self._counted("default: not tuned on this device", self.default))
        try:
            description, problem = self._problem(args)
        except UNDESCRIBED as error:
            return _Chosen(self._counted(f"default: {error}", self.default, once=True))
        tactic = None if problem is None else self.scope.lookup(problem.key)
        if tactic is None and self.source is not None:
            return _Chosen(*self._general(problem), lent=True)
        if problem is None:
            return _Chosen(self._counted("default: no bucket for this size", self.default))
        if tactic is None:
            return _Chosen(self._counted("default: not tuned", self.default))
        try:
            call = self.bound(tactic)
        except Exception as error:  # noqa: BLE001 - preparing runs a runner's own code; serving must go on without it
            logger.warning("%s: %s cannot be prepared, the default serves: %s", problem.key, tactic.name, error)
            return _Chosen(self._counted("default: preparing failed", self.default))
        if tactic == DEFAULT:
            return _Chosen(call, tactic)
        if not all(value.is_contiguous() for value in args if hasattr(value, "is_contiguous")):
            call = on_contiguous(call)
        if problem is not None and any(description.sizes[dim.name] != dim.size for dim in problem.dims):
            call = self._counted("bucket", call)
        return _Chosen(call, tactic)

    def _problem(self, args: tuple[Any, ...]) -> tuple[Description, Problem | None]:
        description = self.spec.shape.describe((*args, *self.constants))
        return description, self.spec.shape.problem(description, self.scope.measurement)

    def _problem_of(self, args: tuple[Any, ...]) -> Problem | None:
        """The problem of a call; None where it has none, or cannot be described."""
        try:
            return self._problem(args)[1]
        except UNDESCRIBED:
            return None

    def _recorded(self, args: tuple[Any, ...], call: Call) -> Call:
        problem = self._problem_of(args)
        return call if problem is None else counting(self.scope.recorded, problem.key, call)

    def _general(self, problem: Problem | None) -> tuple[Call, Tactic]:
        """Released weights, and a shape that was never tuned: the tactic of the nearest size, which serves every shape."""
        near = None if problem is None else self.scope.nearest(problem, self._restorable)
        tactic = near or self.source
        assert tactic is not None
        return self._counted("bucket", on_contiguous(self.bound(tactic))), tactic

    def _restorable(self, tactic: Tactic) -> bool:
        runner = self.spec.runner_of(tactic)
        return runner is not None and runner.restore is not None and runner.layout_of(tactic) in self.prepared.layouts

    @property
    def released(self) -> bool:
        """Whether the constants' memory was given back."""
        return self.source is not None

    def release(self, tactic: Tactic) -> None:
        """Give the constants' memory back; `tactic`'s layout stays, and they can be made from it again, bit for bit.

        Where the layout is not there yet it is made in the constants' own memory, if its runner can, without new memory.
        From now on a shape that was never tuned is served by the nearest size's tactic. Whatever reads the constants, the
        default among it, has them made again first. Not to be called while calls of this binding are running.

        Raises OpError where the constants may not be released, or where `tactic` cannot give them back.
        """
        runner = self.spec.runner_of(tactic)
        if runner is None or runner.restore is None:
            raise OpError(f"{self.name or self.spec.name}: {tactic.name} cannot make the original weights again")
        if not self.releasable:
            raise OpError(f"{self.name or self.spec.name}: its weights are used elsewhere too; they cannot be released")
        if self.source is not None:
            self.bound(tactic)
            self.source = tactic
            return
        self.prepared.get(runner.layout_of(tactic), functools.partial(converted, runner, self.constants, tactic))
        for tensor in tensors_of(self.constants):
            release(tensor, functools.partial(self.restore, read=True))
        self.source = tactic
        self._moved()

    def restore(self, *, read: bool = False, last: bool = False) -> None:
        """Make released constants again, bit for bit; `last`: the prepared weights will not be used any more."""
        source, self.source = self.source, None
        if source is None:
            return
        if read:
            level = logging.DEBUG if self.scope.restored else logging.WARNING
            self.scope.restored += 1
            logger.log(
                level, "%s: the original weights are read, so they take memory again", self.name or self.spec.name
            )
        runner = self.spec.runner_of(source)
        assert runner is not None
        made = restored(runner, self.prepared.held(runner.layout_of(source)), self.constants, last)
        for tensor, values in zip(tensors_of(self.constants), made, strict=True):
            if is_released(tensor):
                fill(tensor, values)
        self._moved()

    def _moved(self) -> None:
        self.versions = versions(self.constants)
        self.forget()
        for follow in self.followers:
            follow()

    def rebind(self, constants: tuple[Any, ...]) -> None:
        """Serve other constants from now on (weights were loaded, merged or replaced): everything prepared is made again."""
        self.restore()
        self.constants = constants
        self.versions = versions(constants)
        self.prepared.clear()
        self.forget()

    def bound(self, tactic: Tactic) -> Call:
        """A callable of the dynamic arguments that runs `tactic`. Raises OpError for one that the op does not offer."""
        if tactic == DEFAULT:
            return self.default
        runner = self.spec.runner_of(tactic)
        if runner is None:
            raise OpError(f"op {self.spec.name} offers no tactic {tactic.name}")
        layout, prepare = runner.layout_of(tactic), runner.prepare
        if prepare is None:
            if runner.bind is not None:
                return runner.bind(*self.constants, **tactic.kwargs)
            return with_constants(runner.function, len(self.spec.dynamic), self.constants, tactic)
        prepared = self.prepared.get(layout, functools.partial(self._prepare, prepare, tactic))
        if runner.bind is not None:
            return runner.bind(prepared, **tactic.kwargs)
        return with_constants(runner.function, len(self.spec.dynamic), (prepared,), tactic)

    def _prepare(self, prepare: Call, tactic: Tactic) -> Any:
        import torch

        constants = self.constants
        if self.source is not None:  # once more, for as long as the other layout is being made
            runner = self.spec.runner_of(self.source)
            assert runner is not None
            made = iter(restored(runner, self.prepared.held(runner.layout_of(self.source)), constants, last=False))
            constants = tuple(next(made) if hasattr(value, "untyped_storage") else value for value in constants)
        with torch.inference_mode():
            return prepare(*constants, **tactic.kwargs)

    def forget(self) -> None:
        """Drop the kept callables: what they were chosen from has changed."""
        self._tables = {
            True: Table(),
            False: Table(),
        }  # new ones: a call that is being resolved elsewhere keeps into the old
        self.switch()

    def switch(self) -> None:
        """Follow the scope's state, or the collection that has begun or ended."""
        self.table = Table() if collector() is not None else self._tables[self.scope.tuned]
        self.fast = self.table.fast

    def close(self) -> None:
        """Release prepared weights and kept callables; released constants are made again."""
        self.restore(last=True)
        self.forget()
        self.prepared.clear()
        self.scope.remove(self)

    def _counted(self, what: str, call: Call, *, once: bool = False) -> Call:
        if once and what not in self.scope.counts:
            logger.warning("op %s runs its %s", self.spec.name, what)
        return counting(self.scope.counts, what, call)
