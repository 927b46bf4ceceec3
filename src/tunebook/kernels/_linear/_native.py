"""The linear product on the native kernels: on weights packed into blocks of columns, or on the model's own rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from tunebook.kernels._native import Weights


@dataclass(frozen=True, slots=True)
class NativeLinear:
    """A packed weight of shape [N, K], and the bias [N], shared with the caller."""

    weight: Weights
    bias: Tensor | None


def pack(weight: Tensor, bias: Tensor | None, *, block: int, **_: Any) -> NativeLinear:
    """A packed copy of weight [N, K], bf16 or fp32, for `bind`."""
    from tunebook.kernels._native import _serve as native

    packed = native.pack(weight.detach(), block=block, threads=native.usable_threads())
    return NativeLinear(packed, None if bias is None else bias.detach())


def convert(weight: Tensor, bias: Tensor | None, *, block: int, **_: Any) -> NativeLinear | None:
    """The same in the weight's own memory; None where sizes need padding, or the memory is not the weight's alone."""
    from tunebook.kernels._native import _serve as native

    if native.in_place_refusal(weight.detach(), block=block) is not None:
        return None
    packed = native.pack(weight.detach(), block=block, threads=native.usable_threads(), in_place=True)
    return NativeLinear(packed, None if bias is None else bias.detach())


def restore(prepared: NativeLinear, *, last: bool) -> tuple[Tensor, ...]:
    """The weight, bit for bit, and the bias where there is one."""
    from tunebook.kernels._native import _serve as native

    weight = native.unpacked(prepared.weight, last=last)
    return (weight,) if prepared.bias is None else (weight, prepared.bias)


def bind(prepared: NativeLinear, **params: Any) -> Callable[[Tensor], Tensor]:
    """The function of x [..., K] that gives [..., N] in x's dtype, by the tactic of these parameters."""
    from tunebook.kernels._native import _serve as native

    return native.bind_linear(prepared.weight, prepared.bias, native.tactic_of(**params))


def serve(x: Tensor, prepared: NativeLinear, **params: Any) -> Tensor:
    """What `bind` gives, called once."""
    return bind(prepared, **params)(x)


def bind_rows(weight: Tensor, bias: Tensor | None, **params: Any) -> Callable[[Tensor], Tensor]:
    """`bind` on the model's own weight, without a copy."""
    from tunebook.kernels._native import _serve as native

    return native.bind_linear(native.view(weight.detach()), bias, native.tactic_of(**params))


def serve_rows(x: Tensor, weight: Tensor, bias: Tensor | None, **params: Any) -> Tensor:
    """What `bind_rows` gives, called once."""
    return bind_rows(weight, bias, **params)(x)


def workspace(x: Tensor, weight: Tensor, bias: Tensor | None, **_: Any) -> int:
    """Bytes of extra memory that one call needs: the output, x widened to fp32, and a block of sums a thread."""
    rows = x.numel() // max(1, x.shape[-1])
    return rows * (weight.shape[0] * x.element_size() + 4 * x.shape[-1]) + (4 << 20)
