"""The ops on rows of activations: RMS norm, residual sum, and both at once. They round where Transformers' modules round."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tunebook.dispatch import op
from tunebook.ops import Description, draw_rows, dtype_name, pow2

_ROWS = {"x": {0: pow2(name="M")}}


def _describe(args: Sequence[Any]) -> Description:
    tensors = [value for value in args if isinstance(value, Tensor)]
    x = tensors[0]
    names = tuple(dict.fromkeys(dtype_name(value.dtype) for value in tensors))
    return Description((("H", str(x.shape[-1])),), names, {"M": math.prod(x.shape[:-1])})


def _resample(dynamic: Sequence[Any], sizes: Mapping[str, int], rng: random.Random) -> tuple[Any, ...]:
    first = dynamic[0]
    rows = draw_rows(math.prod(first.shape[:-1]), sizes["M"], rng).to(first.device)
    return tuple(
        value.reshape(-1, value.shape[-1]).index_select(0, rows).reshape(*([1] * (value.ndim - 2)), len(rows), -1)
        for value in dynamic
    )


def _extremes(args: Sequence[Any], rng: random.Random) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Rows whose norm is decided by epsilon, and rows with an outlier."""
    dynamic = [value for value in args[:2] if isinstance(value, Tensor) and value.ndim > 1]
    yield "rows of zeros", tuple(torch.zeros_like(value) for value in dynamic)
    far = [value.clone(memory_format=torch.contiguous_format) for value in dynamic]
    for value in far:
        value[..., rng.randrange(value.shape[-1])] = 1e4
    yield "an element of 10,000", tuple(far)


@op(
    "rms_norm",
    buckets=_ROWS,
    constants=("weight", "epsilon"),
    describe=_describe,
    resample=_resample,
    extremes=_extremes,
    lead="x",
)
def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """weight [H] times x [..., H] divided by the root of its rows' mean square plus epsilon: [..., H].

    Computed in fp32; the quotient is rounded to x's dtype before the product, as in Transformers.
    """
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight * wide.to(x.dtype)


@op(
    "residual_add",
    buckets=_ROWS,
    constants=("multiplier",),
    describe=_describe,
    resample=_resample,
    lead="x",
)
def residual_add(x: Tensor, residual: Tensor, multiplier: float) -> Tensor:
    """residual [..., H] plus x [..., H] times multiplier, of one dtype; the product is rounded before the sum.

    x has as many rows as residual, whose shape the result has: x may have its rows in one dimension.
    """
    return residual + (x if multiplier == 1 else x * multiplier).reshape(residual.shape)


@op(
    "add_rms_norm",
    buckets=_ROWS,
    constants=("weight", "epsilon", "multiplier"),
    describe=_describe,
    resample=_resample,
    extremes=_extremes,
    lead="x",
)
def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, epsilon: float, multiplier: float
) -> tuple[Tensor, Tensor]:
    """`residual_add` of x and residual [..., H], and `rms_norm` of the sum with weight [H]: both of residual's shape.

    What stands between two blocks of a layer. It rounds where the two ops do.
    """
    total = residual_add.function(x, residual, multiplier)
    return total, rms_norm.function(total, weight, epsilon)
