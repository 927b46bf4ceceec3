"""The two ops of these tests, with and without weights, and how a test asks which implementation served it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.dispatch import FREE, Op
from tunebook.ops import Description
from tunebook.records import Tactic

FAST = Tactic(runner="fast")


@pytest.fixture(autouse=True)
def no_gradients(clean_ops: None) -> Iterator[None]:
    with torch.no_grad():
        yield


class Demo:
    """An op ``y = 2 · x`` that counts who computed it, and how often a call was described."""

    def __init__(self, **options: Any) -> None:
        self.described = 0
        self.ran: Counter[str] = Counter()
        describe = options.pop("describe", None)
        self.hook: Callable[[], None] = lambda: None

        @tb.op("demo", describe=describe or self._describe, **options)
        def demo(x: torch.Tensor) -> torch.Tensor:
            self.ran["default"] += 1
            return x * 2

        self.op: Op[Any, Any] = demo

        @demo.runner("fast", version="1")
        def fast(x: torch.Tensor) -> torch.Tensor:
            self.ran["fast"] += 1
            return x + x

    def _describe(self, args: Sequence[Any]) -> Description:
        self.described += 1
        self.hook()
        return Description(
            (("N", str(args[0].shape[1])),), (str(args[0].dtype).removeprefix("torch."),), {"x.0": len(args[0])}
        )

    def serve(self, *sizes: int, dtype: str = "float32", tactic: Tactic = FAST) -> None:
        FREE.install({f"demo|N=3|{dtype}|x.0≤{size}": tactic for size in sizes})

    def who(self, x: torch.Tensor) -> str:
        """Which implementation serves this call; its result must be right in any case."""
        before = self.ran.copy()
        assert torch.equal(self.op(x), x * 2)
        (name,) = self.ran - before
        return name


@pytest.fixture
def declare() -> type[Demo]:
    """``declare(**options)`` makes a `Demo`, with the options of ``tb.op``."""
    return Demo


def with_weights(**options: Any) -> tuple[Op[Any, Any], list[torch.Tensor]]:
    """``x @ w``, and a runner with prepared weights; the list holds what `prepare` was called with."""
    prepared: list[torch.Tensor] = []

    @tb.op("weighted", constants=("w",))
    def weighted(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w

    def pack(w: torch.Tensor, **params: Any) -> dict[str, Any]:
        prepared.append(w)
        return {"w": w.clone(), "more": [torch.zeros(5, dtype=torch.int16)]}

    @weighted.runner("fast", version="1", prepare=pack, **options)
    def fast(x: torch.Tensor, packed: dict[str, Any], **params: Any) -> torch.Tensor:
        y: torch.Tensor = x @ packed["w"]
        return y + 100

    return weighted, prepared


@pytest.fixture
def declare_weighted() -> Callable[..., tuple[Op[Any, Any], list[torch.Tensor]]]:
    """``declare_weighted(**options)``: the op ``x @ w`` and what its runner prepared, with the options of a runner."""
    return with_weights
