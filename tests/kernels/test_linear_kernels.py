"""Every linear kernel against an fp64 reference, over shapes, strides and dtypes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tunebook.kernels._linear import _onednn, _torch

Kernel = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _packed(hint: int) -> Kernel:
    return lambda x, weight, bias: _onednn.linear(x, _onednn.pack(weight, bias, hint))


KERNELS: dict[str, Kernel] = {
    "columns": _torch.columns,
    "transposed": lambda x, weight, bias: _torch.transposed(x, _torch.transpose(weight, bias)),
    **({f"onednn-{hint}": _packed(hint) for hint in (1, 16, 64)} if _onednn.available(torch.bfloat16) is None else {}),
}
EVERY_KERNEL = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())


def check(kernel: Kernel, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    got = kernel(x, weight, bias)
    wanted = x.double() @ weight.double().t()
    if bias is not None:
        wanted += bias.double()
    assert got.dtype == x.dtype
    assert got.shape == wanted.shape
    assert got.is_contiguous()
    tolerance = 2e-2 if x.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


def make(
    *lead: int, inputs: int = 12, outputs: int = 7, dtype: torch.dtype = torch.float32, bias: bool = True, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor | None]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(*lead, inputs, generator=random).to(dtype)
    weight = (torch.randn(outputs, inputs, generator=random) / inputs**0.5).to(dtype)
    return x, weight, torch.randn(outputs, generator=random).to(dtype) if bias else None


@EVERY_KERNEL
@settings(deadline=None)
@given(
    lead=st.lists(st.integers(0, 5), min_size=0, max_size=3),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
    bias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_agrees_with_the_definition(
    kernel: Kernel, lead: list[int], inputs: int, outputs: int, dtype: torch.dtype, bias: bool, seed: int
) -> None:
    check(kernel, *make(*lead, inputs=inputs, outputs=outputs, dtype=dtype, bias=bias, seed=seed))


@EVERY_KERNEL
@pytest.mark.parametrize("rows", [1, 2, 15, 17, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_rows(kernel: Kernel, rows: int, dtype: torch.dtype) -> None:
    check(kernel, *make(rows, inputs=70, outputs=130, dtype=dtype))


@EVERY_KERNEL
@pytest.mark.parametrize("bias", [True, False])
def test_strided_rows(kernel: Kernel, bias: bool) -> None:
    x, weight, offset = make(3, 4, bias=bias)
    check(kernel, x.transpose(0, 1), weight, offset)
    check(kernel, x[:, -1:], weight, offset)
    check(kernel, x.flatten(0, 1).t().contiguous().t(), weight, offset)
    check(kernel, x[:1, :1].expand(2, 3, -1), weight, offset)
    wide, _, _ = make(1, inputs=24)
    check(kernel, wide[:, ::2], weight, offset)


@EVERY_KERNEL
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("rows", [1, 5])
def test_weights_that_require_gradients(kernel: Kernel, mode: Callable[[], torch.no_grad], rows: int) -> None:
    x, weight, bias = make(rows)
    assert bias is not None
    with mode():
        check(kernel, x, torch.nn.Parameter(weight), torch.nn.Parameter(bias))


@EVERY_KERNEL
def test_the_result_is_the_callers_own(kernel: Kernel) -> None:
    x, weight, bias = make(3)
    first = kernel(x, weight, bias)
    kept = first.clone()
    kernel(x + 1, weight, bias)
    assert torch.equal(first, kept)


def test_transposed_weights_are_a_contiguous_copy_and_the_bias_is_shared() -> None:
    _, weight, bias = make(1)
    assert bias is not None
    prepared = _torch.transpose(weight, bias)
    assert prepared.weight.is_contiguous()
    assert torch.equal(prepared.weight, weight.t())
    assert prepared.bias is not None
    assert prepared.bias.data_ptr() == bias.data_ptr()


def test_workspaces_count_output_and_copies() -> None:
    x, weight, bias = make(10)
    output = 10 * 7 * 4
    assert _torch.workspace(x, weight, bias) >= output
    assert _torch.columns_workspace(x, weight, bias) >= 2 * output
    assert _onednn.workspace(x.t().contiguous().t(), weight, bias) >= output + x.nbytes


@pytest.mark.skipif(_onednn.available() is not None, reason="no oneDNN")
def test_packed_bytes_hold_at_least_the_weight() -> None:
    _, weight, bias = make(1, inputs=65, outputs=33)
    assert weight.nbytes <= _onednn.nbytes(_onednn.pack(weight, bias, 16)) < 10 * weight.nbytes


def test_onednn_says_why_it_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "fp" in (_onednn.available(torch.float64) or "") or _onednn.available() is not None
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert "without oneDNN" in (_onednn.available() or "")
