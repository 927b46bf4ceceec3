"""The linear product in plain PyTorch, several ways.

Semantics of all of them: x [..., K], weight [N, K], bias [N] or None, all bf16 or all fp32; returns
``x @ weight.T + bias``, [..., N], contiguous. For inference: no gradient may be recorded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TransposedLinear:
    """A contiguous transposed weight [K, N], a second copy, and the bias [N], shared with the caller."""

    weight: Tensor
    bias: Tensor | None


def columns(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The transposed product, weight times the rows of x as columns; one row takes a matrix-vector product.

    As left operand the weight is read as it lies, whereas oneDNN rearranges a transposed right operand at each call.
    No second copy of the weight; the price is that the result must be transposed.
    """
    outputs = weight.shape[0]
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) == 1:
        result = torch.mv(weight, rows[0]) if bias is None else torch.addmv(bias, weight, rows[0])
    elif bias is None:
        result = torch.mm(weight, rows.t()).t().contiguous()
    else:
        result = torch.addmm(bias.unsqueeze(1), weight, rows.t()).t().contiguous()
    return result.view(*x.shape[:-1], outputs)


def transpose(weight: Tensor, bias: Tensor | None) -> TransposedLinear:
    """Prepare for `transposed`."""
    return TransposedLinear(weight.detach().t().contiguous(), None if bias is None else bias.detach())


def restore(prepared: TransposedLinear, *, last: bool) -> tuple[Tensor, ...]:
    """The weight, bit for bit, and the bias where there is one."""
    weight = prepared.weight.t().contiguous()
    return (weight,) if prepared.bias is None else (weight, prepared.bias)


def transposed(x: Tensor, prepared: TransposedLinear) -> Tensor:
    """x times a contiguous transposed weight."""
    rows = x.reshape(-1, x.shape[-1])
    weight, bias = prepared.weight, prepared.bias
    result = torch.mm(rows, weight) if bias is None else torch.addmm(bias, rows, weight)
    return result.view(*x.shape[:-1], prepared.weight.shape[1])


def workspace(x: Tensor, weight: Tensor, bias: Tensor | None) -> int:
    """Bytes of extra memory that one call of `transposed` needs: the output, and a copy of a strided x."""
    rows = x.numel() // max(1, x.shape[-1])
    return (rows * weight.shape[0] + (0 if x.is_contiguous() else x.numel())) * x.element_size()


def columns_workspace(x: Tensor, weight: Tensor, bias: Tensor | None) -> int:
    """Bytes of extra memory that one call of `columns` needs: as `workspace`, and the output once more."""
    rows = x.numel() // max(1, x.shape[-1])
    return workspace(x, weight, bias) + rows * weight.shape[0] * x.element_size()
