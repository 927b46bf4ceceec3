"""`qkv` and `attend` on the native kernels: one product with the three weights packed as one, then all heads in a call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunebook.kernels._native._available import unavailable

if TYPE_CHECKING:
    from tunebook.kernels._native import Weights
    from tunebook.kernels._native._native import Heads

Qkv = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, int], Tensor]
_COMPILED = (torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class NativeQkv:
    """Packed weights [N, H] of q, k and v, one below the other; what the kernels read of the rest; and the small originals.

    `rows` are the rows of each; `bias` [N] and `norms` are fp32 copies for the kernels.
    """

    weight: Weights
    rows: tuple[int, int, int]
    bias: Tensor | None
    norms: tuple[Tensor | None, Tensor | None]
    heads: Heads
    originals: tuple[Tensor, ...]


def pack(
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
    *,
    block: int,
    **_: Any,
) -> NativeQkv:
    """A packed copy of the three weights, bf16 or fp32, for `bind`."""
    from tunebook.kernels._native import _native
    from tunebook.kernels._native import _serve as native

    rows = (len(wq), len(wk), len(wv))
    weights = [weight.detach() for weight in (wq, wk, wv)]
    packed = native.pack(weights, block=block, threads=native.usable_threads())
    parts = [
        torch.zeros(count) if part is None else part.detach().float()
        for count, part in zip(rows, (bq, bk, bv), strict=True)
    ]
    bias = None if bq is None and bk is None and bv is None else torch.cat(parts)
    norms = tuple(None if norm is None else norm.detach().float().contiguous() for norm in (q_norm, k_norm))
    heads = _native.heads(
        query_heads=rows[0] // dim,
        kv_heads=rows[1] // dim,
        dim=dim,
        query_norm=0 if norms[0] is None else norms[0].data_ptr(),
        query_eps=eps,
        key_norm=0 if norms[1] is None else norms[1].data_ptr(),
        key_eps=eps,
        whole=norms[0] is not None and len(norms[0]) != dim,
        clip=0.0 if clip is None else clip,
    )
    originals = tuple(value.detach() for value in (bq, bk, bv, q_norm, k_norm) if value is not None)
    return NativeQkv(packed, rows, bias, (norms[0], norms[1]), heads, originals)


def restore(prepared: NativeQkv, *, last: bool) -> Sequence[Tensor]:
    """wq, wk and wv, bit for bit, then the biases and norms that there are."""
    from tunebook.kernels._native import _serve as native

    return (*prepared.weight.unpack_each(threads=native.usable_threads()), *prepared.originals)


def bind(prepared: NativeQkv, **params: Any) -> Qkv:
    """The function of x, cos and sin that gives q, k and v, each contiguous, by the tactic of these parameters."""
    from tunebook.kernels._native import _calls, _native
    from tunebook.kernels._native import _serve as native

    tactic, f32 = native.tactic_of(**params), _native.Dtype.float32
    weights, layer = prepared.weight.native, prepared.heads
    bias = 0 if prepared.bias is None else prepared.bias.data_ptr()
    if _calls._EXCHANGE:
        return _native.bind_qkv(weights, layer, bias, f32, prepared, tactic)
    dim, columns, inner = layer.dim, sum(prepared.rows), prepared.weight.shape[-1]

    def call(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, width = x.shape
        angles = (1 if len(cos) == 1 else batch, tokens, dim)
        if width != inner or cos.shape != angles or sin.shape != angles or cos.dtype != sin.dtype:
            raise ValueError(f"x must be [B, T, {inner}], cos and sin [1 or B, T, {dim}]")
        x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
        q, k, v = (x.new_empty((batch, rows // dim, tokens, dim)) for rows in prepared.rows)
        packed = x.new_empty((batch * tokens, columns))
        _native.qkv(
            weights, layer, x.data_ptr(), batch, tokens, bias, f32, packed.data_ptr(), _calls._DTYPES[x.dtype], cos.data_ptr(),
            sin.data_ptr(), len(cos) != 1, _calls._DTYPES[cos.dtype], q.data_ptr(), k.data_ptr(), v.data_ptr(), tactic,
        )  # fmt: skip
        return q, k, v

    return call


def serve(x: Tensor, cos: Tensor, sin: Tensor, prepared: NativeQkv, **params: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What `bind` gives, called once."""
    return bind(prepared, **params)(x, cos, sin)


