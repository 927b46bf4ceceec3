"""The ops `qkv` and `attend` on the native kernels against fp64, on every instruction set; and their error paths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tunebook.kernels._native as native
from tunebook.errors import OpError
from tunebook.kernels import append, attend, qkv

if native.unavailable() is not None:
    pytest.skip(str(native.unavailable()), allow_module_level=True)

from tunebook.kernels._attention import _native as kernels

ISAS = native.instruction_sets()
DTYPES = (torch.bfloat16, torch.float32)
SEEDS = st.integers(0, 2**16)


def wide(values: Any) -> list[Any]:
    return [
        value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value for value in values
    ]


def assert_near(out: torch.Tensor, exact: torch.Tensor, summed: torch.Tensor | None = None) -> None:
    """Within a rounding or two of the result's dtype, against the size of the row; and eight of fp32, in which it is summed up,
    against what is summed up: a row of two values may come out as near to zero as it likes."""
    assert out.shape == exact.shape
    assert out.isfinite().all()
    limit = 2.0**-7 if out.dtype == torch.bfloat16 else 2.0**-18
    size = exact.square().mean(-1, keepdim=True).sqrt() + exact.abs() + 1e-3
    allowed = limit * size if summed is None else limit * size + 2.0**-21 * summed
    assert ((out.double() - exact).abs() <= allowed).all()


def layer(
    seed: int, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, hidden: int, norm: str, bias: bool, clip: bool
) -> tuple[Any, ...]:
    """The constants of `qkv`."""
    make = torch.Generator().manual_seed(seed)
    counts = (heads * dim, kv_heads * dim, kv_heads * dim)
    weights = [(torch.randn(count, hidden, generator=make) / hidden**0.5).to(dtype) for count in counts]
    biases = [torch.randn(count, generator=make).to(dtype) if bias else None for count in counts]
    sizes = {"none": (), "head": (dim, dim), "whole": counts[:2]}[norm]
    norms: list[Any] = [(torch.rand(size, generator=make) + 0.5).to(dtype) for size in sizes] or [None, None]
    return (*weights, *biases, *norms, dim, 1e-5, 0.7 if clip else None)


def call(
    seed: int, dtype: torch.dtype, batch: int, tokens: int, hidden: int, dim: int, own: bool, wide_angles: bool
) -> Any:
    make = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(batch, tokens, hidden, generator=make).to(dtype)
    angles = torch.randn(batch if own else 1, tokens, dim, generator=make)
    kept = torch.float32 if wide_angles else dtype
    return x, angles.cos().to(kept), angles.sin().to(kept)


@settings(max_examples=150)
@given(
    seed=SEEDS,
    dtype=st.sampled_from(DTYPES),
    isa=st.sampled_from(ISAS),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 3), (5, 1)]),
    dim=st.sampled_from([2, 8, 10, 16, 24, 64, 80]),
    hidden=st.sampled_from([16, 33, 64]),
    rows=st.sampled_from([(1, 1), (3, 1), (17, 1), (1, 19), (2, 5), (40, 30), (0, 1)]),
    norm=st.sampled_from(["none", "head", "whole"]),
    bias=st.booleans(),
    clip=st.booleans(),
    own=st.booleans(),
    wide_angles=st.booleans(),
    block=st.sampled_from([16, 32, 64]),
    threads=st.integers(1, 3),
)
def test_qkv_is_the_ops_own_function_in_fp64(
    seed, dtype, isa, heads, dim, hidden, rows, norm, bias, clip, own, wide_angles, block, threads
):
    constants = layer(seed, dtype, heads[0], heads[1], dim, hidden, norm, bias, clip)
    args = call(seed, dtype, rows[0], rows[1], hidden, dim, own, wide_angles)
    prepared = kernels.pack(*constants, block=block)
    run = kernels.bind(prepared, isa=isa, row_tile=4, threads=threads, block=block)
    exact = qkv.function(*wide(args), *wide(constants))
    for out, expected in zip(run(*args), exact, strict=True):
        assert out.dtype == dtype
        assert out.is_contiguous()
        if out.numel():
            # the products are rounded to the dtype before all else, so their error is carried through norm and rotation
            limit = 2.0**-6 if dtype == torch.bfloat16 else 2.0**-17
            scale = expected.square().mean().sqrt() + expected.abs().amax(-1, keepdim=True) + 1e-2
            assert ((out.double() - expected).abs() <= limit * scale).all()


@pytest.mark.parametrize("block", [16, 32, 64])
@pytest.mark.parametrize("norm", ["none", "head", "whole"])
def test_packed_projections_come_back_bit_for_bit(norm: str, block: int) -> None:
    for bias in (False, True):
        constants = layer(3, torch.bfloat16, 4, 2, 10, 33, norm, bias, False)
        originals = [value for value in constants if isinstance(value, torch.Tensor)]
        given_back = kernels.restore(kernels.pack(*constants, block=block), last=True)
        assert len(given_back) == len(originals)
        for one, other in zip(given_back, originals, strict=True):
            assert torch.equal(one, other)
            assert one.is_contiguous()


@settings(max_examples=150)
@example(
    seed=6535,  # two values a row, and both are near zero
    dtype=torch.float32,
    isa=ISAS[0],
    heads=(4, 2),
    dim=2,
    batch=2,
    keys=512,
    room=3,
    mask="boolean",
    shared=False,
    threads=1,
)
@given(
    seed=SEEDS,
    dtype=st.sampled_from(DTYPES),
    isa=st.sampled_from(ISAS),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 3), (7, 1), (16, 2), (5, 1)]),
    dim=st.sampled_from([2, 8, 10, 16, 24, 33, 64, 80, 128]),
    batch=st.integers(0, 3),
    keys=st.sampled_from([1, 5, 16, 63, 64, 65, 130, 512, 513, 1100]),
    room=st.integers(0, 40),
    mask=st.sampled_from(["none", "boolean", "added", "wide"]),
    shared=st.booleans(),
    threads=st.integers(1, 3),
)
def test_attention_is_the_ops_own_function_in_fp64(
    seed, dtype, isa, heads, dim, batch, keys, room, mask, shared, threads
):
    make = torch.Generator().manual_seed(seed)
    many, few = heads
    q = (torch.randn(batch, many, 1, dim, generator=make) * 3).to(dtype)
    k, v = (torch.randn(batch, few, keys + room, dim, generator=make).to(dtype) for _ in range(2))
    for value in (k, v):  # memory behind the keys may hold anything
        value[:, :, keys:] = torch.nan
    seen, given_mask = None, None
    if mask != "none":
        seen = torch.rand(1 if shared else batch, 1, 1, keys, generator=make) > 0.4
        seen[..., -1] = True
        if len(seen) > 1:
            seen[0] = False  # nothing at all: zeros
        given_mask = seen
        if mask != "boolean":
            given_mask = torch.randn(seen.shape, generator=make).masked_fill(~seen, -torch.inf)
            given_mask = given_mask.to(torch.float32 if mask == "wide" else dtype)
    out = kernels.bind_attend(dim**-0.5, isa=isa, threads=threads)(q, k, v, given_mask, keys)
    if batch == 0:
        assert out.shape == (0, 1, many, dim)
        return
    wide_mask = given_mask if mask == "boolean" else wide([given_mask])[0]
    exact = attend.function(*wide((q, k, v)), wide_mask, keys, dim**-0.5)
    assert_near(out, exact, attend.function(*wide((q, k, v.abs())), wide_mask, keys, dim**-0.5))
    if seen is not None and len(seen) > 1:
        assert (out[0] == 0).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_result_depends_on_neither_threads_nor_the_rest_of_the_batch(isa: str, dtype: torch.dtype) -> None:
    make = torch.Generator().manual_seed(0)
    q = torch.randn(9, 4, 1, 64, generator=make).to(dtype)
    k, v = (torch.randn(9, 2, 1200, 64, generator=make).to(dtype) for _ in range(2))
    whole = kernels.bind_attend(0.125, isa=isa, threads=1)(q, k, v, None, 1150)
    for threads in (2, 3):
        assert torch.equal(kernels.bind_attend(0.125, isa=isa, threads=threads)(q, k, v, None, 1150), whole)
    alone = kernels.bind_attend(0.125, isa=isa, threads=2)(q[4:5], k[4:5], v[4:5], None, 1150)
    assert torch.equal(alone, whole[4:5])
    constants = layer(1, dtype, 4, 2, 64, 64, "head", True, False)
    prepared = kernels.pack(*constants, block=32)
    x, cos, sin = call(1, dtype, 40, 1, 64, 64, True, False)
    together = kernels.bind(prepared, isa=isa, row_tile=4, threads=3)(x, cos, sin)
    for row in (0, 7, 39):
        some = slice(row, row + 1)
        single = kernels.bind(prepared, isa=isa, row_tile=4, threads=1)(x[some], cos[some], sin[some])
        assert all(torch.equal(one, all_[some]) for one, all_ in zip(single, together, strict=True))


def test_scores_that_are_not_numbers_show() -> None:
    q, k, v = torch.ones(1, 1, 1, 16), torch.ones(1, 1, 70, 16), torch.ones(1, 1, 70, 16)
    for isa in ISAS:
        run = kernels.bind_attend(1.0, isa=isa, threads=1)
        for at in (0, 69):
            bad = k.clone()
            bad[0, 0, at, 3] = torch.nan
            assert run(q, bad, v, None, 70).isnan().all()
        assert run(q * 1e30, k * 1e30, v, None, 70).isnan().all()
        nothing = torch.full((1, 1, 1, 70), torch.nan)
        assert run(q, k, v, nothing, 70).isnan().all()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_new_keys_are_written_behind_the_others(dtype: torch.dtype) -> None:
    room = [torch.full((2, 3, 9, 8), 7.0, dtype=dtype) for _ in range(2)]
    new = [torch.randn(2, 2, 3, 8).to(dtype).transpose(1, 2) for _ in range(2)]
    append(new[0], new[1], room[0], room[1], 4)
    for into, value in zip(room, new, strict=True):
        assert torch.equal(into[:, :, 4:6], value)
        assert (into[:, :, :4] == 7).all()
        assert (into[:, :, 6:] == 7).all()
    for wrong in (8, -1):
        with pytest.raises(ValueError, match="do not fit"):
            append(new[0], new[1], room[0], room[1], wrong)
    with pytest.raises(ValueError, match="do not fit"):
        append(new[0], new[1][:1], room[0], room[1], 0)


def test_what_cannot_be_computed_is_refused_by_name() -> None:
    constants = layer(0, torch.float32, 4, 2, 8, 16, "none", False, False)
    prepared = kernels.pack(*constants, block=16)
    run = kernels.bind(prepared, isa=ISAS[-1], row_tile=4, threads=1)
    x, cos, sin = call(0, torch.float32, 2, 3, 16, 8, True, False)
    for args in (
        (x[..., :8], cos, sin),
        (x, cos[:, :2], sin),
        (x, cos, sin[..., :4]),
        (x[0], cos, sin),
        (x, cos[:1], sin),
    ):
        with pytest.raises(ValueError, match=r"x must be \[B, T, 16\], cos and sin \[1 or B, T, 8\]"):
            run(*args)
    with pytest.raises(ValueError, match="x must be a bfloat16 or float32 tensor"):
        run(x.half(), cos, sin)
    with pytest.raises(ValueError, match="even dimension"):
        kernels.pack(*layer(0, torch.float32, 4, 2, 9, 16, "none", False, False), block=16)
    one = kernels.bind_attend(1.0, isa=ISAS[-1], threads=1)
    q, k = torch.ones(2, 4, 1, 8), torch.ones(2, 2, 5, 8)
    wrong = [
        (q, k, k, None, 6),
        (q, k, k[:1], None, 5),
        (q[:, :3], k, k, None, 5),
        (q.expand(2, 4, 2, 8), k, k, None, 5),
    ]
    for wrongly in wrong:
        with pytest.raises(ValueError, match=r"q must be \[B, Hq, 1, D\]"):
            one(*wrongly)
    with pytest.raises(ValueError, match=r"the mask must be \[1 or 2, 1, 1, 5\]"):
        one(q, k, k, torch.ones(2, 1, 1, 4), 5)
    with pytest.raises(ValueError, match="boolean, bfloat16 or float32"):
        one(q, k, k, torch.ones(2, 1, 1, 5, dtype=torch.int64), 5)


def test_calls_of_other_forms_have_no_key() -> None:
    describe = qkv.shape.describe

    def key(op: Any, *args: Any) -> str:
        problem = op.shape.problem(op.shape.describe(args))
        return "" if problem is None else str(problem.key)

    constants = layer(0, torch.float32, 4, 2, 8, 16, "whole", True, True)
    x, cos, sin = call(0, torch.float32, 2, 3, 16, 8, True, False)
    assert key(qkv, x, cos, sin, *constants) == ("qkv|N=32,KV=16,K=16,D=8,bias=yes,norm=whole,clip=yes|fp32|M≤8")
    with pytest.raises(OpError, match=r"qkv takes x \[B, T, H\]"):
        describe((x[0], cos, sin, *constants))
    q, k = torch.ones(2, 4, 1, 8), torch.ones(2, 2, 5, 8)
    assert key(attend, q, k, k, None, 5, 1.0) == "attend|Hq=4,Hk=2,D=8|fp32|M≤2"
    with pytest.raises(OpError, match="at most C keys"):
        attend.shape.describe((q, k, k, None, 6, 1.0))
    with pytest.raises(OpError, match="takes a mask"):
        attend.shape.describe((q, k, k, torch.ones(2, 4, 1, 5), 5, 1.0))


def test_inputs_of_other_sizes_are_whole_rows_and_whole_sequences() -> None:
    import random

    x, cos, sin = call(0, torch.float32, 3, 1, 16, 8, True, False)
    more = qkv.shape.resample((x, cos, sin), {"M": 5}, random.Random(0))
    assert [tuple(value.shape) for value in more] == [(5, 1, 16), (5, 1, 8), (5, 1, 8)]
    for row in range(5):
        own = next(i for i in range(3) if torch.equal(x[i], more[0][row]))
        assert torch.equal(cos[own], more[1][row])
        assert torch.equal(sin[own], more[2][row])
    x, cos, sin = call(0, torch.float32, 2, 3, 16, 8, False, False)
    fewer = qkv.shape.resample((x, cos, sin), {"M": 4}, random.Random(0))
    assert [tuple(value.shape) for value in fewer] == [(1, 4, 16), (1, 4, 8), (1, 4, 8)]
    q, k = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 5, 8)
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    drawn = attend.shape.resample((q, k, k, mask, 5), {"M": 4}, random.Random(0))
    assert [tuple(value.shape) for value in drawn[:4]] == [(4, 4, 1, 8), (4, 2, 5, 8), (4, 2, 5, 8), (4, 1, 1, 5)]
    assert drawn[4] == 5
