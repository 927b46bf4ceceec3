"""Steps of the model that serve any tactics that are given, in turn, and say what each problem took in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from tunebook.dispatch import Binding, Scope, collecting
from tunebook.errors import OpError
from tunebook.measure import Clock
from tunebook.plan._verify import Step
from tunebook.records import DEFAULT, Tactic

Call = Callable[..., Any]


class Serving:
    """A `dispatch.Collector` that serves the calls of one scope with tactics that change from step to step.

    Nothing is installed and nothing resolved anew, so that steps of different plans can follow each other at once. What a
    call costs beyond its tactic is the same for every plan. Calls of other scopes run their default.
    """

    def __init__(self, scope: Scope, clock: Clock) -> None:
        self._scope = scope
        self._clock = clock
        self._tactics: Mapping[str, Tactic] = {}
        self._timed = False
        self._keys: dict[Any, str | None] = {}
        self._calls: dict[tuple[Binding, Tactic], Call] = {}
        self.seconds: dict[str, float] = {}  #: of the last timed step, by problem
        self.calls: Counter[str] = Counter()  #: the same, how often

    @property
    def met(self) -> frozenset[str]:
        """The problems of all steps so far."""
        return frozenset(key for key in self._keys.values() if key is not None)

    def run(self, step: Step, tactics: Mapping[str, Tactic], *, timed: bool = False) -> float:
        """Seconds of one step that serves `tactics`, the default where they name none.

        `timed` waits for the device around every call, and fills `seconds` and `calls`.
        """
        self._tactics, self._timed = tactics, timed
        self.seconds, self.calls = {}, Counter()
        with collecting(self):
            self._clock.synchronize()
            start = self._clock.clock()
            step.run()
            self._clock.synchronize()
            return self._clock.clock() - start

    def note(self, binding: Binding, args: tuple[Any, ...]) -> Call:
        """What serves this call."""
        key = self._key(binding, args) if binding.scope is self._scope else None
        if key is None:
            return binding.default
        call = self._call(binding, self._tactics.get(key, DEFAULT), args)
        if not self._timed:
            return call

        def timed(*call_args: Any) -> Any:
            self._clock.synchronize()
            start = self._clock.clock()
            result = call(*call_args)
            self._clock.synchronize()
            self.seconds[key] = self.seconds.get(key, 0.0) + self._clock.clock() - start
            self.calls[key] += 1
            return result

        return timed

    def _key(self, binding: Binding, args: tuple[Any, ...]) -> str | None:
        """The call's problem, kept by its signature as dispatch does; None for a call that is never tuned."""
        try:
            signature = (binding, *(_signature(value) for value in args))
            known = self._keys.get(signature, "")
        except TypeError:  # an argument that cannot be hashed is in no problem
            return None
        if known != "":
            return known
        shape = binding.spec.shape
        try:
            problem = shape.problem(shape.describe((*args, *binding.constants)), binding.scope.measurement)
        except (OpError, AttributeError, TypeError, IndexError, ValueError):
            problem = None
        self._keys[signature] = None if problem is None else problem.key
        return self._keys[signature]

    def _call(self, binding: Binding, tactic: Tactic, args: tuple[Any, ...]) -> Call:
        if tactic == DEFAULT:
            return binding.default
        call = self._calls.get((binding, tactic))
        if call is None:
            try:
                call = binding.bound(tactic)
            except Exception:  # noqa: BLE001 - a runner's own `prepare`; dispatch serves the default as well, and says so
                call = binding.default
            self._calls[binding, tactic] = call
        if all(value.is_contiguous() for value in args if hasattr(value, "is_contiguous")):
            return call
        run = call

        def contiguous(*given: Any) -> Any:  # as in dispatch: tactics are raced on contiguous arguments
            return run(*(value.contiguous() if hasattr(value, "is_contiguous") else value for value in given))

        return contiguous


def _signature(value: Any) -> Any:
    if hasattr(value, "is_contiguous"):
        return (value.shape, value.dtype, value.is_contiguous() or value.stride())
    return (type(value), value)
