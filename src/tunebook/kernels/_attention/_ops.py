"""What `qkv` and `attend` mean, their keys and buckets."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunebook.dispatch import op
from tunebook.errors import OpError
from tunebook.ops import Description, draw_rows, dtype_name, pow2


def _describe_qkv(args: Sequence[Any]) -> Description:
    x, cos, _, wq, wk, _, bq, _, _, q_norm, _, dim, _, clip = args
    if x.ndim != 3 or cos.shape[-1] != dim:
        raise OpError(
            f"qkv takes x [B, T, H] and angles [1 or B, T, {dim}], not {tuple(x.shape)} and {tuple(cos.shape)}"
        )
    norm = () if q_norm is None else (("norm", "head" if len(q_norm) == dim else "whole"),)
    attrs = (
        ("N", str(len(wq))),
        ("KV", str(len(wk))),
        ("K", str(x.shape[-1])),
        ("D", str(dim)),
        *((("bias", "yes"),) if bq is not None else ()),
        *norm,
        *((("clip", "yes"),) if clip is not None else ()),
    )
    dtypes = [dtype_name(x.dtype)]
    for name, value in (("weight", wq), ("cos", cos)):
        if value.dtype != x.dtype:
            dtypes.append(f"{name}:{dtype_name(value.dtype)}")
    return Description(attrs, tuple(dtypes), {"M": x.shape[0] * x.shape[1]})


def _resample_qkv(dynamic: Sequence[Any], sizes: Mapping[str, int], rng: random.Random) -> tuple[Any, ...]:
    """Whole rows: a token keeps its own position. A batch of single tokens stays one, anything else becomes one sequence."""
    x, cos, sin = dynamic
    batch, tokens, _ = x.shape
    rows = draw_rows(batch * tokens, sizes["M"], rng).to(x.device)
    drawn = [
        value.expand(batch, tokens, value.shape[-1]).reshape(batch * tokens, -1).index_select(0, rows)
        for value in (x, cos, sin)
    ]
    return tuple(value.unsqueeze(1 if tokens == 1 else 0) for value in drawn)


@op(
    "qkv",
    buckets={"x": {0: pow2(name="M")}},
    constants=("wq", "wk", "wv", "bq", "bk", "bv", "q_norm", "k_norm", "dim", "eps", "clip"),
    describe=_describe_qkv,
    resample=_resample_qkv,
    lead="x",
)
def qkv(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    bq: Tensor | None,
    bk: Tensor | None,
    bv: Tensor | None,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    dim: int,
    eps: float,
    clip: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The three projections of an attention layer as heads, queries and keys turned to their positions (RoPE, by halves).

    x [B, T, H]; cos, sin [1 or B, T, dim]; wq [Hq·dim, H], wk and wv [Hk·dim, H], each with a bias or None; q_norm and
    k_norm are weights of RMS norms with `eps`: [dim] over each head, [Hq·dim] and [Hk·dim] over the whole projection, or
    None; after them all three are clipped to ±clip, unless it is None. Returns q [B, Hq, T, dim], k and v [B, Hk, T, dim]
    in x's dtype.
    """
    heads = []
    for weight, bias, norm in ((wq, bq, q_norm), (wk, bk, k_norm), (wv, bv, None)):
        value = F.linear(x, weight, bias)
        if norm is not None and len(norm) != dim:
            value = _rms(value, norm, eps)
        value = value.unflatten(-1, (-1, dim))
        if norm is not None and len(norm) == dim:
            value = _rms(value, norm, eps)
        heads.append((value if clip is None else value.clamp(-clip, clip)).transpose(1, 2))
    q, k, v = heads
    return _turned(q, cos, sin), _turned(k, cos, sin), v


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(1) + torch.cat((-high, low), dim=-1) * sin.unsqueeze(1)


def _describe_attend(args: Sequence[Any]) -> Description:
    q, k, v, mask, keys, _ = args
    if q.ndim != 4 or q.shape[2] != 1 or k.ndim != 4 or k.shape != v.shape or not 0 <= keys <= k.shape[2]:
        raise OpError("attend takes q [B, Hq, 1, D], k and v [B, Hk, C, D], and at most C keys")
    if mask is not None and (tuple(mask.shape) not in ((1, 1, 1, keys), (len(q), 1, 1, keys))):
        raise OpError(f"attend takes a mask [1 or B, 1, 1, keys], not {tuple(mask.shape)}")
    attrs = (("Hq", str(q.shape[1])), ("Hk", str(k.shape[1])), ("D", str(q.shape[3])))
    dtypes = [dtype_name(q.dtype)]
    if k.dtype != q.dtype:
        dtypes.append(f"k:{dtype_name(k.dtype)}")
    return Description(attrs, tuple(dtypes), {"M": len(q)})


def _resample_attend(dynamic: Sequence[Any], sizes: Mapping[str, int], rng: random.Random) -> tuple[Any, ...]:
    """Whole sequences: a query keeps its own keys."""
    q, k, v, mask, keys = dynamic
    rows = draw_rows(len(q), sizes["M"], rng).to(q.device)
    drawn = [value.index_select(0, rows) for value in (q, k, v)]
    own = mask if mask is None or len(mask) == 1 else mask.index_select(0, rows)
    return (*drawn, own, keys)


def _extreme_masks(args: Sequence[Any], rng: random.Random) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Padding, which a live batch may not show, and memory behind the keys that is not theirs."""
    q, k, v, _, keys, _ = args
    if keys < 2:
        return
    seen = torch.ones(len(q), 1, 1, keys, dtype=torch.bool, device=q.device)
    for row in range(len(q)):
        seen[row, ..., : rng.randrange(keys)] = False
    yield "padding before the keys", (q, k, v, seen, keys)
    yield (
        "padding as an added mask",
        (q, k, v, torch.zeros_like(seen, dtype=q.dtype).masked_fill(~seen, -torch.inf), keys),
    )
    fewer = keys - 1
    wild = [value.clone() for value in (k, v)]
    for value in wild:
        value[:, :, fewer:] = torch.nan
    yield "fewer keys than there is room for", (q, *wild, None, fewer)


@op(
    "attend",
    buckets={"q": {0: pow2(name="M")}},
    constants=("scaling",),
    describe=_describe_attend,
    resample=_resample_attend,
    extremes=_extreme_masks,
    lead="q",
)
def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, keys: int, scaling: float) -> Tensor:
    """Attention of one new token of each sequence: softmax(scaling · q kᵀ + mask) v.

    q [B, Hq, 1, D]; k and v [B, Hk, C, D], of which the first `keys` count, Hq a multiple of Hk; mask [1 or B, 1, 1, keys],
    boolean (False: not seen) or added to the scores, or None. Returns [B, 1, Hq, D] in q's dtype. How many keys there are
    is no part of the key: it changes with every token.
    """
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(
        q, k[:, :, :keys], v[:, :, :keys], attn_mask=mask, scale=scaling, enable_gqa=grouped
    )
    return out.transpose(1, 2).contiguous()
