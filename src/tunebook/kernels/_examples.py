"""Example inputs of the shipped ops: random tensors of a problem's sizes and dtypes, scaled as a model's are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tunebook.errors import OpError
from tunebook.kernels._attention import attend, qkv
from tunebook.kernels._ops import experts, linear
from tunebook.kernels._rows import add_rms_norm, residual_add, rms_norm, router
from tunebook.ops import dtype_name
from tunebook.records import Problem

#: Up to so many rows `qkv` gets single tokens of as many sequences, as in decoding; beyond, the tokens of one sequence.
DECODING_MOST_ROWS = 64
#: Cached keys have room to grow: capacity is the next multiple of this.
CAPACITY_STEP = 256
#: What no key tells, and no tactic's speed depends on.
_EPSILON, _CLIP, _ROPE_BASE, _POSITIONS = 1e-6, 8.0, 10_000.0, 4096

Sizes = Mapping[str, int]
_DTYPES = {dtype_name(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


def declare() -> None:
    """Give each shipped op its example."""
    linear.example = _linear
    experts.example = _experts
    rms_norm.example = _rms_norm
    residual_add.example = _residual_add
    add_rms_norm.example = _add_rms_norm
    router.example = _router
    qkv.example = _qkv
    attend.example = _attend


class _Draw:
    """Random tensors from one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        """Normal numbers around 0 with this deviation."""
        return self.around(0.0, *shape, dtype=dtype, scale=scale)

    def around(self, mean: float, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        made = torch.float32 if dtype.itemsize < torch.bfloat16.itemsize else dtype
        return torch.empty(shape, dtype=made).normal_(mean, scale, generator=self.generator).to(dtype)

    def weight(self, rows: int, inner: int, dtype: torch.dtype) -> Tensor:
        """[rows, inner]: its product with normal numbers is of their size."""
        return self.normal(rows, inner, dtype=dtype, scale=max(1, inner) ** -0.5)


def _dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise OpError(f"dtype {name!r} is none of torch's")
    return _DTYPES[name]


def _dtypes(problem: Problem) -> tuple[torch.dtype, dict[str, torch.dtype]]:
    """The first dtype, and those that differ from it by name."""
    named = (part.partition(":") for part in problem.dtypes[1:])
    return _dtype(problem.dtypes[0]), {name: _dtype(text) for name, _, text in named}


def _linear(problem: Problem, sizes: Sizes, seed: int) -> tuple[Any, ...]:
    attrs, draw = dict(problem.attrs), _Draw(seed)
    rows, inner, out = sizes["M"], int(attrs["K"]), int(attrs["N"])
    dtype, others = _dtypes(problem)
    kept = others.get("weight", dtype)
    x, weight = draw.normal(rows, inner, dtype=dtype), draw.weight(out, inner, kept)
    return x, weight, draw.normal(out, dtype=kept, scale=0.1) if "bias" in attrs else None


def _experts(problem: Problem, sizes: Sizes, seed: int) -> tuple[Any, ...]:
    """Each token has different experts, the greatest of random logits, and their softmax as scores."""
    attrs, draw = dict(problem.attrs), _Draw(seed)
    count, choices, hidden, inner = (int(attrs[name]) for name in ("E", "K", "H", "I"))
    rows = sizes["M"]
    dtype, others = _dtypes(problem)
    kept = others.get("weights", dtype)
    values, index = draw.normal(rows, count, dtype=torch.float32).topk(choices, dim=-1)
    scores = torch.softmax(values, dim=-1).to(others.get("scores", dtype))
    gate_up = draw.normal(count, 2 * inner, hidden, dtype=kept, scale=max(1, hidden) ** -0.5)
    down = draw.normal(count, hidden, inner, dtype=kept, scale=max(1, inner) ** -0.5)
    return draw.normal(rows, hidden, dtype=dtype), index, scores, gate_up, down, attrs.get("act", "silu")


def _row_dtypes(problem: Problem, count: int) -> list[torch.dtype]:
    """The dtypes of `count` tensors, of which a key names each once: what is not named is like the first."""
    named = [_dtype(name) for name in problem.dtypes]
    return [*[named[0]] * (count - len(named)), *named]


def _rms_norm(problem: Problem, sizes: Sizes, seed: int) -> tuple[Any, ...]:
    hidden, draw = int(dict(problem.attrs)["H"]), _Draw(seed)
    dtype, kept = _row_dtypes(problem, 2)
    x = draw.normal(sizes["M"], hidden, dtype=dtype)
    return x, draw.around(1.0, hidden, dtype=kept, scale=0.1), _EPSILON


def _residual_add(problem: Problem, sizes: Sizes, seed: int, *, multiplier: float = 1.0) -> tuple[Any, ...]:
    hidden, draw = int(dict(problem.attrs)["H"]), _Draw(seed)
    x, residual = (draw.normal(sizes["M"], hidden, dtype=dtype) for dtype in _row_dtypes(problem, 2))
    return x, residual, multiplier


def _add_rms_norm(problem: Problem, sizes: Sizes, seed: int, *, multiplier: float = 1.0) -> tuple[Any, ...]:
    hidden, draw = int(dict(problem.attrs)["H"]), _Draw(seed)
    first, second, kept = _row_dtypes(problem, 3)
    x, residual = (draw.normal(sizes["M"], hidden, dtype=dtype) for dtype in (first, second))
    return x, residual, draw.around(1.0, hidden, dtype=kept, scale=0.1), _EPSILON, multiplier


def _router(problem: Problem, sizes: Sizes, seed: int) -> tuple[Any, ...]:
    attrs, draw = dict(problem.attrs), _Draw(seed)
    dtype, kept = _row_dtypes(problem, 2)
    x = draw.normal(sizes["M"], int(attrs["H"]), dtype=dtype)
    return x, draw.weight(int(attrs["E"]), int(attrs["H"]), kept), int(attrs["K"]), attrs["scoring"]


def _qkv(problem: Problem, sizes: Sizes, seed: int, *, batch: int = 0) -> tuple[Any, ...]:
    """`batch` sequences (0: as `DECODING_MOST_ROWS` says) of which single tokens have random positions of their own."""
    attrs, draw, rows = dict(problem.attrs), _Draw(seed), sizes["M"]
    queries, keys, hidden, dim = (int(attrs[name]) for name in ("N", "KV", "K", "D"))
    dtype, others = _dtypes(problem)
    kept, angles = others.get("weight", dtype), others.get("cos", dtype)
    batch = batch or (rows if rows <= DECODING_MOST_ROWS else 1)
    if batch < 1 or rows % batch:
        raise OpError(f"{rows} rows are not those of {batch} sequences of one length")
    tokens = rows // batch
    drawn = torch.randint(_POSITIONS, (batch, 1), generator=draw.generator)
    positions = drawn if tokens == 1 else torch.arange(tokens).expand(batch, tokens)
    turns = positions[..., None] * _ROPE_BASE ** (-torch.arange(0, dim, 2) / dim)
    turns = torch.cat((turns, turns), dim=-1)
    counts = (queries, keys, keys)
    biases = [draw.normal(n, dtype=kept, scale=0.1) if "bias" in attrs else None for n in counts]
    lengths = {"head": (dim, dim), "whole": (queries, keys)}.get(attrs.get("norm", ""))
    norms: list[Tensor | None] = [None, None]
    if lengths is not None:
        norms = [draw.around(1.0, n, dtype=kept, scale=0.1) for n in lengths]
    return (
        draw.normal(batch, tokens, hidden, dtype=dtype),
        turns.cos().to(angles),
        turns.sin().to(angles),
        *(draw.weight(n, hidden, kept) for n in counts),
        *biases,
        *norms,
        dim,
        _EPSILON,
        _CLIP if "clip" in attrs else None,
    )


def _attend(problem: Problem, sizes: Sizes, seed: int, *, keys: int = 512) -> tuple[Any, ...]:
    """So many cached `keys` for every sequence, without a mask."""
    attrs, draw, rows = dict(problem.attrs), _Draw(seed), sizes["M"]
    heads, kv_heads, dim = (int(attrs[name]) for name in ("Hq", "Hk", "D"))
    if keys < 1:
        raise OpError(f"keys={keys}: there is at least one key")
    dtype, others = _dtypes(problem)
    room = (rows, kv_heads, math.ceil(keys / CAPACITY_STEP) * CAPACITY_STEP, dim)
    k, v = (draw.normal(*room, dtype=others.get("k", dtype)) for _ in range(2))
    return draw.normal(rows, heads, 1, dim, dtype=dtype), k, v, None, keys, dim**-0.5
