"""A binding: an op with its constants (one layer's weights), and the hot path from a call to the tactic that serves it."""

from __future__ import annotations

import functools
import logging
from typing import Any

from tunebook.dispatch._caller import Call, Table, fast_entry, make_caller, signature
from tunebook.dispatch._collecting import BINDINGS, collector
from tunebook.dispatch._prepared import Prepared
from tunebook.dispatch._scope import FREE, Scope
from tunebook.errors import OpError
from tunebook.ops import OpSpec
from tunebook.records import DEFAULT, Tactic

logger = logging.getLogger("tunebook.dispatch")

#: One binding keeps at most this many resolved signatures; then it begins anew.
MAX_KEPT = 1 << 16


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
        self.default: Call = default or _with_constants(spec.function, len(spec.dynamic), constants)
        self.default_version = default_version
        self.prepared = Prepared()
        self.versions = versions(constants)
        self._tables = {True: Table(), False: Table()}
        self.table = Table()
        self.fast = self.table.fast
        #: The position of the one argument that tells all; without it each is looked at.
        self.lead = spec.dynamic.index(spec.lead) if spec.lead else 0 if len(spec.dynamic) == 1 else None
        scope.add(self)
        BINDINGS.add(self)
        self.switch()

    def caller(self) -> Call:
        """The function to call, of the op's dynamic arguments. It follows what this binding serves."""
        return make_caller(self, [self.spec.signature.parameters[name] for name in self.spec.dynamic])

    def wants_grad(self) -> bool:
        """Whether a constant asks for a gradient: no tactic gives one."""
        return _requires_grad(self.constants)

    def asks_grad(self, args: tuple[Any, ...]) -> bool:
        """Whether an argument or a constant asks for a gradient."""
        return _requires_grad(args) or self.wants_grad()

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
            return self._counted(unfit, self.default)
        table = self.table  # what is resolved under one state must not be kept under another
        call = self._choose(args, tuned=table is self._tables[True])
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

    def _choose(self, args: tuple[Any, ...], tuned: bool) -> Call:
        if not tuned:
            return self.default
        if any(value.device.type != self.scope.device for value in args if hasattr(value, "device")):
            return self._counted("default: not tuned on this device", self.default)
        try:
            description = self.spec.shape.describe((*args, *self.constants))
            problem = self.spec.shape.problem(description, self.scope.measurement)
        except (OpError, AttributeError, TypeError, IndexError, ValueError) as error:
            return self._counted(f"default: {error}", self.default, once=True)
        if problem is None:
            return self._counted("default: no bucket for this size", self.default)
        tactic = self.scope.lookup(problem.key)
        if tactic is None:
            return self._counted("default: not tuned", self.default)
        try:
            call = self.bound(tactic)
        except Exception as error:  # noqa: BLE001 - preparing runs a runner's own code; serving must go on without it
            logger.warning("%s: %s cannot be prepared, the default serves: %s", problem.key, tactic.name, error)
            return self._counted("default: preparing failed", self.default)
        if tactic == DEFAULT:
            return call
        if not all(value.is_contiguous() for value in args if hasattr(value, "is_contiguous")):
            call = _on_contiguous(call)
        if any(description.sizes[dim.name] != dim.size for dim in problem.dims):
            call = self._counted("bucket", call)
        return call

    def rebind(self, constants: tuple[Any, ...]) -> None:
        """Serve other constants from now on (weights were loaded, merged or replaced): everything prepared is made again."""
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
            return _with_constants(runner.function, len(self.spec.dynamic), self.constants, tactic)
        prepared = self.prepared.get(layout, functools.partial(_prepare, prepare, self.constants, tactic))
        return _with_constants(runner.function, len(self.spec.dynamic), (prepared,), tactic)

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
        """Release prepared weights and kept callables."""
        self.forget()
        self.prepared.clear()
        self.scope.remove(self)

    def _counted(self, what: str, call: Call, *, once: bool = False) -> Call:
        counts = self.scope.counts
        if once and what not in counts:
            logger.warning("op %s runs its %s", self.spec.name, what)

        def counted(*args: Any) -> Any:
            counts[what] += 1
            return call(*args)

        return counted


def _with_constants(function: Call, dynamic: int, constants: tuple[Any, ...], tactic: Tactic | None = None) -> Call:
    """`function` of `dynamic` arguments, the others and its parameters filled in; the commonest forms avoid unpacking."""
    params = tactic.kwargs if tactic else {}
    run = functools.partial(function, **params) if params else function
    if not constants:
        return run
    if dynamic == 1 and len(constants) == 1:
        (only,) = constants
        return lambda x: run(x, only)
    if dynamic == 1 and len(constants) == 2:
        one, two = constants
        return lambda x: run(x, one, two)
    return lambda *args: run(*args, *constants)


def _prepare(prepare: Call, constants: tuple[Any, ...], tactic: Tactic) -> Any:
    import torch

    with torch.inference_mode():
        return prepare(*constants, **tactic.kwargs)


def _on_contiguous(call: Call) -> Call:
    """Tactics are checked and raced on contiguous arguments; others are copied for them."""

    def contiguous(*args: Any) -> Any:
        return call(*(value.contiguous() if hasattr(value, "is_contiguous") else value for value in args))

    return contiguous


def versions(constants: tuple[Any, ...]) -> tuple[tuple[int, int], ...]:
    """Of each tensor the version counter, which moves when it is written in place (0 for inference tensors), and its place."""
    return tuple(
        (0 if value.is_inference() else value._version, value.data_ptr())
        for value in constants
        if hasattr(value, "untyped_storage")
    )


def _requires_grad(args: tuple[Any, ...]) -> bool:
    return any(getattr(value, "requires_grad", False) for value in args)
