"""The frozen problems of flashinfer_protocol.py: matrix products on CPU tensors, eight tactics each, as FlashInfer's runners.

The autotuner, its selection and its look-up are FlashInfer's. Its clock is stated again for the CPU, with its own protocol
(warm-up calls, then the mean of back-to-back ones), and whether a CUDA stream is being captured is answered with no.
"""

from __future__ import annotations

import functools
import importlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from _quality_problems import Candidate
from torch import Tensor

#: The copies of a problem's weights take this much together: going round them leaves each cold, as a model's layers do.
COPIES_BYTES = 64 << 20
OP = "bench::product"


@dataclass(frozen=True)
class Product:
    """``[rows, inner] @ [columns, inner].T`` in float32."""

    rows: int
    columns: int
    inner: int

    @property
    def name(self) -> str:
        return f"{self.rows} x {self.inner} x {self.columns}"


#: The linears of Granite-3.0-1B-A400M (q, o) and of the Qwen3-MoE shape (q; o), as in quality.py.
PROBLEMS = tuple(
    Product(rows, columns, inner)
    for columns, inner in ((1024, 1024), (2048, 1024), (1024, 2048))
    for rows in (1, 8, 32, 128)
)
QUICK_PROBLEMS = (Product(1, 256, 256), Product(32, 256, 128))


class Weights:
    """Copies of one matrix in the two layouts that tactics read, and which of them the next call meets."""

    def __init__(self, product: Product, copies_bytes: int) -> None:
        generator = torch.Generator().manual_seed(product.rows)
        matrix = torch.randn(product.columns, product.inner, generator=generator)
        count = max(2, copies_bytes // matrix.nbytes)
        self.rows = [matrix.clone() for _ in range(count)]
        self.columns = [matrix.t().contiguous() for _ in range(count)]
        self._turn = 0

    def next(self) -> tuple[Tensor, Tensor]:
        """The matrix [columns, inner], and the same values as [inner, columns]."""
        self._turn = (self._turn + 1) % len(self.rows)
        return self.rows[self._turn], self.columns[self._turn]


def _plain(x: Tensor, w: Tensor, _: Tensor) -> Tensor:
    return x @ w.t()


def _by_columns(parts: int, x: Tensor, w: Tensor, _: Tensor) -> Tensor:
    out = torch.empty(x.shape[0], w.shape[0])
    for mine, part in zip(out.chunk(parts, dim=1), w.chunk(parts), strict=True):
        mine.copy_(x @ part.t())
    return out


def _by_inner(parts: int, x: Tensor, w: Tensor, _: Tensor) -> Tensor:
    out: Tensor | None = None
    for one, other in zip(x.chunk(parts, dim=1), w.chunk(parts, dim=1), strict=True):
        out = one @ other.t() if out is None else out.addmm_(one, other.t())
    assert out is not None
    return out


def _transposed(x: Tensor, w: Tensor, _: Tensor) -> Tensor:
    return (w @ x.t()).t().contiguous()


def _packed(x: Tensor, _: Tensor, packed: Tensor) -> Tensor:
    return x @ packed


def _packed_columns(parts: int, x: Tensor, _: Tensor, packed: Tensor) -> Tensor:
    return torch.cat([x @ part for part in packed.chunk(parts, dim=1)], dim=1)


Compute = Callable[[Tensor, Tensor, Tensor], Tensor]
#: By runner, its tactics. The first runner's -1 is what runs untuned.
RUNNERS: dict[str, dict[int, Compute]] = {
    "RowMajorRunner": {
        -1: _plain,
        0: functools.partial(_by_columns, 2),
        1: functools.partial(_by_columns, 4),
        2: functools.partial(_by_inner, 2),
        3: _transposed,
    },
    "PackedRunner": {
        0: _packed,
        1: functools.partial(_packed_columns, 2),
        2: functools.partial(_packed_columns, 4),
    },
}
TACTICS = tuple((runner, tactic) for runner, tactics in RUNNERS.items() for tactic in tactics)


class Problem:
    """A product with its runners, and the arguments of FlashInfer's `choose_one`."""

    def __init__(self, product: Product, copies_bytes: int = COPIES_BYTES) -> None:
        module = importlib.import_module("flashinfer.autotuner")
        self.name = product.name
        self._weights = Weights(product, copies_bytes)
        self.runners = [_runner(module, name, tactics, self._weights) for name, tactics in RUNNERS.items()]
        self._config = module.TuningConfig()
        self._inputs = [torch.randn(product.rows, product.inner), torch.empty(product.columns, 0)]

    def choose(self, tuner: Any) -> str:
        """What `tuner` chooses."""
        runner, tactic = tuner.choose_one(OP, self.runners, self._config, self._inputs)
        return name_of(type(runner).__name__, tactic)

    def candidates(self) -> list[Candidate]:
        x = self._inputs[0]
        return [
            Candidate(name_of(runner, tactic), (functools.partial(self._call, RUNNERS[runner][tactic], x),))
            for runner, tactic in TACTICS
        ]

    def _call(self, compute: Compute, x: Tensor) -> Tensor:
        return compute(x, *self._weights.next())


def name_of(runner: str, tactic: int) -> str:
    return f"{runner}[{tactic}]"


def _runner(module: Any, name: str, tactics: dict[int, Compute], weights: Weights) -> Any:
    def get_valid_tactics(self: Any, inputs: Any, profile: Any) -> list[int]:
        return list(tactics)

    def forward(self: Any, inputs: Any, tactic: int = -1, do_preparation: bool = False, **kwargs: Any) -> Tensor:
        return tactics.get(tactic, next(iter(tactics.values())))(inputs[0], *weights.next())

    body = {"get_valid_tactics": get_valid_tactics, "forward": forward}
    return type(name, (module.TunableRunner,), body)()


@contextmanager
def on_the_cpu() -> Iterator[Callable[[], Any]]:
    """FlashInfer's autotuner times calls on the CPU; gives a function that makes a tuner which knows nothing."""
    module = importlib.import_module("flashinfer.autotuner")
    importlib.import_module("flashinfer.autotuner.autotuner").logger.setLevel(logging.ERROR)
    progress = importlib.import_module("tqdm")
    held: list[Any] = []

    def fresh() -> Any:
        held[:] = [module.AutoTuner()]
        return held[0]

    fresh()
    with (
        mock.patch.object(progress, "tqdm", functools.partial(progress.tqdm, disable=True)),
        mock.patch.object(module.AutoTuner, "get", classmethod(lambda cls: held[0])),
        mock.patch.object(module.AutoTuner, "_profile_single_kernel", _by_wall_clock),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=False),
    ):
        yield fresh


def _by_wall_clock(
    tuner: Any, runner: Any, inputs: Any, tactic: Any, config: Any, input_tensor_batches: Any = None, **kwargs: Any
) -> float:
    """Milliseconds a call, as `AutoTuner._profile_single_kernel` takes them of an op with a hot L2."""
    batches = input_tensor_batches or [inputs]
    repeat: int = getattr(config, "profiling_repeat", None) or tuner.repeat
    for _ in range(tuner.warmup):
        runner(batches[-1], tactic=tactic, **kwargs)
    start = time.perf_counter()
    for turn in range(repeat):
        runner(batches[turn % len(batches)], tactic=tactic, **kwargs)
    return (time.perf_counter() - start) / repeat * 1e3
