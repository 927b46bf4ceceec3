"""A model of a few ops on a made-up clock: each call takes what the test says, by op and by who serves it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.dispatch import Scope
from tunebook.measure import Budget
from tunebook.plan import Serving, Step, verify
from tunebook.records import Overall, Phase, Tactic

QUICK = Tactic(runner="quick")
Costs = Mapping[str, tuple[float, float]]


class Toy:
    """Ops named by `costs`, each with a default and a runner `quick` that take these seconds a call; rows do not matter.

    `after(op, served, seconds)` may change what a call takes, and see what has served so far (`served`).
    """

    def __init__(self, costs: Costs, *, noise: float = 0.01, seed: int = 0, rest: float = 0.1) -> None:
        self.scope = Scope("toy")
        self.now = 0.0
        self.waited = 0
        self.rng = random.Random(seed)
        self.noise, self.rest, self.costs = noise, rest, costs
        self.served: list[tuple[str, str]] = []
        self.steps_run = 0
        self.after: Callable[[str, str, float], float] = lambda op, served, seconds: seconds
        self.bindings: dict[str, Any] = {name: self._declare(name) for name in costs}
        self.callers = {name: binding.caller() for name, binding in self.bindings.items()}

    def _declare(self, name: str) -> Any:
        @tb.op(f"toy::{name}", buckets={"x": {0: tb.pow2(name="M")}})
        def default(x: torch.Tensor) -> torch.Tensor:
            return self._take(name, "default", x)

        @default.runner("quick", version="1")
        def quick(x: torch.Tensor) -> torch.Tensor:
            return self._take(name, "quick", x)

        return default.bind(scope=self.scope)

    def _take(self, name: str, served: str, x: torch.Tensor) -> torch.Tensor:
        seconds = self.costs[name][served == "quick"]
        self.now += self.after(name, served, seconds) * math.exp(self.rng.gauss(0, self.noise))
        self.served.append((name, served))
        return x

    def clock(self) -> float:
        return self.now

    def synchronize(self) -> None:
        self.waited += 1

    def key(self, name: str, rows: int = 1) -> str:
        return f"toy::{name}|x.1=2|fp32|M≤{rows}"

    def plan(self, *names: str, rows: tuple[int, ...] = (1,)) -> dict[str, Tactic]:
        """Serve `quick` for these ops."""
        tactics = {self.key(name, size): QUICK for name in names for size in rows}
        self.scope.install(tactics, replace=True)
        return tactics

    def step(self, rows: int = 1, calls: int = 1, only: tuple[str, ...] = ()) -> Step:
        """A decode step of `rows` sequences: every op (or those named) is called `calls` times."""
        x = torch.ones(rows, 2)

        def run() -> None:
            self.steps_run += 1
            self.now += self.rest
            for name, call in self.callers.items():
                for _ in range(calls if not only or name in only else 0):
                    call(x)

        return Step("decode", rows, 1, run)

    @property
    def serving(self) -> Serving:
        return Serving(self.scope, self)

    def budget(self, seconds: float | None = None) -> Budget:
        return Budget(seconds, self)

    def proof(self, *steps: Step) -> tuple[tuple[Phase, ...], Overall]:
        found = verify(steps, self.scope, self, self.budget(), self.rng)
        assert found is not None
        return found


@pytest.fixture
def toy(clean_ops: None) -> Iterator[Callable[..., Toy]]:
    with torch.inference_mode():
        yield Toy
