"""The mixture of experts on the native kernels: gate-up, activation, down and the weighted sum in one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from tunebook.kernels._native import Weights

Call = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class NativeExperts:
    """Packed weights of shapes [E, 2I, H] and [E, H, I], and the activation's name."""

    gate_up: Weights
    down: Weights
    activation: str


def pack(gate_up: Tensor, down: Tensor, activation: str, *, block: int, **_: Any) -> NativeExperts:
    """Packed copies of gate_up [E, 2I, H] and down [E, H, I], bf16 or fp32, for `bind`."""
    from tunebook.kernels._native import _serve as native

    threads = native.usable_threads()
    first = native.pack(gate_up.detach(), block=block, gated=True, threads=threads)
    return NativeExperts(first, native.pack(down.detach(), block=block, threads=threads), activation)


def convert(gate_up: Tensor, down: Tensor, activation: str, *, block: int, **_: Any) -> NativeExperts | None:
    """The same in the weights' own memory; None where sizes need padding, or the memory is not the weights' alone."""
    from tunebook.kernels._native import _serve as native

    refusals = (
        native.in_place_refusal(gate_up.detach(), block=block, gated=True),
        native.in_place_refusal(down.detach(), block=block),
    )
    if any(refusal is not None for refusal in refusals):
        return None
    threads = native.usable_threads()
    first = native.pack(gate_up.detach(), block=block, gated=True, threads=threads, in_place=True)
    second = native.pack(down.detach(), block=block, threads=threads, in_place=True)
    return NativeExperts(first, second, activation)


def restore(prepared: NativeExperts, *, last: bool) -> tuple[Tensor, Tensor]:
    """gate_up and down, bit for bit."""
    from tunebook.kernels._native import _serve as native

    return native.unpacked(prepared.gate_up, last=last), native.unpacked(prepared.down, last=last)


def bind(prepared: NativeExperts, **params: Any) -> Call:
    """The function of x [M, H], index [M, K] int64 in 0…E and scores [M, K] that gives [M, H] in x's dtype."""
    from tunebook.kernels._native import _serve as native

    return native.bind_experts(prepared.gate_up, prepared.down, prepared.activation, native.tactic_of(**params))


def serve(x: Tensor, index: Tensor, scores: Tensor, prepared: NativeExperts, **params: Any) -> Tensor:
    """What `bind` gives, called once."""
    return bind(prepared, **params)(x, index, scores)


def bind_rows(gate_up: Tensor, down: Tensor, activation: str, **params: Any) -> Call:
    """`bind` on the model's own weights, without a copy."""
    from tunebook.kernels._native import _serve as native

    views = native.view(gate_up.detach(), gated=True), native.view(down.detach())
    return native.bind_experts(*views, activation, native.tactic_of(**params))


def serve_rows(
    x: Tensor, index: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor, activation: str, **params: Any
) -> Tensor:
    """What `bind_rows` gives, called once."""
    return bind_rows(gate_up, down, activation, **params)(x, index, scores)


def workspace(
    x: Tensor, index: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor, activation: str, **params: Any
) -> int:
    """Bytes of extra memory that one call needs: gathered rows, hidden values, and partial results by the split."""
    hidden, inner = down.shape[1], down.shape[2]
    partial = 4 * hidden if params.get("split") == "experts" else 0
    return index.numel() * (2 * x.element_size() * (hidden + inner) + partial + 32) + 8 * x.numel() + (8 << 20)
