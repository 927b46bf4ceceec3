"""Calls of the kernels: checks, then addresses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tunebook.kernels._native import _native
from tunebook.kernels._native._weights import Weights

_DTYPES = {torch.bfloat16: _native.Dtype.bfloat16, torch.float32: _native.Dtype.float32}
#: Whether tensors are read and made in C++: PyTorch from 2.10 on has DLPack's exchange interface.
_CAPSULE = getattr(Tensor, "__dlpack_c_exchange_api__", None)
_EXCHANGE = _CAPSULE is not None and _native.use_exchange(Tensor, _CAPSULE)
_A = _native.Activation
#: The kernels' activations by their names in Transformers' configurations.
ACTIVATIONS = {
    "gelu": _A.gelu,
    "gelu_new": _A.gelu_tanh,
    "gelu_python": _A.gelu,
    "gelu_pytorch_tanh": _A.gelu_tanh,
    "hardswish": _A.hardswish,
    "mish": _A.mish,
    "relu": _A.relu,
    "relu6": _A.relu6,
    "sigmoid": _A.sigmoid,
    "silu": _A.silu,
    "swish": _A.silu,
    "tanh": _A.tanh,
}


def _rows(x: Tensor, inner: int) -> Tensor:
    if x.dtype not in _DTYPES or x.device.type != "cpu":
        raise ValueError(f"x must be bfloat16 or float32 on the CPU, not {x.dtype} on {x.device}")
    if x.shape[-1] != inner:
        raise ValueError(f"x has {x.shape[-1]} columns, the weight {inner}")
    return x if x.is_contiguous() else x.contiguous()


def _bias(bias: Tensor | None, rows: int) -> tuple[int, _native.Dtype]:
    """Address and dtype of a bias; address 0 where there is none."""
    if bias is None:
        return 0, _native.Dtype.float32
    if bias.dtype not in _DTYPES or bias.shape != (rows,) or not bias.is_contiguous() or bias.device.type != "cpu":
        raise ValueError("a bias must be a contiguous bfloat16 or float32 tensor [N] on the CPU")
    return bias.data_ptr(), _DTYPES[bias.dtype]


def _activation(name: str) -> _native.Activation:
    try:
        return ACTIVATIONS[name]
    except KeyError:
        raise ValueError(f"activation {name!r} is not among {', '.join(sorted(ACTIVATIONS))}") from None


def linear(x: Tensor, weights: Weights, bias: Tensor | None, tactic: _native.Tactic) -> Tensor:
    """x [..., K] times the weight [N, K] transposed, plus bias [N] or None: [..., N] in x's dtype, sums in fp32.

    Raises:
        ValueError: dtypes or sizes that do not fit, or a tactic that needs another layout.
    """
    if len(weights.shape) != 2:
        raise ValueError("linear takes one matrix")
    rows, inner = weights.shape
    x = _rows(x, inner)
    out = torch.empty((*x.shape[:-1], rows), dtype=x.dtype)
    bias_address, bias_dtype = _bias(bias, rows)
    count = out.numel() // rows if rows else 0
    _native.linear(
        weights.native, x.data_ptr(), count, bias_address, bias_dtype, out.data_ptr(), _DTYPES[x.dtype], tactic
    )
    return out


def bind_linear(weights: Weights, bias: Tensor | None, tactic: _native.Tactic) -> Callable[[Tensor], Tensor]:
    """`linear` with all but x settled: what was checked is not checked again, and a call is one call of C++.

    The result keeps weights and bias alive. It raises ValueError for an x that does not fit, as `linear` does.

    Raises:
        ValueError: a bias that does not fit, or a tactic that needs another layout.
    """
    if len(weights.shape) != 2:
        raise ValueError("linear takes one matrix")
    address, dtype = _bias(bias, weights.shape[0])
    if _EXCHANGE:
        return _native.bind_linear(weights.native, address, dtype, (weights, bias), tactic)
    return lambda x: linear(x, weights, bias, tactic)


def experts(
    x: Tensor,
    index: Tensor,
    scores: Tensor,
    gate_up: Weights,
    down: Weights,
    activation: str,
    tactic: _native.Tactic,
) -> Tensor:
    """A gated mixture of experts, summed over each token's choices: [M, H] in x's dtype.

    x [M, H]; index [M, K] int64 in 0…E (E: no expert); scores [M, K], any float dtype; gate_up [E, 2I, H], gated; down
    [E, H, I]. The result is the same, bit for bit, whatever the split and the number of threads.

    Raises:
        ValueError: dtypes or sizes that do not fit, or a tactic that needs another layout.
        IndexError: an index outside 0…E.
    """
    act = _activation(activation)
    x = _rows(x, gate_up.shape[-1])
    if x.ndim != 2 or index.shape != scores.shape or index.ndim != 2 or len(index) != len(x):
        raise ValueError("x must be [M, H], index and scores [M, K]")
    if index.dtype != torch.int64 or len(down.shape) != 3 or len(gate_up.shape) != 3:
        raise ValueError("index must be int64, and the weights stacks of matrices")
    index = index if index.is_contiguous() else index.contiguous()
    if scores.dtype not in _DTYPES:
        scores = scores.float()
    scores = scores if scores.is_contiguous() else scores.contiguous()
    out = torch.empty_like(x)
    _native.experts(
        gate_up.native, down.native, x.data_ptr(), len(x), index.data_ptr(), index.shape[1], scores.data_ptr(),
        _DTYPES[scores.dtype], act, out.data_ptr(), _DTYPES[x.dtype], tactic,
    )  # fmt: skip
    return out


def bind_experts(
    gate_up: Weights, down: Weights, activation: str, tactic: _native.Tactic
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`experts` with all but x, index and scores settled, in this order; see `bind_linear`.

    Raises:
        ValueError: weights that do not fit each other or the tactic, or an unknown activation.
    """
    act = _activation(activation)
    if len(down.shape) != 3 or len(gate_up.shape) != 3:
        raise ValueError("the weights must be stacks of matrices")
    if _EXCHANGE:
        return _native.bind_experts(gate_up.native, down.native, (gate_up, down), act, tactic)
    return lambda x, index, scores: experts(x, index, scores, gate_up, down, activation, tactic)


