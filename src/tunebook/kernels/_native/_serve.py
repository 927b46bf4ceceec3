"""What the runners call: a tactic's parameters become a function of the dynamic arguments, everything else looked up once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunebook.kernels._native import _native
from tunebook.kernels._native._calls import bind_experts, bind_linear
from tunebook.kernels._native._tactic import tactic
from tunebook.kernels._native._weights import Weights, in_place_refusal, pack, view


def usable_threads() -> int:
    """PyTorch's thread count, but no more than affinity and cgroup leave to this process."""
    return max(1, min(torch.get_num_threads(), _native.processors()))


def tactic_of(*, threads: Any = 0, block: Any = 0, **params: Any) -> _native.Tactic:
    """The kernels' tactic of a runner's parameters; threads 0 stands for all that may be used."""
    return tactic(threads=threads or usable_threads(), **params)


def unpacked(weights: Weights, *, last: bool) -> Tensor:
    """The tensor that was packed, bit for bit; with `last`, in the memory of the packed form where that was the tensor's own."""
    threads = usable_threads()
    return weights.unpack_in_place(threads=threads) if last and weights.in_place else weights.unpack(threads=threads)


__all__ = [
    "bind_experts",
    "bind_linear",
    "in_place_refusal",
    "pack",
    "tactic_of",
    "unpacked",
    "usable_threads",
    "view",
]
