"""The experts layer on oneDNN's packed weights: every expert's weights are rearranged once into oneDNN's own blocks.

The semantics are those of `tunebook.kernels._experts._torch`; bf16 and fp32 on a CPU. Packed weights are opaque
(``is_mkldnn``): they have a shape and a dtype but no storage that PyTorch can see; `nbytes` asks oneDNN for their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunebook.kernels._experts._routing import (
    activation_function,
    gated,
    group,
    lone_token,
    pair_bytes,
    weighted_sum,
)
from tunebook.kernels._linear._onednn import available, pack_weight, packed_nbytes, packed_product

__all__ = ["PackedExperts", "available", "loop", "nbytes", "pack", "restore", "workspace"]

#: From this many rows an expert, on average, gating each expert's rows while they are in cache beats one pass over all.
_GATE_APART = 64


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """One packed tensor an expert: gate_up [2I, H] and down [H, I]."""

    gate_up: list[Tensor]
    down: list[Tensor]
    activation: str


def pack(gate_up: Tensor, down: Tensor, activation: str, batch_hint: int) -> PackedExperts:
    """Pack for `loop`. ``batch_hint`` is the number of rows a product that oneDNN chooses its blocks for.

    Any other number of rows is right too. Raises `OpError` for an unknown activation.
    """
    activation_function(activation)
    return PackedExperts(
        [pack_weight(weight, batch_hint) for weight in gate_up],
        [pack_weight(weight, batch_hint) for weight in down],
        activation,
    )


def restore(prepared: PackedExperts, *, last: bool) -> tuple[Tensor, Tensor]:
    """gate_up and down, bit for bit."""
    gate_up, down = (torch.stack([w.to_dense() for w in weights]) for weights in (prepared.gate_up, prepared.down))
    return gate_up, down


def nbytes(prepared: PackedExperts) -> int:
    """The bytes that packed weights take, padding to whole blocks included."""
    return sum(packed_nbytes(weight) for weight in (*prepared.gate_up, *prepared.down))


def workspace(x: Tensor, index: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> int:
    """Bytes of extra memory that one call needs; the packed weights are counted apart."""
    return pair_bytes(x, index, down) + index.numel() * (2 * down.shape[2] + down.shape[1]) * x.element_size()


def loop(x: Tensor, index: Tensor, scores: Tensor, prepared: PackedExperts) -> Tensor:
    """One packed product per expert over its tokens' rows."""
    if lone := lone_token(index, len(prepared.down)):
        return weighted_sum(torch.cat(_outputs([x] * len(lone), lone, prepared)), None, scores)
    groups = group(index, len(prepared.down))
    experts, sizes = groups.active()
    rows = x.index_select(0, groups.tokens)
    outputs = _outputs(rows.split_with_sizes(sizes), experts, prepared)
    if groups.total < len(rows):
        outputs.append(rows.new_zeros(len(rows) - groups.total, x.shape[1]))
    output = torch.cat(outputs) if outputs else rows
    return weighted_sum(output, groups.slots, groups.known(scores))


def _outputs(pieces: Sequence[Tensor], experts: Sequence[int], prepared: PackedExperts) -> list[Tensor]:
    """Each expert's rows [c, H] through its two projections: [c, H]. A last piece without an expert is left out."""
    act = activation_function(prepared.activation)
    hidden = [packed_product(piece, prepared.gate_up[expert]) for piece, expert in zip(pieces, experts, strict=False)]
    sizes = [len(piece) for piece in hidden]
    gates: Sequence[Tensor]
    if sum(sizes) >= _GATE_APART * len(sizes):
        gates = [gated(piece, act) for piece in hidden]
    else:
        gates = gated(torch.cat(hidden), act).split_with_sizes(sizes)
    return [packed_product(piece, prepared.down[expert]) for piece, expert in zip(gates, experts, strict=True)]
