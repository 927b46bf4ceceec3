"""An op: a named operation with one meaning, its default, and the runners that offer other implementations of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunebook.errors import OpError
from tunebook.ops._buckets import Bucket
from tunebook.ops._example import Example
from tunebook.ops._requires import as_requirement
from tunebook.ops._runner import Runner, Space, combinations
from tunebook.ops._shape import Agree, Describe, Extremes, Resample, Shape
from tunebook.records import DEFAULT, Problem, Tactic
from tunebook.records._base import check_name

if TYPE_CHECKING:
    import random


class OpSpec:
    """What an op is, without the calling of it (`tunebook.dispatch.Op` adds that)."""

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        buckets: Mapping[str, Mapping[int, Bucket]],
        constants: Sequence[str] = (),
        describe: Describe | None = None,
        resample: Resample | None = None,
        extremes: Extremes | None = None,
        agree: Agree | None = None,
        example: Example | None = None,
        lead: str | None = None,
        communicates: bool = False,
    ) -> None:
        try:
            check_name("op", name)
        except ValueError as error:
            raise OpError(str(error)) from error
        self.name = name
        self.function = function
        self.signature = inspect.signature(function)
        names = self._argument_names()
        self.constants = tuple(constants)
        if self.constants and names[-len(self.constants) :] != self.constants:
            raise OpError(f"op {name}: constants {self.constants} are not the last arguments of ({', '.join(names)})")
        self.dynamic = names[: len(names) - len(self.constants)]
        if not self.dynamic:
            raise OpError(f"op {name}: no argument changes from call to call, so there is nothing to tune")
        if lead is not None and lead not in self.dynamic:
            raise OpError(f"op {name}: lead {lead!r} is none of {', '.join(self.dynamic)}")
        for what, value in (("extremes", extremes), ("agree", agree), ("example", example)):
            if value is not None and not callable(value):
                raise OpError(f"op {name}: {what}={value!r} is not a function")
        self.lead = lead
        self.communicates = communicates  #: whether a call takes part of other ranks, as a collective does
        self.extremes = extremes
        self.agree = agree
        self.example = example
        self.shape = Shape(name, names, buckets, describe, resample)
        self.runners: dict[str, Runner] = {}

    def _argument_names(self) -> tuple[str, ...]:
        kinds = inspect.Parameter
        for parameter in self.signature.parameters.values():
            if parameter.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD, kinds.KEYWORD_ONLY):
                raise OpError(f"op {self.name}: {parameter} cannot be tuned; use plain named arguments")
        return tuple(self.signature.parameters)

    def runner(
        self,
        name: str,
        space: Space | None = None,
        *,
        available: Any = None,
        version: str | None = None,
        sources: Sequence[str | Path] = (),
        libraries: Sequence[str] = (),
        prepare: Callable[..., Any] | None = None,
        layout: Callable[..., str] | None = None,
        workspace: Callable[..., int] | None = None,
        supports: Callable[..., str | None] | None = None,
        within: Callable[..., bool] | None = None,
        restore: Callable[..., Sequence[Any]] | None = None,
        convert: Callable[..., Any] | None = None,
        bits: Callable[..., str] | None = None,
        bind: Callable[..., Callable[..., Any]] | None = None,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Declare another implementation of this op; each combination of `space` is one tactic.

        available:  None, ``tunebook.requires(…)``, or a predicate that gives True, False or the reason why not.
        version:    replaces the version that is otherwise computed from the module, its local imports, the shared
                    objects that it loads and `sources`.
        libraries:  distributions whose version counts too, such as ``"torch"``.
        prepare:    ``prepare(*constants, **params)`` makes weights of another layout; the function then gets what it
                    returned in place of the constants.
        layout:     ``layout(**params)`` names that form: tactics with one name share one copy.
        workspace:  ``workspace(*dynamic, *constants, **params)`` is the extra memory of one call, in bytes.
        supports:   ``supports(problem, **params)`` gives the reason why a tactic does not fit a problem, or None.

        within:     ``within(problem, **params)``: whether a tactic belongs to the space of a problem. What does not is neither
                    tried nor listed: the rules that keep a large space small.
        restore:    ``restore(prepared, last=…)`` gives the tensors among the constants again, bit for bit, in order; with
                    `last` nothing will use `prepared` any more. By it the runner also says that its tactics serve every
                    shape of the op: where it serves, the original weights may be released.
        convert:    ``convert(*constants, **params)`` is `prepare` in the memory of the constants, whose values are lost; it
                    gives None, and has touched nothing, where that cannot be. Needs `restore`.
        bits:       ``bits(**params)``: tactics with one such name give equal bits for a row whatever else is in the batch.

        bind:       ``bind(prepared, **params)`` (``bind(*constants, **params)`` without `prepare`) gives the function of the
                    dynamic arguments that serves; for a runner that has something to look up once and not at each call.

        A second runner of the same name replaces the first if it comes from the same module, else it is an OpError.
        """
        if name == DEFAULT.runner:
            raise OpError(f"op {self.name}: the name {name!r} belongs to the untuned implementation")
        functions = {
            "prepare": prepare, "layout": layout, "workspace": workspace, "supports": supports,
            "within": within, "restore": restore, "convert": convert, "bits": bits, "bind": bind,
        }  # fmt: skip
        for what, value in functions.items():
            if value is not None and not callable(value):
                raise OpError(f"op {self.name}, runner {name}: {what}={value!r} is not a function")
        if (restore is not None and prepare is None) or (convert is not None and restore is None):
            raise OpError(f"op {self.name}, runner {name}: restore= needs prepare=, and convert= needs restore=")
        tactics = combinations(self.name, name, space)

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            origin = inspect.getmodule(function)
            runner = Runner(
                op=self.name,
                name=name,
                function=function,
                combinations=tactics,
                requirement=as_requirement(available),
                prepare=prepare,
                layout=layout,
                workspace=workspace,
                supports=supports,
                within=within,
                restore=restore,
                convert=convert,
                bits=bits,
                bind=bind,
                declared_version=version,
                sources=tuple(sources),
                libraries=tuple(libraries),
                origin=origin.__name__ if origin else "",
            )
            known = self.runners.get(name)
            if known is not None and known.origin != (origin.__name__ if origin else ""):
                raise OpError(f"op {self.name} has a runner {name!r} already, from {known.origin}; choose another name")
            self.runners[name] = runner
            return function

        return register

    def remove_runner(self, name: str) -> None:
        """Take a runner out again (tests, and a session without ``--with``)."""
        if self.runners.pop(name, None) is None:
            raise OpError(f"op {self.name} has no runner {name!r}; it has {', '.join(self.runners) or 'none'}")

    def runner_of(self, tactic: Tactic) -> Runner | None:
        """The runner that offers exactly this tactic, or None."""
        runner = self.runners.get(tactic.runner)
        return runner if runner is not None and runner.offers(tactic) else None

    def extreme_inputs(
        self, problem: Problem, dynamic: Sequence[Any], constants: Sequence[Any], rng: random.Random
    ) -> list[tuple[str, tuple[Any, ...]]]:
        """What `extremes` makes of a call of `problem`: each label with the dynamic arguments; empty without it.

        Raises OpError where it fails, or gives what is no call of the same problem.
        """
        if self.extremes is None:
            return []
        found: list[tuple[str, tuple[Any, ...]]] = []
        try:
            for label, args in self.extremes((*dynamic, *constants), rng):
                made = self.shape.problem(self.shape.describe((*args, *constants)), problem.policy)
                if len(args) != len(self.dynamic) or made != problem:
                    raise OpError(f"{label!r} is a call of {made}, not of {problem}")
                found.append((label, tuple(args)))
        except Exception as error:
            raise OpError(f"op {self.name}: its extremes for {problem} failed: {error}") from error
        return found

    def split(self, args: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Positional arguments as (dynamic, constants)."""
        return tuple(args[: len(self.dynamic)]), tuple(args[len(self.dynamic) :])

    def positional(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """A call's arguments in order, defaults filled in. Raises TypeError as Python does."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return tuple(bound.arguments[name] for name in self.signature.parameters)
