"""What a tuning shares with its worker: the weights of the layers at hand, and the cases of the problem at hand."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from tunebook.dispatch import Binding, tensor_bytes, versions
from tunebook.measure import Reference
from tunebook.tuner._isolation._messages import CaseAt, Value
from tunebook.tuner._isolation._values import Memory, UnshareableError

#: Of the memory for one call, what the layers that are shared at once may take, unless one alone needs more.
SHARED_SHARE = 0.25


@dataclass
class Shared:
    """Values in shared memory, by the number under which workers know it; `about` keeps what they are of alive."""

    number: int
    memory: Memory
    about: object
    key: object = None
    values: tuple[Value, ...] = ()
    cases: tuple[CaseAt, ...] = ()


class Sharing:
    """At most about a share of `limit` bytes of layers, and one problem; and what of it the worker that runs has."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._numbers = itertools.count(1)
        self._layers: dict[int, Shared] = {}
        self._problem: Shared | None = None
        self._worker = 0
        self._has: set[int] = set()
        self._goes: set[int] = set()

    def layer(self, layer: Binding) -> Shared:
        """A layer's constants: one copy for all its tactics and buckets, as long as there is room for it.

        Raises UnshareableError where they cannot be shared, OSError where there is no memory.
        """
        key = versions(layer.constants)
        known = self._layers.pop(id(layer), None)
        if known is None or known.key != key:
            if known is not None:
                self._release(known)
            needed = tensor_bytes(layer.constants)
            if needed > self._limit:
                raise UnshareableError(
                    f"a copy of its weights takes {needed / 1e9:.2f} GB, which is above the limit for one tactic"
                )
            self._make_room(needed)
            memory = Memory()
            values = tuple(memory.add(value) for value in layer.constants)
            memory.seal()
            known = Shared(next(self._numbers), memory, layer, key, values=values)
        self._layers[id(layer)] = known  # the last one used is the last to go
        return known

    def problem(self, reference: Reference) -> Shared:
        """The cases of the problem at hand: live inputs, and the default's outputs on them. Raises as `layer` does."""
        if self._problem is not None and self._problem.about is reference:
            return self._problem
        if self._problem is not None:
            self._release(self._problem)
            self._problem = None
        memory = Memory()
        cases = tuple(
            CaseAt(
                args=tuple(memory.add(value) for value in case.args),
                expected=memory.add(case.expected),
                label=case.label,
                seconds=case.seconds,
            )
            for case in reference.cases
        )
        memory.seal()
        self._problem = Shared(next(self._numbers), memory, reference, cases=cases)
        return self._problem

    def lacking(self, worker: int, wanted: tuple[Shared, ...]) -> tuple[list[Shared], tuple[int, ...]]:
        """What of `wanted` this worker lacks, and the numbers of what it has and may forget. A new one has nothing."""
        if worker != self._worker:
            self._worker = worker
            self._has.clear()
            self._goes.clear()
        return [shared for shared in wanted if shared.number not in self._has], tuple(sorted(self._goes))

    def told(self, comes: list[Shared]) -> None:
        """The worker has these now, and has forgotten what it was to."""
        self._has |= {shared.number for shared in comes}
        self._goes.clear()

    def close(self) -> None:
        for shared in (*self._layers.values(), *((self._problem,) if self._problem is not None else ())):
            shared.memory.close()
        self._layers.clear()
        self._problem = None

    def _make_room(self, needed: int) -> None:
        held = needed + sum(shared.memory.size for shared in self._layers.values())
        while self._layers and held > SHARED_SHARE * self._limit:
            shared = self._layers.pop(next(iter(self._layers)))
            held -= shared.memory.size
            self._release(shared)

    def _release(self, shared: Shared) -> None:
        shared.memory.close()
        if shared.number in self._has:
            self._has.discard(shared.number)
            self._goes.add(shared.number)
