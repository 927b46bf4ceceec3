"""The row ops on the native kernels. Each `bind_…` looks everything up once and gives the function that serves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunebook.kernels._rows._router import SCORINGS

if TYPE_CHECKING:
    from tunebook.kernels._native._native import Rows


def rows(isa: str | None = None) -> Rows:
    """The row kernels of an instruction set, of the best one without a name. Raises ValueError for one that is not usable."""
    from tunebook.kernels._native import _native

    return _native.rows(isa or _native.instruction_sets()[0])


def _threads(parallel: bool) -> int:
    from tunebook.kernels._native._serve import usable_threads

    return usable_threads() if parallel else 1


def _exchanged() -> bool:
    """Whether tensors are read and made in C++, by DLPack's exchange interface."""
    from tunebook.kernels._native import _calls

    return _calls._EXCHANGE


def _refuse_weight(weight: Tensor) -> None:
    if weight.dtype not in (torch.bfloat16, torch.float32) or not weight.is_cpu or not weight.is_contiguous():
        raise ValueError("a weight must be a contiguous bfloat16 or float32 tensor on the CPU")


def bind_rms_norm(
    weight: Tensor, epsilon: float, *, parallel: bool, isa: str | None = None
) -> Callable[[Tensor], Tensor]:
    """The function of x [..., H], contiguous and of the weight's dtype, that gives its norm; ValueError for a wrong weight."""
    _refuse_weight(weight)
    kernels, threads, inner, f32 = rows(isa), _threads(parallel), len(weight), weight.dtype == torch.float32
    if _exchanged():
        return kernels.bind_rms_norm(weight, weight.data_ptr(), epsilon, inner, f32, threads)
    run = kernels.rms_norm

    def norm(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        run(x.data_ptr(), weight.data_ptr(), epsilon, x.numel() // (inner or 1), inner, out.data_ptr(), f32, threads)
        return out

    return norm


def bind_add_rms_norm(
    weight: Tensor, epsilon: float, multiplier: float, *, parallel: bool, isa: str | None = None
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The function of x and residual [..., H], contiguous and of the weight's dtype, that gives their sum and its norm.

    ValueError for a wrong weight.
    """
    _refuse_weight(weight)
    kernels, threads, inner, f32 = rows(isa), _threads(parallel), len(weight), weight.dtype == torch.float32
    if _exchanged():
        return kernels.bind_add_rms_norm(weight, weight.data_ptr(), epsilon, multiplier, inner, f32, threads)
    run = kernels.add_rms_norm

    def add_norm(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total, out = torch.empty_like(residual), torch.empty_like(residual)
        run(
            x.data_ptr(), residual.data_ptr(), multiplier, weight.data_ptr(), epsilon, x.numel() // (inner or 1), inner,
            total.data_ptr(), out.data_ptr(), f32, threads,
        )  # fmt: skip
        return total, out

    return add_norm


def bind_residual_add(
    multiplier: float, *, parallel: bool, isa: str | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The function of x and residual [..., H], contiguous, both bf16 or both fp32, that gives residual + x * multiplier."""
    kernels, threads = rows(isa), _threads(parallel)
    if _exchanged():
        return kernels.bind_residual_add(multiplier, threads)
    run = kernels.residual_add

    def add(x: Tensor, residual: Tensor) -> Tensor:
        if not x.is_cpu:  # no weight has told so before
            raise ValueError("x and residual must be on the CPU")
        total, inner = torch.empty_like(residual), residual.shape[-1] or 1
        f32 = residual.dtype == torch.float32
        run(
            x.data_ptr(), residual.data_ptr(), multiplier, x.numel() // inner, inner, total.data_ptr(), f32, threads
        )  # fmt: skip
        return total

    return add


def bind_router(
    weight: Tensor, choices: int, scoring: str, *, dot: bool, parallel: bool, isa: str | None = None
) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """The function of x [M, H], contiguous and of the weight's dtype, that gives logits, scores and index.

    dot: the logits by dot products along the weight's rows; else by tiles, which pack the weight at each call and read it
    less often for many tokens.

    Raises ValueError for a wrong weight and for more choices than experts, KeyError for an unknown scoring.
    """
    _refuse_weight(weight)
    how, f32, kernels, threads = SCORINGS[scoring], weight.dtype == torch.float32, rows(isa), _threads(parallel)
    experts, inner = weight.shape
    if not 0 <= choices <= experts:
        raise ValueError(f"{choices} of {experts} experts cannot be chosen")
    kind = 0 if how.chosen else 1 + how.renormalise
    wide, wide_scores = how.wide_logits or f32, how.wide_scores or f32
    if _exchanged():
        return kernels.bind_router(
            weight, weight.data_ptr(), experts, inner, choices, kind, dot, f32, wide, wide_scores, threads
        )
    run, dtype = kernels.router, weight.dtype

    def route(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = x.shape[0]
        logits = torch.empty((tokens, experts), dtype=torch.float32 if wide else dtype)
        scores = torch.empty((tokens, choices), dtype=torch.float32 if wide_scores else dtype)
        index = torch.empty((tokens, choices), dtype=torch.int64)
        run(
            x.data_ptr(), weight.data_ptr(), tokens, experts, inner, choices, kind, dot, f32,
            logits.data_ptr(), wide, scores.data_ptr(), wide_scores, index.data_ptr(), threads,
        )  # fmt: skip
        return logits, scores, index

    return route


def served(bind: Callable[..., Callable[..., Any]], dynamic: int) -> Callable[..., Any]:
    """A runner's function: what `bind` gives for the constants after `dynamic` arguments, called once."""

    def serve(*args: Any, **params: Any) -> Any:
        return bind(*args[dynamic:], **params)(*args[:dynamic])

    return serve
