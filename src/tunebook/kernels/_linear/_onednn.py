"""The linear product on oneDNN's packed weights: a weight is rearranged once into oneDNN's own blocks.

bf16 and fp32 on a CPU. A packed weight is an opaque tensor (``is_mkldnn``): it has a shape and a dtype but no storage
that PyTorch can see; `packed_nbytes` asks oneDNN for its size. Importing this module needs PyTorch, not oneDNN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A packed weight of shape [N, K], and the bias [N], shared with the caller."""

    weight: Tensor
    bias: Tensor | None


def available(dtype: torch.dtype | None = None) -> str | None:
    """Why packed weights (of a dtype, if given) cannot be used here, or None."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this PyTorch is built without oneDNN"
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN's bf16 needs a CPU with AVX-512 or AVX-NE-CONVERT"
    if dtype not in (None, torch.bfloat16, torch.float32):
        return f"packed weights are bf16 or fp32, not {dtype}"
    return None


def pack(weight: Tensor, bias: Tensor | None, batch_hint: int) -> PackedLinear:
    """Pack weight [N, K] for `linear`. ``batch_hint`` is the number of rows that oneDNN chooses its blocks for.

    Any other number of rows is right too.
    """
    return PackedLinear(pack_weight(weight, batch_hint), None if bias is None else bias.detach())


def restore(prepared: PackedLinear, *, last: bool) -> tuple[Tensor, ...]:
    """The weight, bit for bit, and the bias where there is one."""
    weight = prepared.weight.to_dense()
    return (weight,) if prepared.bias is None else (weight, prepared.bias)


def linear(x: Tensor, prepared: PackedLinear) -> Tensor:
    """x [..., K] times the transposed packed weight, plus the bias: [..., N]."""
    return packed_product(x, prepared.weight, prepared.bias)


def nbytes(prepared: PackedLinear) -> int:
    """The bytes that packing adds: the packed weight with its padding to whole blocks."""
    return packed_nbytes(prepared.weight)


def workspace(x: Tensor, weight: Tensor, bias: Tensor | None) -> int:
    """Bytes of extra memory that one call needs: the output, and a copy of an x that is not contiguous."""
    rows = x.numel() // max(1, x.shape[-1])
    return (rows * weight.shape[0] + (0 if x.is_contiguous() else x.numel())) * x.element_size()


def pack_weight(weight: Tensor, batch_hint: int) -> Tensor:
    """Rearrange a weight [N, K] into the blocks that oneDNN prefers for ``batch_hint`` rows."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight.default(weight.detach().contiguous(), batch_hint)
    return packed


def packed_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K] times the transposed packed weight [N, K], plus bias [N]: [..., N]."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return out


def packed_nbytes(weight: Tensor) -> int:
    """The bytes of a packed weight, padding to whole blocks included."""
    return int(torch.ops.mkldnn._nbytes(weight))
