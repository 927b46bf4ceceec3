"""Packing: there and back bit for bit, as a copy, in place and of several weights as one; what refuses, and by what name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import tunebook.kernels._native as native

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
DTYPES = (torch.bfloat16, torch.float32)
BLOCKS = (16, 32, 64)


def any_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Any bits, NaN among them."""
    words = 1 if dtype == torch.bfloat16 else 2
    gen = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**15), 2**15, (*shape, words), dtype=torch.int16, generator=gen)
    return bits.view(dtype).reshape(shape)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.view(torch.int16), b.view(torch.int16))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 75).map(lambda n: 2 * n), st.integers(1, 130)),
    dtype=st.sampled_from(DTYPES),
    gated=st.booleans(),
    block=st.sampled_from(BLOCKS),
    threads=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_a_copy_gives_the_original_back_bit_for_bit(shape, dtype, gated, block, threads, seed):
    weight = any_bits(shape, dtype, seed)
    packed = native.pack(weight, block=block, gated=gated, threads=threads)
    assert same_bits(packed.unpack(threads=threads), weight)
    out = torch.zeros_like(weight)
    assert packed.unpack(out, threads=threads) is out
    assert same_bits(out, weight)
    assert packed.bytes > 0


@settings(max_examples=100, deadline=None)
@given(
    matrices=st.integers(1, 5),
    blocks=st.integers(1, 5),
    depth=st.integers(1, 4),
    dtype=st.sampled_from(DTYPES),
    gated=st.booleans(),
    block=st.sampled_from(BLOCKS),
    threads=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_in_place_the_packed_form_takes_the_weights_memory_and_gives_it_back(
    matrices, blocks, depth, dtype, gated, block, threads, seed
):
    rows = blocks * (max(block, 64) if gated else block)
    weight = any_bits((matrices, rows, depth * 32), dtype, seed)
    original, address = weight.clone(), weight.data_ptr()
    copied = native.pack(original, block=block, gated=gated)
    assert native.in_place_refusal(weight, block=block, gated=gated) is None
    packed = native.pack(weight, block=block, gated=gated, threads=threads, in_place=True)
    assert (packed.in_place, packed.block, packed.bytes) == (True, block, 0)
    assert same_bits(packed.unpack(threads=threads), original)
    if not gated and dtype == torch.float32:  # both forms multiply alike
        x = torch.randn(3, depth * 32)
        run = native.tactic(isa=native.instruction_sets()[0])
        one, other = (
            native.pack(w[0].clone(), block=block, in_place=place) for w, place in ((original, True), (original, False))
        )
        assert torch.equal(
            native.linear(x, one, None, run).nan_to_num(), native.linear(x, other, None, run).nan_to_num()
        )
    assert same_bits(copied.unpack(), original)
    again = packed.unpack_in_place(threads=threads)
    assert again.data_ptr() == address
    assert same_bits(weight, original)
    assert (packed.in_place, packed.block) == (False, 0)


def test_experts_in_place_compute_what_copies_do_and_go_on_as_rows_after_unpacking():
    gen = torch.Generator().manual_seed(3)
    gate_up = torch.randn(5, 128, 96, generator=gen).bfloat16()
    down = torch.randn(5, 96, 64, generator=gen).bfloat16()
    x, index, scores = torch.randn(9, 96, generator=gen).bfloat16(), torch.randint(0, 6, (9, 2)), torch.rand(9, 2)
    for isa in native.instruction_sets():
        run = native.tactic(isa=isa, threads=2)
        expected = native.experts(
            x, index, scores, native.pack(gate_up, block=32, gated=True), native.pack(down, block=32), "silu", run
        )
        up = native.pack(gate_up.clone(), block=32, gated=True, in_place=True)
        second = native.pack(down.clone(), block=32, in_place=True)
        assert torch.equal(native.experts(x, index, scores, up, second, "silu", run), expected)
        bound = native.bind_experts(up, second, "silu", run)
        up.unpack_in_place()
        second.unpack_in_place()
        torch.testing.assert_close(bound(x, index, scores), expected)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    inner=st.integers(1, 100),
    dtype=st.sampled_from(DTYPES),
    block=st.sampled_from(BLOCKS),
    threads=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_several_weights_packed_as_one_are_their_rows_one_after_the_other(rows, inner, dtype, block, threads, seed):
    gen = torch.Generator().manual_seed(seed)
    weights = [torch.randn(n, inner, generator=gen).to(dtype) for n in rows]
    packed = native.pack(weights, block=block, threads=threads)
    assert packed.shape == (sum(rows), inner)
    whole = torch.cat(weights)
    assert same_bits(packed.unpack(), whole)
    assert all(same_bits(a, b) for a, b in zip(packed.unpack_each(threads=threads), weights, strict=True))
    outs = [torch.empty_like(weight) for weight in weights]
    packed.unpack_each(outs)
    assert all(same_bits(a, b) for a, b in zip(outs, weights, strict=True))
    x, run = torch.randn(3, inner, generator=gen).to(dtype), native.tactic(isa=native.instruction_sets()[0])
    out = native.linear(x, packed, None, run)
    assert torch.equal(out, native.linear(x, native.pack(whole, block=block), None, run))
    exact = F.linear(x.double(), whole.double())
    torch.testing.assert_close(out.double(), exact, rtol=1e-2, atol=1e-2 * inner)


def offset(weight: torch.Tensor) -> torch.Tensor:
    """The same in a storage of its own that does not begin at a multiple of 64 bytes."""
    from_numpy = torch.empty(weight.numel() * 2 + 96, dtype=torch.uint8).numpy()
    start = next(i for i in range(64) if from_numpy[i:].ctypes.data % 64 == 32)
    return torch.from_numpy(from_numpy[start : start + weight.numel() * 2]).view(torch.bfloat16).view(weight.shape)


@pytest.mark.parametrize(
    ("weight", "gated", "block", "reason"),
    [
        (torch.zeros(64, 40).bfloat16(), False, 16, "K is not a multiple of 32"),
        (torch.zeros(40, 64).bfloat16(), False, 16, "N is not a multiple of the block"),
        (torch.zeros(96, 64).bfloat16(), True, 16, "I is not a multiple of 32"),
        (torch.zeros(2, 64, 64).bfloat16()[1], False, 16, "part of another tensor's storage"),
        (torch.zeros(64, 64).bfloat16().share_memory_(), False, 16, "shared with other processes"),
        (offset(torch.zeros(64, 64).bfloat16()), False, 16, "aligned to 64 bytes"),
    ],
)
def test_in_place_is_refused_by_name_and_nothing_is_written(weight, gated, block, reason):
    before = weight.clone()
    assert reason in str(native.in_place_refusal(weight, block=block, gated=gated))
    with pytest.raises(ValueError, match=reason):
        native.pack(weight, block=block, gated=gated, in_place=True)
    assert same_bits(weight, before)


def test_a_weight_mapped_from_a_file_is_not_packed_in_place(tmp_path):
    file = tmp_path / "weight"
    torch.zeros(64, 64).bfloat16().view(torch.int16).numpy().tofile(file)
    weight = torch.from_file(str(file), shared=False, size=64 * 64, dtype=torch.bfloat16).view(64, 64)
    assert "mapped from a file" in str(native.in_place_refusal(weight, block=16))


def test_packing_what_does_not_fit_is_refused_by_name():
    matrix = torch.zeros(64, 64).bfloat16()
    wrongs: list[tuple[Any, dict[str, Any], str]] = [
        (matrix, {"block": 48}, "block must be"),
        (matrix, {"block": 48, "in_place": True}, "block must be"),
        (matrix.half(), {"block": 16}, "contiguous bfloat16"),
        (matrix[:, 1:], {"block": 16}, "contiguous bfloat16"),
        (matrix[0], {"block": 16}, "two or three dimensions"),
        (matrix[1:], {"block": 16, "gated": True}, "impossible sizes"),
        ([], {"block": 16}, "several weights"),
        ([matrix, matrix], {"block": 16, "in_place": True}, "several weights"),
        ([matrix, matrix], {"block": 16, "gated": True}, "several weights"),
        ([matrix, matrix.float()], {"block": 16}, "same K and dtype"),
        ([matrix, torch.zeros(64, 32).bfloat16()], {"block": 16}, "same K and dtype"),
    ]
    for wrong, options, reason in wrongs:
        with pytest.raises(ValueError, match=reason):
            native.pack(wrong, **options)
    packed = native.pack(matrix, block=16)
    with pytest.raises(ValueError, match=r"not \[32, 64\]"):
        packed.unpack(torch.zeros(32, 64).bfloat16())
    with pytest.raises(ValueError, match="not packed in place"):
        packed.unpack_in_place()
    with pytest.raises(ValueError, match="not packed"):
        native.view(matrix).unpack()
    in_place = native.pack(matrix, block=16, in_place=True)
    with pytest.raises(ValueError, match="unpack_in_place"):
        in_place.unpack(matrix)
