"""A scope: what a group of bindings (one attached model, or all free-standing ops) is served with."""

from __future__ import annotations

import math
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from tunebook.records import Problem, Tactic

if TYPE_CHECKING:
    from tunebook.dispatch._binding import Binding


class Scope:
    """Tactics by problem key, switched on or off together.

    Every binding keeps one table of bound callables for each state, so that switching costs an assignment a binding.
    `counts` says how often a call did not get what was tuned for exactly its shape: "bucket" (a winner of its bucket at
    another size), and "default: <why>".
    """

    def __init__(self, name: str = "", device: str = "cpu", measurement: str = "eager") -> None:
        self.name = name
        self.device = device  #: the kind of device that its tactics were tuned on
        self.measurement = measurement  #: the measuring policy of its problems, a part of their keys
        self.counts: Counter[str] = Counter()
        self.recorded: Counter[str] = Counter()  #: calls by problem while `record` is on
        self.recording = False
        self.restored = 0  #: bindings whose released weights were read and made again; the first is logged as a warning
        self.lock = threading.RLock()
        self._tactics: dict[str, Tactic] = {}
        self._tuned = True
        self._bindings: weakref.WeakSet[Binding] = weakref.WeakSet()

    @property
    def tuned(self) -> bool:
        """Whether tuned tactics serve; otherwise every call runs its default."""
        return self._tuned

    @property
    def tactics(self) -> Mapping[str, Tactic]:
        return self._tactics

    @property
    def bindings(self) -> tuple[Binding, ...]:
        return snapshot(self._bindings)

    def add(self, binding: Binding) -> None:
        self._bindings.add(binding)

    def remove(self, binding: Binding) -> None:
        self._bindings.discard(binding)

    def move(self, device: str) -> None:
        """Its tactics are of this kind of device from now on ("cpu", "cuda"); those of another kind are dropped."""
        with self.lock:
            if device != self.device:
                self.device = device
                self.install({}, replace=True)

    def lookup(self, key: str) -> Tactic | None:
        """The tactic for a problem when tuned tactics serve, or None for a problem that nothing is known about."""
        return self._tactics.get(key)

    def nearest(self, problem: Problem, fits: Callable[[Tactic], bool]) -> Tactic | None:
        """Of the tactics of `problem`'s family that fit, the one for the nearest sizes by their logarithms."""
        found: list[tuple[float, Tactic]] = []
        for key, tactic in self._tactics.items():
            other = Problem.parse(key)
            if (other.family, other.policy) == (problem.family, problem.policy) and fits(tactic):
                sizes = zip(problem.dims, other.dims, strict=True)
                found.append((sum(abs(math.log((a.size + 1) / (b.size + 1))) for a, b in sizes), tactic))
        return min(found, key=lambda item: item[0])[1] if found else None

    def record(self, on: bool) -> None:
        """Count the calls of every problem in `recorded` from now on, or no more."""
        with self.lock:
            self.recording = on
            for binding in self.bindings:
                binding.forget()

    def install(self, tactics: Mapping[str, Tactic], *, replace: bool = False) -> None:
        """Serve these tactics from now on; the others stay unless `replace`."""
        with self.lock:
            self._tactics = dict(tactics) if replace else {**self._tactics, **tactics}
            for binding in self.bindings:
                binding.forget()

    def switch(self, tuned: bool) -> None:
        """Serve the tuned tactics, or the defaults."""
        with self.lock:
            self._tuned = tuned
            for binding in self.bindings:
                binding.switch()


T = TypeVar("T")


def snapshot(members: Iterable[T]) -> tuple[T, ...]:
    """The members of a set that other threads may add to meanwhile."""
    while True:
        try:
            return tuple(members)
        except RuntimeError:  # it grew while it was walked
            continue


#: The scope of ops that are called as functions, outside any attached model.
FREE = Scope("free")
