"""Bound calls: the same results as the unbound ones, for every layout of their arguments, and the same refusals."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import cast

import pytest
import torch

import tunebook.kernels._native as native

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))

Call = Callable[[torch.Tensor], torch.Tensor]


def a_linear(dtype: torch.dtype = torch.bfloat16, bias: bool = True) -> tuple[Call, Call]:
    gen = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 64, generator=gen).to(dtype)
    b = torch.randn(50, generator=gen).to(dtype) if bias else None
    run = native.tactic(isa=native.instruction_sets()[0], threads=2)
    packed = native.pack(weight, block=16)
    return native.bind_linear(packed, b, run), lambda x: native.linear(x, packed, b, run)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64,), (1, 64), (0, 64), (3, 64), (2, 1, 5, 64), (2, 0, 64)])
def test_a_bound_linear_gives_what_the_call_gives(dtype, bias, shape):
    bound, plain = a_linear(dtype, bias)
    x = torch.randn(shape).to(dtype)
    out = bound(x)
    assert out.dtype == x.dtype
    assert out.is_contiguous()
    assert torch.equal(out, plain(x))
    kept = out.clone()
    bound(x * 2)
    assert torch.equal(out, kept)  # each call has a result of its own


def test_a_bound_linear_takes_what_is_not_contiguous_and_parameters():
    bound, plain = a_linear()
    wide = torch.randn(6, 128).bfloat16()
    for x in (
        wide[:, :64],
        wide[::2, 64:],
        torch.randn(64, 6).bfloat16().t(),
        torch.nn.Parameter(wide[:, :64].clone()),
    ):
        assert torch.equal(bound(x.detach()), plain(x.detach()))
        with torch.inference_mode():
            assert torch.equal(bound(x), plain(x))


def test_a_bound_linear_refuses_by_name():
    bound, _ = a_linear()
    with pytest.raises(ValueError, match="x has 63 columns, the weight 64"):
        bound(torch.zeros(2, 63))
    with pytest.raises(ValueError, match="bfloat16 or float32"):
        bound(torch.zeros(2, 64).half())
    with pytest.raises(ValueError, match="bfloat16 or float32"):
        bound(torch.zeros(2, 64, device="meta"))
    with pytest.raises((ValueError, AttributeError)):
        bound(cast(torch.Tensor, [1.0]))
    run, packed = native.tactic(isa=native.instruction_sets()[0]), native.pack(torch.zeros(5, 64), block=16)
    with pytest.raises(ValueError, match="a bias must be"):
        native.bind_linear(packed, torch.zeros(4), run)
    with pytest.raises(ValueError, match="one matrix"):
        native.bind_linear(native.pack(torch.zeros(2, 5, 64), block=16), None, run)
    with pytest.raises(ValueError, match="row-major"):
        native.bind_linear(packed, None, native.tactic(isa=native.instruction_sets()[0], dot=True))


def test_a_bound_call_keeps_its_weights_alive_and_lets_them_go_with_itself():
    weight, bias = torch.ones(16, 32), torch.ones(16)
    run = native.tactic(isa=native.instruction_sets()[0])
    bound = native.bind_linear(native.view(weight), bias, run)
    alive = weakref.ref(weight)
    del weight, bias
    gc.collect()
    assert alive() is not None
    assert (bound(torch.ones(2, 32)) == 33).all()
    del bound
    gc.collect()
    assert alive() is None


def test_bound_experts_give_what_the_call_gives():
    gen = torch.Generator().manual_seed(1)
    up = native.pack(torch.randn(7, 160, 96, generator=gen).bfloat16(), block=32, gated=True)
    down = native.pack(torch.randn(7, 96, 80, generator=gen).bfloat16(), block=32)
    run = native.tactic(isa=native.instruction_sets()[0], threads=2)
    bound = native.bind_experts(up, down, "silu", run)
    x, index = torch.randn(20, 96, generator=gen).bfloat16(), torch.randint(0, 8, (20, 3), generator=gen)
    for dtype in (torch.bfloat16, torch.float32, torch.float16, torch.float64):
        scores = torch.rand(20, 3, generator=gen).to(dtype)
        assert torch.equal(bound(x, index, scores), native.experts(x, index, scores, up, down, "silu", run))
    scores = torch.rand(3, 20, generator=gen)
    wide = torch.randn(20, 200, generator=gen).bfloat16()[:, :96]
    across = index.t().contiguous().t()
    for kind in (scores.t(), scores.t().half()):
        assert torch.equal(bound(wide, across, kind), native.experts(wide, across, kind, up, down, "silu", run))
    assert bound(x[:0], index[:0], scores.t()[:0]).shape == (0, 96)


def test_bound_experts_refuse_by_name():
    up, down = native.view(torch.zeros(7, 160, 96), gated=True), native.view(torch.zeros(7, 96, 80))
    run = native.tactic(isa=native.instruction_sets()[0])
    bound = native.bind_experts(up, down, "silu", run)
    x, index, scores = torch.zeros(4, 96), torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, 2)
    with pytest.raises(IndexError, match=r"outside 0\.\.E"):
        bound(x, index + 8, scores)
    with pytest.raises(ValueError, match="index must be int64"):
        bound(x, index.int(), scores)
    with pytest.raises(ValueError, match=r"x must be \[M, H\]"):
        bound(x, index, scores[:3])
    with pytest.raises(ValueError, match="x has 95 columns"):
        bound(x[:, 1:], index, scores)
    with pytest.raises(ValueError, match="activation 'selu'"):
        native.bind_experts(up, down, "selu", run)
    with pytest.raises(ValueError, match="do not fit"):
        native.bind_experts(up, native.view(torch.zeros(7, 96, 81)), "silu", run)
    with pytest.raises(ValueError, match="stacks of matrices"):
        native.bind_experts(up, native.view(torch.zeros(96, 80)), "silu", run)
