"""The frozen problems of quality.py: shapes of two real models, with a set of tactics each; and their weights and inputs."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunebook.devices import Device
from tunebook.dispatch import Binding, Scope, collecting
from tunebook.kernels import experts, linear
from tunebook.records import DEFAULT, Tactic
from tunebook.tuner import Collection, Task, tasks

#: Spread of the random logits' bias per expert: some experts are met more often, others in each layer.
ROUTING_SKEW = 0.5


@dataclass(frozen=True)
class Shape:
    """One op at one model's sizes: of `experts` (E, K, H, I), of `linear` (N, K); `layers` share its problems."""

    op: str
    sizes: tuple[int, ...]
    layers: int


#: Granite-3.0-1B-A400M and the Qwen3-MoE of `tunebook.engine.models`. Experts have fewer layers than there, to stay within
#: memory, and of the smaller linears so many are taken that all together are as large as a flush (64 MB): no tuner needs one.
SHAPES = {
    "granite experts": Shape("experts", (32, 8, 1024, 512), 6),
    "granite q, o": Shape("linear", (1024, 1024), 32),
    "granite lm_head": Shape("linear", (49155, 1024), 2),
    "qwen3 experts": Shape("experts", (64, 8, 1024, 768), 3),
    "qwen3 q": Shape("linear", (2048, 1024), 16),
    "qwen3 o": Shape("linear", (1024, 2048), 16),
    "qwen3 lm_head": Shape("linear", (32000, 1024), 2),
}
QUICK_SHAPES = {
    "tiny experts": Shape("experts", (8, 2, 128, 256), 3),
    "tiny linear": Shape("linear", (256, 128), 6),
}


@dataclass(frozen=True)
class Problem:
    """A shape at `rows` tokens, and the tactics that every tuner chooses from, in this order, the default before them."""

    shape: str
    rows: int
    others: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.shape}, {self.rows}"

    @property
    def tactics(self) -> tuple[str, ...]:
        return (DEFAULT.name, *self.others)


_COLUMNS = "torch[algorithm=loop_columns]"
_GROUPED = "torch[algorithm=grouped_mm]"
_GATHERED = "torch[algorithm=batched_mm]"
_PADDED_0 = "torch[algorithm=padded_bmm,run=0]"
_PADDED_8 = "torch[algorithm=padded_bmm,run=8]"
_T_LOOP = "torch_transposed[algorithm=loop]"
_T_GROUPED = "torch_transposed[algorithm=grouped_mm]"
_T_PADDED_0 = "torch_transposed[algorithm=padded_bmm,run=0]"
_T_PADDED_8 = "torch_transposed[algorithm=padded_bmm,run=8]"
_PACKED_1, _PACKED_16, _PACKED_64 = (f"onednn[batch_hint={hint}]" for hint in (1, 16, 64))
_CLOSE = ("torch[operand=columns]", _PACKED_1, _PACKED_16, _PACKED_64)
_ALL = (*_CLOSE, "torch_transposed")

#: Frozen: a figure of one date is comparable with that of another. Of each op the sets with a hopeless or a bad tactic come
#: first, and then those, half of all, in which the slowest takes at most about twice the time of the fastest.
PROBLEMS = (
    Problem("granite experts", 1, (_COLUMNS, _GROUPED, _PADDED_0, _PADDED_8, _GATHERED, _PACKED_16, _T_GROUPED)),
    Problem("granite experts", 2, (_COLUMNS, _PADDED_0, _GATHERED, _PACKED_64, _T_GROUPED)),
    Problem("granite experts", 4, (_COLUMNS, _PADDED_8, _PADDED_0, _GATHERED, _PACKED_16, _GROUPED)),
    Problem("qwen3 experts", 1, (_COLUMNS, _PACKED_16, _PACKED_64, _PADDED_0, _GATHERED, _T_GROUPED)),
    Problem("qwen3 experts", 2, (_COLUMNS, _PADDED_8, _PACKED_16, _GATHERED)),
    Problem("granite experts", 8, (_PADDED_8, _PADDED_0, _COLUMNS, _PACKED_64, _PACKED_16)),
    Problem("granite experts", 16, (_PADDED_0, _PADDED_8, _COLUMNS, _PACKED_16, _T_PADDED_0)),
    Problem("granite experts", 64, (_PADDED_8, _COLUMNS, _PACKED_64, _PACKED_16, _T_PADDED_8, _GROUPED)),
    Problem("granite experts", 512, (_PACKED_64, _PADDED_8, _GROUPED, _T_LOOP)),
    Problem("qwen3 experts", 4, (_COLUMNS, _PADDED_0, _PADDED_8, _PACKED_16, _PACKED_64)),
    Problem("qwen3 experts", 16, (_PADDED_0, _PADDED_8, _COLUMNS, _PACKED_16)),
    Problem("qwen3 experts", 64, (_PADDED_0, _PADDED_8, _COLUMNS, _PACKED_64)),
    Problem("granite q, o", 1, _ALL),
    Problem("granite q, o", 4, _ALL),
    Problem("granite q, o", 16, _ALL),
    Problem("granite q, o", 512, _ALL),
    Problem("qwen3 o", 1, _ALL),
    Problem("qwen3 o", 512, _ALL),
    Problem("qwen3 lm_head", 1, _ALL),
    Problem("granite q, o", 64, _CLOSE),
    Problem("granite lm_head", 4, _CLOSE),
    Problem("qwen3 q", 1, _CLOSE),
    Problem("qwen3 q", 64, _CLOSE),
    Problem("qwen3 o", 16, _CLOSE),
)
QUICK_PROBLEMS = (
    Problem("tiny experts", 1, (_COLUMNS, _GROUPED, _GATHERED)),
    Problem("tiny experts", 16, (_COLUMNS, _PADDED_0)),
    Problem("tiny linear", 1, _CLOSE),
    Problem("tiny linear", 64, _ALL),
)


