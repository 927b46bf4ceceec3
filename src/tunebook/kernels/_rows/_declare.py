"""The runners of the row ops: `native`, and `torch` where PyTorch has the whole op as one function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tunebook.dispatch import Op
from tunebook.kernels._native._available import shared_objects, unavailable
from tunebook.kernels._rows import _native as native
from tunebook.kernels._rows._ops import add_rms_norm, residual_add, rms_norm
from tunebook.kernels._rows._router import router
from tunebook.records import Problem

#: Elements that a second thread needs to be worth waking: it takes some microseconds, in which one does about so many.
PARALLEL_LEAST = 1 << 14
#: Tokens from which a router's weight may be packed at each call instead of being read along its rows.
TILES_LEAST_ROWS = 5
_DTYPES = ("bf16", "fp32")
_PARALLEL: dict[str, tuple[bool, ...]] = {"parallel": (False, True)}


def declare() -> None:
    """Declare the shipped runners; where the kernels cannot be used, `available` says why."""
    _declare(rms_norm, native.bind_rms_norm, _PARALLEL)
    _declare(add_rms_norm, native.bind_add_rms_norm, _PARALLEL)
    _declare(residual_add, native.bind_residual_add, _PARALLEL)
    _declare(router, native.bind_router, {"dot": (True, False), **_PARALLEL})
    rms_norm.runner("torch", supports=_one_dtype, libraries=("torch",))(_torch_rms_norm)


def _declare(op: Op[..., Any], bind: Callable[..., Callable[..., Any]], space: dict[str, tuple[bool, ...]]) -> None:
    op.runner(
        "native",
        space,
        available=unavailable,
        sources=shared_objects(),
        bits=lambda *, dot=True, **_: "rows" if dot else "tiles",  # no row is computed with the help of another
        bind=bind,
        supports=functools.partial(_refusal, op.name),
    )(native.served(bind, len(op.dynamic)))


def _refusal(op: str, problem: Problem, *, parallel: bool, dot: bool = True) -> str | None:
    """Why a tactic does not fit a problem, or None: one dtype, bf16 or fp32, and work enough for tiles and threads."""
    if problem.dtypes not in [(name,) for name in _DTYPES]:
        return f"the native kernels take bf16 or fp32 throughout, not {', '.join(problem.dtypes)}"
    sizes, rows = dict(problem.attrs), problem.dims[0].size
    if not dot and rows < TILES_LEAST_ROWS:
        return "too few rows for tiles"
    if parallel and int(sizes["H"]) * rows * int(sizes.get("E", 1)) < PARALLEL_LEAST:
        return "too little work for several threads"
    return None


def _one_dtype(problem: Problem) -> str | None:
    return None if len(problem.dtypes) == 1 else "needs x and weight of one dtype"


def _torch_rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, epsilon)
