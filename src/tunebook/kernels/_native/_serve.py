"""What the runners call: a tactic's parameters become a function of the dynamic arguments, everything else looked up once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tunebook.kernels._native import _native
from tunebook.kernels._native._calls import experts, linear
from tunebook.kernels._native._space import tactic
from tunebook.kernels._native._weights import Weights


def usable_threads() -> int:
    """PyTorch's thread count, but no more than affinity and cgroup leave to this process."""
    return max(1, min(torch.get_num_threads(), _native.processors()))


def tactic_of(*, block: int = 0, threads: int = 0, **params: Any) -> _native.Tactic:
    """The kernels' tactic of a runner's parameters; threads 0 stands for all that may be used."""
    return tactic(threads=threads or usable_threads(), **params)


def bind_linear(weights: Weights, bias: Tensor | None, chosen: _native.Tactic) -> Callable[[Tensor], Tensor]:
    """The function of x [..., K]."""
    return lambda x: linear(x, weights, bias, chosen)


def bind_experts(
    gate_up: Weights, down: Weights, activation: str, chosen: _native.Tactic
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The function of x [M, H], index [M, K] and scores [M, K]."""
    return lambda x, index, scores: experts(x, index, scores, gate_up, down, activation, chosen)


def unpacked(weights: Weights, *, last: bool) -> Tensor:
    """The tensor that was packed, bit for bit; with `last`, in the memory of the packed form where that was the tensor's own."""
    return weights.unpack(threads=usable_threads())


def in_place_refusal(weight: Tensor, *, block: int, gated: bool = False) -> str | None:
    """Why a weight cannot be packed in its own memory, or None."""
    return "not built"
