"""The ops that ship, `linear` and `experts`: their meaning, keys and buckets. Runners are declared beside their kernels."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunebook.dispatch import Op, op
from tunebook.ops import Description, draw_rows, dtype_name, pow2

_ROWS = {"x": {0: pow2(name="M")}}


def _float_dtypes(named: Sequence[tuple[str, Tensor]]) -> tuple[str, ...]:
    """The first dtype, and by name each other one that differs from it."""
    first = dtype_name(named[0][1].dtype)
    return (first, *(f"{n}:{dtype_name(t.dtype)}" for n, t in named[1:] if dtype_name(t.dtype) != first))


def _describe_linear(args: Sequence[Any]) -> Description:
    x, weight, bias = args
    rows, inner = math.prod(x.shape[:-1]), x.shape[-1]
    attrs = (("N", str(weight.shape[0])), ("K", str(inner)), *((("bias", "yes"),) if bias is not None else ()))
    return Description(attrs, _float_dtypes((("x", x), ("weight", weight))), {"M": rows})


def _resample_linear(dynamic: Sequence[Any], sizes: Mapping[str, int], rng: random.Random) -> tuple[Any, ...]:
    (x,) = dynamic
    flat = x.reshape(-1, x.shape[-1])
    rows = flat.index_select(0, draw_rows(len(flat), sizes["M"], rng).to(x.device))
    return (rows.reshape(*([1] * (x.ndim - 2)), *rows.shape) if x.ndim > 1 else rows,)


@op(
    "linear",
    buckets=_ROWS,
    constants=("weight", "bias"),
    describe=_describe_linear,
    resample=_resample_linear,
    lead="x",
)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., K] times weight [N, K] transposed, plus bias [N] or None: [..., N]. Floating point, all of one dtype."""
    return F.linear(x, weight, bias)


def _describe_experts(args: Sequence[Any]) -> Description:
    x, index, scores, gate_up, down, activation = args
    experts, hidden, inner = down.shape
    attrs = (
        ("E", str(experts)),
        ("K", str(index.shape[1])),
        ("H", str(hidden)),
        ("I", str(inner)),
        *((("act", activation),) if activation != "silu" else ()),
    )
    return Description(attrs, _float_dtypes((("x", x), ("weights", gate_up), ("scores", scores))), {"M": x.shape[0]})


def _resample_experts(dynamic: Sequence[Any], sizes: Mapping[str, int], rng: random.Random) -> tuple[Any, ...]:
    """Whole rows: a token keeps its own experts and scores."""
    rows = draw_rows(len(dynamic[0]), sizes["M"], rng).to(dynamic[0].device)
    return tuple(value.index_select(0, rows) for value in dynamic)


def _extreme_routings(args: Sequence[Any], rng: random.Random) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Routings that a live batch seldom shows: one expert has everything, most have nothing, choices without an expert."""
    x, index, scores, _, down, _ = args
    experts, choices = len(down), index.shape[1]
    one = rng.randrange(experts)
    yield f"every choice is expert {one}", (x, torch.full_like(index, one), scores)
    if choices < experts:
        # Spread out, and not the first: idle experts lie before and between busy ones.
        few = [experts - 1 - i * experts // choices for i in reversed(range(choices))]
        same = torch.tensor(few, dtype=index.dtype, device=index.device).expand_as(index).contiguous()
        yield f"every token has the experts {few}, the others are idle", (x, same, scores)
    some = index.clone(memory_format=torch.contiguous_format)
    some.view(-1)[::2] = experts
    if len(some) > 1:
        some[0] = experts
    yield "half of the choices have no expert", (x, some, scores)
    yield "no choice has an expert", (x, torch.full_like(index, experts), scores)


@op(
    "experts",
    buckets=_ROWS,
    constants=("gate_up", "down", "activation"),
    describe=_describe_experts,
    resample=_resample_experts,
    extremes=_extreme_routings,
    lead="x",
)
def experts(x: Tensor, index: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    """A gated mixture of experts, summed over each token's choices.

    x [M, H]; index [M, K] int64 in 0…E (E: no expert; an expert may stand in a row twice); scores [M, K], any float dtype;
    gate_up [E, 2I, H], gate rows first; down [E, H, I]; activation, a name such as "silu". Returns [M, H] in x's dtype:
    the sum over k of scores[m, k] · down[e] @ (act(gate) · up), e = index[m, k].

    A tactic is checked on routings of every kind, whatever the live ones are: one expert with all tokens, idle experts,
    and, where the default takes them, choices without an expert.
    """
    from tunebook.kernels._experts._torch import loop

    with torch.no_grad():
        return loop(x, index, scores, gate_up, down, activation)


__all__ = ["Op", "experts", "linear"]
