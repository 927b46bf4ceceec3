"""The public op: a decorated function that runs the winner for its arguments, else itself."""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, ParamSpec, TypeVar

from tunebook.dispatch._binding import Binding, versions
from tunebook.dispatch._scope import FREE, Scope
from tunebook.errors import OpError
from tunebook.ops import Bucket, OpSpec, pow2
from tunebook.ops._shape import Describe, Resample

P = ParamSpec("P")
R = TypeVar("R")

#: Every op of this process by name. An op is declared once: its name is what caches know it by.
OPS: dict[str, Op[Any, Any]] = {}


class Op(OpSpec, Generic[P, R]):
    """An op that is called like the function it decorates.

    Calls with the same constants share a `Binding`; an op without constants has one. The constants' bindings live as long
    as the constants do.
    """

    def __init__(self, name: str, function: Callable[P, R], **options: Any) -> None:
        super().__init__(name, function, **options)
        functools.update_wrapper(self, function)
        self._unhosted = _Held()
        self._plain: Callable[..., Any] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if kwargs or len(args) != len(self.signature.parameters):
            args = self.positional(args, kwargs)  # type: ignore[assignment]
        result: R
        if not self.constants:
            if self._plain is None:
                self._plain = Binding(self, scope=FREE, default_version=self.default_version).caller()
            result = self._plain(*args)
            return result
        dynamic, constants = self.split(args)
        result = self._bound_to(constants)(*dynamic)
        return result

    @functools.cached_property
    def default_version(self) -> str:
        """The version of the decorated function, by the same rule as a runner's."""
        from tunebook.ops import runner_version

        return runner_version(self.function)

    def bind(self, *constants: Any, scope: Scope = FREE, **options: Any) -> Binding:
        """A binding of these constants, for whoever calls the op many times (an attached module)."""
        options.setdefault("default_version", self.default_version)
        return Binding(self, constants, scope=scope, **options)

    def _bound_to(self, constants: tuple[Any, ...]) -> Callable[..., Any]:
        """The binding of these constants, kept on the first tensor among them so that it goes when the tensor goes."""
        host = next((value for value in constants if hasattr(value, "untyped_storage")), None)
        held = self._unhosted if host is None else _held_by(host)
        key = (
            self.name,
            *(id(value) if hasattr(value, "untyped_storage") else (type(value), value) for value in constants),
        )
        try:
            known = key in held
        except TypeError:  # a constant that cannot be hashed tells no key
            FREE.counts["default: a constant cannot be hashed"] += 1
            return lambda *dynamic: self.function(*dynamic, *constants)
        if not known:
            binding = self.bind(*constants)
            held[key] = (binding, binding.caller())
        binding, call = held[key]
        if binding.versions != versions(constants):
            binding.rebind(constants)
        return call


def _held_by(host: Any) -> _Held:
    """The bindings kept on a tensor. One that was loaded from a file carries an empty stand-in."""
    held = host.__dict__.get("_tunebook_bindings")
    if not isinstance(held, _Held):
        held = host.__dict__["_tunebook_bindings"] = _Held()
    return held


class _Held(dict[Any, tuple[Binding, Callable[..., Any]]]):
    """Bindings by constants. A copy of a tensor, or a pickled one, starts without any."""

    def __deepcopy__(self, memo: object) -> _Held:
        return _Held()

    def __reduce__(self) -> tuple[type[OrderedDict[Any, Any]], tuple[()]]:
        return (OrderedDict, ())  # a type that torch.load accepts in a file of weights


def op(
    name: str,
    *,
    buckets: Mapping[str, Mapping[int, Bucket]] | None = None,
    constants: Sequence[str] = (),
    describe: Describe | None = None,
    resample: Resample | None = None,
    lead: str | None = None,
) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Declare an op; the decorated function is its default tactic and the reference for correctness.

    buckets:    ``{"x": {0: tb.pow2()}}``: which dimensions change from call to call. Without it, dimension 0 of the
                first argument, rounded up to powers of two.
    constants:  the trailing arguments that stay the same from call to call, such as weights.
    describe, resample: replace how a call's key is read off its arguments, and how inputs of other sizes are made.
    lead:       the one argument whose shape, dtype and strides tell all that dispatch must look at; without it every
                dynamic argument is looked at.

    Raises OpError for a name that is taken by a function of another file.
    """

    def decorate(function: Callable[P, R]) -> Op[P, R]:
        first = next(iter(inspect.signature(function).parameters), "")
        made: Op[P, R] = Op(
            name,
            function,
            buckets=buckets if buckets is not None else {first: {0: pow2()}},
            constants=constants,
            describe=describe,
            resample=resample,
            lead=lead,
        )
        known = OPS.get(name)
        if known is not None and known.function.__module__ != getattr(function, "__module__", None):
            raise OpError(f"op {name!r} is declared already, in module {known.function.__module__}")
        OPS[name] = made
        return made

    return decorate