def workspace(
    op: str,
    sizes: Sequence[int],
    *,
    rows: int,
    panel: torch.dtype,
    weight: torch.dtype,
    block: int,
    tactic: _native.Tactic,
) -> int:
    """Bytes for intermediate values that a call of "linear" or "experts" needs at most, beside its result.

    They are kept for the calling thread's next call; see `release_workspace`. sizes: N, K of linear; H, I, E and the
    choices of a token of experts. rows: of x. block: of the weights, 0 for a view.

    Raises:
        ValueError: another op, other sizes, a dtype or a block that there is not.
    """
    if panel not in _DTYPES or weight not in _DTYPES:
        raise ValueError(f"the kernels take bfloat16 and float32, not {panel} and {weight}")

    def outline(count: int, columns: int, inner: int, gated: bool) -> _native.Weights:
        rows_of = _native.view(0, count, columns, inner, str(weight).removeprefix("torch."), gated)
        return rows_of.outline(block) if block else rows_of

    if op == "linear" and len(sizes) == 2:
        return _native.linear_workspace(outline(1, sizes[0], sizes[1], False), rows, _DTYPES[panel], tactic)
    if op == "experts" and len(sizes) == 4:
        hidden, inner, experts, choices = sizes
        gate_up, down = outline(experts, 2 * inner, hidden, True), outline(experts, hidden, inner, False)
        return _native.experts_workspace(gate_up, down, rows, choices, _DTYPES[panel], tactic)
    raise ValueError(f"sizes are N, K of linear or H, I, E, choices of experts, not {op} {tuple(sizes)}")


def release_workspace() -> int:
    """Gives back the memory for intermediate values that this thread keeps between calls; returns how many bytes."""
    return _native.release_workspace()
