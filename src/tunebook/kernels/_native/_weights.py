"""Weights as the kernels read them: where they lie, or a copy packed into blocks of columns."""

from __future__ import annotations

import torch
from torch import Tensor

from tunebook.kernels._native import _native

#: Widths of a packed block, in columns of the product: rows of the weight.
BLOCKS = (16, 32, 64)
_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


class Weights:
    """One weight [N, K], or a stack of them [E, N, K]; gated ones hold gate rows, then as many up rows.

    Attributes:
        shape: of the tensor that they were made from.
        dtype: bfloat16 or float32.
        block: columns of a packed block; 0 for a row-major view.
        native: what the kernels take. A view keeps the tensor alive.
    """

    __slots__ = ("_tensor", "block", "dtype", "native", "shape")

    def __init__(
        self, native: _native.Weights, shape: torch.Size, dtype: torch.dtype, block: int, tensor: Tensor | None
    ) -> None:
        self.native, self.shape, self.dtype, self.block, self._tensor = native, shape, dtype, block, tensor

    @property
    def bytes(self) -> int:
        """Memory that these weights hold beside the tensor that a view reads: 0 for a view."""
        return self.native.bytes

    def unpack(self, *, threads: int = 1) -> Tensor:
        """The original tensor, bit for bit. Raises ValueError for a view."""
        out = torch.empty(self.shape, dtype=self.dtype)
        self.native.unpack(out.data_ptr(), threads)
        return out


def view(weight: Tensor, *, gated: bool = False) -> Weights:
    """A row-major view of a weight [N, K] or [E, N, K].

    Raises:
        ValueError: not on the CPU, not contiguous, not bf16 or fp32, or an odd number of rows where gated.
    """
    if weight.device.type != "cpu" or not weight.is_contiguous() or weight.dtype not in _NAMES:
        raise ValueError("a weight must be a contiguous bfloat16 or float32 tensor on the CPU")
    if weight.ndim not in (2, 3):
        raise ValueError(f"a weight has two or three dimensions, not {weight.ndim}")
    count = 1 if weight.ndim == 2 else weight.shape[0]
    rows, inner = weight.shape[-2:]
    native = _native.view(weight.data_ptr(), count, rows, inner, _NAMES[weight.dtype], gated)
    return Weights(native, weight.shape, weight.dtype, 0, weight)


def pack(weight: Tensor, *, block: int, gated: bool = False, threads: int = 1) -> Weights:
    """A packed copy of a weight, which may be freed then; raises ValueError as `view` does, or for an unknown block."""
    native = view(weight, gated=gated).native.pack(block, threads)
    return Weights(native, weight.shape, weight.dtype, block, None)