@dataclass(frozen=True)
class Candidate:
    """A tactic as every tuner here sees it: a call for each layer, on that layer's weights and its own live input."""

    name: str
    calls: tuple[Callable[[], Any], ...]
    bytes: int = 0
    flush: None = None  #: going round the layers leaves their weights cold


class Layers:
    """The layers of one shape, with random weights, and what a dummy run over them at the wanted rows has collected."""

    def __init__(self, shape: Shape, rows: Sequence[int], device: Device, seed: int) -> None:
        self.shape = shape
        self.spec = copy.copy(experts if shape.op == "experts" else linear)
        self._rng = torch.Generator().manual_seed(seed)
        first = self._weights()
        self.bindings = [self._bind(first, again=bool(layer)) for layer in range(shape.layers)]
        self._collection = Collection(device)
        with torch.inference_mode(), collecting(self._collection):
            for count in rows:
                for binding in self.bindings:
                    binding.caller()(*self._input(count))

    def task(self, rows: int) -> Task:
        """The problem as a session of tunebook would settle it."""
        return next(task for task in tasks(self._collection) if set(task.sizes.values()) == {rows})

    def offer(self, tactics: Sequence[str]) -> None:
        """Let the op of these layers offer these tactics and no others, so that tunebook's own code finds them."""
        wanted = [Tactic.parse(name) for name in tactics]
        runners = (experts if self.shape.op == "experts" else linear).runners
        self.spec.runners = {
            name: dataclasses.replace(runner, combinations=tuple(tactic for tactic in wanted if runner.offers(tactic)))
            for name, runner in runners.items()
            if any(map(runner.offers, wanted))
        }

    def candidates(self, task: Task, tactics: Sequence[str]) -> list[Candidate]:
        """The tactics on the same layers and inputs that tunebook's own race rotates over; their weights get prepared."""
        self.offer(tactics)
        inputs = task.inputs(task.sizes, random.Random(0), self.bindings)
        found = []
        for name in tactics:
            functions = [binding.bound(Tactic.parse(name)) for binding in self.bindings]
            pairs = zip(functions, inputs, strict=True)
            found.append(Candidate(name, tuple(_call(function, args) for function, args in pairs)))
        return found

    def close(self) -> None:
        for binding in self.bindings:
            binding.close()
        self.bindings = []

    def _weights(self) -> tuple[torch.Tensor, ...]:
        sizes = self.shape.sizes
        if self.shape.op == "linear":
            return (self._random(sizes[0], sizes[1]),)
        count, _, hidden, inner = sizes
        return self._random(count, 2 * inner, hidden), self._random(count, hidden, inner)

    def _bind(self, weights: Sequence[torch.Tensor], *, again: bool) -> Binding:
        """A layer of its own memory; the values repeat, which no timing depends on and making them is slow."""
        own = [weight.clone() if again else weight for weight in weights]
        rest = ("silu",) if self.shape.op == "experts" else (None,)
        return self.spec.bind(*own, *rest, scope=Scope("quality"), default_version="quality")

    def _input(self, rows: int) -> tuple[torch.Tensor, ...]:
        if self.shape.op == "linear":
            return (torch.randn(rows, self.shape.sizes[1], generator=self._rng).bfloat16(),)
        count, chosen, hidden, _ = self.shape.sizes
        x = torch.randn(rows, hidden, generator=self._rng).bfloat16()
        bias = ROUTING_SKEW * torch.randn(count, generator=self._rng)
        scores, index = (torch.randn(rows, count, generator=self._rng) + bias).topk(chosen)
        return x, index, scores.softmax(-1).bfloat16()

    def _random(self, *sizes: int) -> torch.Tensor:
        return torch.empty(sizes, dtype=torch.bfloat16).uniform_(-0.03, 0.03, generator=self._rng)


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], Any]:
    return lambda: function(*args)
