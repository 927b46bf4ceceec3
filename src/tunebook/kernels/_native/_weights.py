"""Weights as the kernels read them: where they lie, or packed into blocks of columns, as a copy or in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tunebook.kernels._native import _native

#: Widths of a packed block, in columns of the product: rows of the weight.
BLOCKS = (16, 32, 64)
_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


class Weights:
    """One weight [N, K], or a stack of them [E, N, K]; gated ones hold gate rows, then as many up rows.

    Attributes:
        shape: of the tensor that they were made from; [N1 + N2 + …, K] of several.
        dtype: bfloat16 or float32.
        block: columns of a packed block; 0 for a row-major view.
        native: what the kernels take.
        part_rows: rows of each of the tensors that they were made from.
    """

    __slots__ = ("_tensor", "block", "dtype", "native", "part_rows", "shape")

    def __init__(
        self,
        native: _native.Weights,
        shape: torch.Size,
        dtype: torch.dtype,
        block: int,
        part_rows: tuple[int, ...],
        tensor: Tensor | None,
    ) -> None:
        self.native, self.shape, self.dtype, self.block = native, shape, dtype, block
        self.part_rows, self._tensor = part_rows, tensor

    @property
    def bytes(self) -> int:
        """Memory that these weights hold beside the tensor that they were made from: 0 for a view and in place."""
        return self.native.bytes

    @property
    def nbytes(self) -> int:
        """What the packed form takes, wherever it lies; 0 for a view."""
        if not self.in_place or self._tensor is None:
            return self.bytes
        return self._tensor.numel() * self._tensor.element_size()

    @property
    def in_place(self) -> bool:
        """Whether the packed form lies where the original tensor was."""
        return self.native.in_place

    def unpack(self, out: Tensor | None = None, *, threads: int = 1) -> Tensor:
        """The original tensor, bit for bit, in `out` or a new one; of several tensors, all their rows in one.

        Raises:
            ValueError: for a view, or an `out` of another shape, dtype or layout, or one that lies where these weights do.
        """
        out = torch.empty(self.shape, dtype=self.dtype) if out is None else out
        self._unpack_into([out], [self.shape], threads)
        return out

    def unpack_each(self, outs: Sequence[Tensor] | None = None, *, threads: int = 1) -> list[Tensor]:
        """Each of the tensors that these weights were made from, as `unpack` does."""
        shapes = (
            [torch.Size((rows, self.shape[-1])) for rows in self.part_rows] if len(self.part_rows) > 1 else [self.shape]
        )
        made = [torch.empty(shape, dtype=self.dtype) for shape in shapes] if outs is None else list(outs)
        self._unpack_into(made, shapes, threads)
        return made

    def unpack_in_place(self, *, threads: int = 1) -> Tensor:
        """The tensor that was packed in place, with its original content, bit for bit. These weights are a view of it then.

        Raises:
            ValueError: for weights that were not packed in place.
        """
        if self._tensor is None or not self.in_place:
            raise ValueError("the weights were not packed in place")
        self.native.unpack_in_place(threads)
        self.block = 0
        return self._tensor

    def _unpack_into(self, outs: list[Tensor], shapes: list[torch.Size], threads: int) -> None:
        for out, shape in zip(outs, shapes, strict=True):
            _check(out)
            if out.shape != shape or out.dtype != self.dtype:
                raise ValueError(f"the weights are {list(shape)} of {self.dtype}, not {list(out.shape)} of {out.dtype}")
            if (
                self._tensor is not None
                and out.untyped_storage().data_ptr() == self._tensor.untyped_storage().data_ptr()
            ):
                raise ValueError("weights in place come back by unpack_in_place")
        self.native.unpack(_addresses(outs), threads)


def _check(weight: Tensor) -> None:
    if weight.device.type != "cpu" or not weight.is_contiguous() or weight.dtype not in _NAMES:
        raise ValueError("a weight must be a contiguous bfloat16 or float32 tensor on the CPU")
    if weight.ndim not in (2, 3):
        raise ValueError(f"a weight has two or three dimensions, not {weight.ndim}")


def _addresses(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(tensor.data_ptr(), tensor.shape[:-1].numel()) for tensor in tensors]


def view(weight: Tensor, *, gated: bool = False) -> Weights:
    """A row-major view of a weight [N, K] or [E, N, K], which it keeps alive.

    Raises:
        ValueError: not on the CPU, not contiguous, not bf16 or fp32, or an odd number of rows where gated.
    """
    _check(weight)
    count = 1 if weight.ndim == 2 else weight.shape[0]
    rows, inner = weight.shape[-2:]
    native = _native.view(weight.data_ptr(), count, rows, inner, _NAMES[weight.dtype], gated)
    return Weights(native, weight.shape, weight.dtype, 0, (weight.shape[:-1].numel(),), weight)


def in_place_refusal(weight: Tensor, *, block: int, gated: bool = False) -> str | None:
    """Why `pack` cannot pack this weight in place, or None if it can.

    The packed form must take exactly the weight's memory, which nothing but the weight uses: K and, where gated, I are
    multiples of 32, N of the block; the storage is the weight's alone, in memory of its own and aligned to 64 bytes.
    Other tensors that share all of it (tied weights) cannot be seen from here: the caller must know that there are none.

    Raises:
        ValueError: as `view`, or an unknown block.
    """
    if block not in BLOCKS:
        raise ValueError(f"block must be 16, 32 or 64, not {block}")
    native = view(weight, gated=gated).native
    storage = weight.untyped_storage()
    if storage.nbytes() != weight.numel() * weight.element_size():
        return "it is a part of another tensor's storage"
    if storage.is_shared() or storage.filename is not None:
        return "its storage is shared with other processes or mapped from a file"
    return native.in_place_refusal(block)


def pack(
    weight: Tensor | Sequence[Tensor], *, block: int, gated: bool = False, threads: int = 1, in_place: bool = False
) -> Weights:
    """A packed copy of a weight, or of several [N1, K], [N2, K], … as one; or the weight itself, packed in place.

    In place the tensor keeps its memory, but what it holds is the packed form, for the kernels only, until
    `Weights.unpack_in_place`; nothing may read or write it meanwhile, nor while it is packed. A copy leaves the original as
    it is; it may be freed.

    Raises:
        ValueError: as `view`; an unknown block; several weights that are gated, packed in place, not matrices or of
            different K or dtype; in place, with the reason, where `in_place_refusal` has one.
    """
    if not isinstance(weight, Tensor):
        return _pack_several(list(weight), block, gated, threads, in_place)
    made = view(weight, gated=gated)
    if in_place:
        refusal = in_place_refusal(weight, block=block, gated=gated)
        if refusal is not None:
            raise ValueError(f"the weight cannot be packed in place: {refusal}")
        made.native.pack_in_place(block, threads)
        made.block = block
        return made
    native = made.native.pack(_addresses([weight]), block, threads)
    return Weights(native, weight.shape, weight.dtype, block, made.part_rows, None)


def _pack_several(weights: list[Tensor], block: int, gated: bool, threads: int, in_place: bool) -> Weights:
    if not weights or gated or in_place:
        raise ValueError("several weights are packed as a copy only, and not gated")
    for weight in weights:
        _check(weight)
        if weight.ndim != 2 or weight.shape[1] != weights[0].shape[1] or weight.dtype != weights[0].dtype:
            raise ValueError("weights packed as one must be matrices of the same K and dtype")
    part_rows = tuple(len(weight) for weight in weights)
    shape, dtype = torch.Size((sum(part_rows), weights[0].shape[1])), weights[0].dtype
    outline = _native.view(0, 1, shape[0], shape[1], _NAMES[dtype], False)
    return Weights(outline.pack(_addresses(weights), block, threads), shape, dtype, block, part_rows, None)
