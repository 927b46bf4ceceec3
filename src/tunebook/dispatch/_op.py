"""The public op: a decorated function that runs the winner for its arguments, else itself."""

from __future__ import annotations

import functools
import inspect
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, cast

from tunebook.dispatch._binding import Binding
from tunebook.dispatch._caller import HELD, constants_entry, make_caller, make_constants_caller
from tunebook.dispatch._calls import versions
from tunebook.dispatch._scope import FREE, Scope
from tunebook.errors import OpError
from tunebook.ops import Bucket, Example, OpSpec, pow2
from tunebook.ops._shape import Agree, Describe, Extremes, Resample

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
        # A class of its own, so that the fast caller can be what Python calls: it looks `__call__` up on the class.
        self.__class__ = types.new_class(type(self).__name__, (type(self),))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The first call; it puts the fast one in its own place."""
        own: Any = type(self)
        own.__call__ = staticmethod(self._make_call())
        return cast(R, own.__call__(*args, **kwargs))

    def _make_call(self) -> Callable[..., Any]:
        parameters = list(self.signature.parameters.values())
        if not self.constants:
            return make_caller(Binding(self, scope=FREE, default_version=self.default_version), parameters)

        def slow(*args: Any) -> Any:
            """Finds the binding of these constants; the next call with them is fast where a tensor comes first."""
            dynamic, constants = self.split(args)
            call = self._bound_to(constants)
            if isinstance(held := getattr(constants[0], HELD, None), _Held):
                held[self.name] = constants_entry(call, constants)
            return call(*dynamic)

        return make_constants_caller(self.name, parameters, len(self.dynamic), slow)

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
            made = self.bind(*constants)
            held[key] = (made, made.caller())
        binding: Binding = held[key][0]
        call: Callable[..., Any] = held[key][1]
        if binding.versions != versions(constants):
            binding.rebind(constants)
        return call


def _held_by(host: Any) -> _Held:
    """The bindings kept on a tensor. One that was loaded from a file carries an empty stand-in."""
    held = host.__dict__.get(HELD)
    if not isinstance(held, _Held):
        held = host.__dict__[HELD] = _Held()
    return held


class _Held(dict[Any, tuple[Any, ...]]):
    """Bindings and their callers by constants, and each op's latest caller by its name.

    A copy of a tensor, or a pickled one, starts without any.
    """

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
    extremes: Extremes | None = None,
    agree: Agree | None = None,
    example: Example | None = None,
    lead: str | None = None,
    communicates: bool = False,
) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Declare an op; the decorated function is its default tactic and the reference for correctness.

    buckets:    ``{"x": {0: tb.pow2()}}``: which dimensions change from call to call. Without it, dimension 0 of the
                first argument, rounded up to powers of two.
    constants:  the trailing arguments that stay the same from call to call, such as weights.
    describe, resample: replace how a call's key is read off its arguments, and how inputs of other sizes are made.
    extremes:   ``extremes(args, rng)`` gives (label, dynamic arguments) of rare calls, of the same sizes, that every tactic
                must get right as well; `args` is a live call, constants included. For checks only, never timed.
    agree:      ``agree(got, expected, args)`` replaces the comparison of a tactic's output with the default's, where several
                outputs are right (equal values in either order): the greatest relative error, or what is wrong in words.
    example:    ``example(problem, sizes, seed)`` gives all arguments of a call of `problem`, made from nothing but that:
                ``tunebook repro`` runs a tactic on them (docs/profiling.md).
    lead:       the one argument whose shape, dtype and strides tell all that dispatch must look at; without it every
                dynamic argument is looked at.
    communicates: every call, of whichever runner, is a collective: it returns only when all ranks call it. Such an op is
                tuned and served from the cache through ``autotune(group=…)`` alone, where all ranks race it in lock-step.

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
            extremes=extremes,
            agree=agree,
            example=example,
            lead=lead,
            communicates=communicates,
        )
        known = OPS.get(name)
        if known is not None and known.function.__module__ != getattr(function, "__module__", None):
            raise OpError(f"op {name!r} is declared already, in module {known.function.__module__}")
        OPS[name] = made
        return made

    return decorate