def workspace(x: Tensor, cos: Tensor, sin: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, *rest: Any, **_: Any) -> int:
    """Bytes of extra memory that one call needs: the product, the heads, x widened to fp32, and a block of sums a thread."""
    rows, columns = x.shape[0] * x.shape[1], len(wq) + len(wk) + len(wv)
    return rows * (2 * columns * x.element_size() + 4 * x.shape[-1]) + (4 << 20)


def bind_attend(scaling: float, *, isa: str, threads: int) -> Attend:
    """The function of q, k, v, mask and keys."""
    from tunebook.kernels._native import _calls, _native
    from tunebook.kernels._native import _serve as native

    tactic = native.tactic_of(isa=isa, threads=threads)
    if _calls._EXCHANGE:
        return _native.bind_attend(scaling, tactic)
    kinds = _native.Mask
    masks = {torch.bool: kinds.allowed, torch.bfloat16: kinds.bfloat16, torch.float32: kinds.float32}

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, keys: int) -> Tensor:
        batch, heads, tokens, dim = q.shape
        kv_heads, capacity = k.shape[1:3]
        room = (batch, kv_heads, capacity, dim)
        if tokens != 1 or k.shape != room or v.shape != room or k.dtype != q.dtype or v.dtype != q.dtype:
            raise ValueError("q must be [B, Hq, 1, D], k and v [B, Hk, C, D] of its dtype, and the keys at most C")
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = q.new_empty((batch, 1, heads, dim))
        place, kind, own = 0, kinds.none, False
        if mask is not None:
            if mask.shape != (1 if len(mask) == 1 else batch, 1, 1, keys):
                raise ValueError(f"the mask must be [1 or {batch}, 1, 1, {keys}]")
            if mask.dtype not in masks:
                raise ValueError("the mask must be boolean, bfloat16 or float32")
            mask = mask.contiguous()
            place, kind, own = mask.data_ptr(), masks[mask.dtype], len(mask) != 1
        _native.attend(
            q.data_ptr(), k.data_ptr(), v.data_ptr(), batch, heads, kv_heads, dim, capacity, keys, scaling, place, kind,
            own, out.data_ptr(), _calls._DTYPES[q.dtype], tactic,
        )  # fmt: skip
        return out

    return call


def serve_attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, keys: int, scaling: float, *, isa: str, threads: int
) -> Tensor:
    """What `bind_attend` gives, called once."""
    return bind_attend(scaling, isa=isa, threads=threads)(q, k, v, mask, keys)


def attend_workspace(q: Tensor, *rest: Any, **_: Any) -> int:
    """Bytes of extra memory that one call needs: the output, and sums in fp32 for up to four parts a thread."""
    return q.numel() * (q.element_size() + 4 * 8) + (1 << 20)


def append(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, at: int) -> None:
    """Write k and v [B, H, T, D] into keys and values [B, H, C, D], contiguous, of one dtype, from position `at` on.

    Raises ValueError where they do not fit.
    """
    if k.dtype in _COMPILED and (compiled := _compiled_append()) is not None:
        compiled(k, v, keys, values, at)
    else:
        _append(k, v, keys, values, at)


@functools.cache
def _compiled_append() -> Callable[[Tensor, Tensor, Tensor, Tensor, int], None] | None:
    """The same in C++, where the kernels are compiled and PyTorch lets them read tensors."""
    if unavailable() is not None:
        return None
    from tunebook.kernels._native import _calls, _native

    return _native.append_tensors if _calls._EXCHANGE else None


def _append(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, at: int) -> None:
    batch, heads, tokens, dim = k.shape
    capacity = keys.shape[2]
    room = (batch, heads, capacity, dim)
    fit = v.shape == k.shape and keys.shape == values.shape == room and k.dtype == v.dtype == keys.dtype == values.dtype
    if not fit or not 0 <= at <= capacity - tokens:
        raise ValueError(f"k and v {tuple(k.shape)} do not fit into keys and values {tuple(keys.shape)} at {at}")
    with torch.inference_mode(keys.is_inference()):
        keys.narrow(2, at, tokens).copy_(k)
        values.narrow(2, at, tokens).copy_(v)
