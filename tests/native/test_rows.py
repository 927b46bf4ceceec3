"""The row kernels against fp64 and against Transformers' own modules, on every instruction set, by both ways of calling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import tunebook.kernels._native as native
from tunebook.kernels import SCORINGS, residual_add, rms_norm, router
from tunebook.kernels._rows._router import agree

if native.unavailable() is not None:
    pytest.skip(str(native.unavailable()), allow_module_level=True)

from tunebook.kernels._native import _calls
from tunebook.kernels._rows import _native as kernels

ISAS = native.instruction_sets()
DTYPES = (torch.bfloat16, torch.float32)
HOW = st.fixed_dictionaries({"isa": st.sampled_from(ISAS), "parallel": st.booleans()})


@pytest.fixture(params=[True, False], ids=["exchange", "addresses"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors read in C++, or handed over as addresses, as for a PyTorch without DLPack's exchange interface."""
    if request.param and not _calls._EXCHANGE:
        pytest.skip("this PyTorch has no exchange interface")
    monkeypatch.setattr(_calls, "_EXCHANGE", request.param)


def drawn(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_within(got: Tensor, exact: Tensor, steps: float) -> None:
    """Within so many roundings of its dtype."""
    step = 2.0 ** (-8 if got.dtype == torch.bfloat16 else -23)
    assert got.isfinite().all()
    assert ((got.double() - exact).abs() <= exact.abs() * step * steps + 1e-30).all()


PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.usefixtures("way")
@PROPERTY
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(1, 150)),
    dtype=st.sampled_from(DTYPES),
    size=st.sampled_from([1e-3, 1.0, 300.0]),
    how=HOW,
    seed=st.integers(0, 1000),
)
def test_a_norm_rounds_where_transformers_does(shape, dtype, size, how, seed):
    x, weight = drawn(*shape, dtype=dtype, seed=seed) * size, drawn(shape[-1], dtype=dtype, seed=seed + 1)
    got = kernels.bind_rms_norm(weight, 1e-5, **how)(x)
    assert (got.shape, got.dtype) == (x.shape, dtype)
    wide = x.double()
    assert_within(got, weight.double() * wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt(), 3)
    if dtype == torch.bfloat16:
        assert (got != rms_norm.function(x, weight, 1e-5)).sum() <= 0.002 * got.numel(), "seldom a rounding apart"


@pytest.mark.usefixtures("way")
@PROPERTY
@given(
    shape=st.tuples(st.integers(0, 40), st.integers(1, 150)),
    dtype=st.sampled_from(DTYPES),
    multiplier=st.sampled_from([1.0, 0.22, -3.7]),
    how=HOW,
    seed=st.integers(0, 1000),
)
def test_sums_are_pytorchs_bit_for_bit_and_their_norm_is_that_of_the_sum(shape, dtype, multiplier, how, seed):
    x, residual = (drawn(*shape, dtype=dtype, seed=seed + i) for i in (0, 1))
    weight = drawn(shape[-1], dtype=dtype, seed=seed + 2)
    total, normed = kernels.bind_add_rms_norm(weight, 1e-6, multiplier, **how)(x, residual[None])
    assert torch.equal(total[0], residual_add.function(x, residual, multiplier))
    assert torch.equal(kernels.bind_residual_add(multiplier, **how)(x, residual[None]), total)
    assert torch.equal(normed, kernels.bind_rms_norm(weight, 1e-6, **how)(total))


@pytest.mark.usefixtures("way")
@PROPERTY
@given(
    tokens=st.integers(0, 40),
    experts=st.integers(1, 140),
    choices=st.integers(0, 9),
    inner=st.integers(1, 100),
    scoring=st.sampled_from(sorted(SCORINGS)),
    dtype=st.sampled_from(DTYPES),
    dot=st.booleans(),
    how=HOW,
    seed=st.integers(0, 1000),
)
def test_a_router_gives_the_logits_their_greatest_and_the_scores(
    tokens, experts, choices, inner, scoring, dtype, dot, how, seed
):
    choices = min(choices, experts)
    x, weight = drawn(tokens, inner, dtype=dtype, seed=seed), drawn(experts, inner, dtype=dtype, seed=seed + 1) * 0.2
    got = kernels.bind_router(weight, choices, scoring, dot=dot, **how)(x)
    expected = router.function(x, weight, choices, scoring)
    assert [(v.shape, v.dtype) for v in got] == [(v.shape, v.dtype) for v in expected]
    assert not isinstance(said := agree(got, expected, (x,)), str), said
    exact = x.double() @ weight.double().T
    size = x.double().abs() @ weight.double().abs().T
    rounding = exact.abs() * (2.0**-8 if dtype == torch.bfloat16 else 2.0**-22)
    assert ((got[0].double() - exact).abs() <= rounding + size * 2.0**-19).all()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scoring", sorted(SCORINGS))
@pytest.mark.parametrize(("experts", "choices"), [(32, 8), (8, 2), (5, 5), (200, 3), (7, 1)])
def test_equal_logits_are_chosen_as_torch_chooses_them(isa, scoring, experts, choices):
    """Whole numbers, whose products are exact in every order of summation, and few of them: rows are full of ties."""
    generator = torch.Generator().manual_seed(3)
    x, weight = (torch.randint(-1, 2, (rows, 16), generator=generator).bfloat16() for rows in (100, experts))
    got = kernels.bind_router(weight, choices, scoring, dot=True, parallel=False, isa=isa)(x)
    expected = router.function(x, weight, choices, scoring)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[2], expected[2])
    torch.testing.assert_close(got[1], expected[1])


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("scoring", sorted(SCORINGS))
def test_a_nan_among_the_logits_is_chosen_first(scoring):
    x, weight = torch.ones(1, 4), torch.eye(6, 4)
    weight[3, 0] = float("nan")
    _, scores, index = kernels.bind_router(weight, 2, scoring, dot=True, parallel=False)(x)
    expected = router.function(x, weight, 2, scoring)
    assert torch.equal(index, expected[2])
    torch.testing.assert_close(scores, expected[1], equal_nan=True)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("isa", ISAS)
def test_a_row_is_the_same_in_every_batch_and_on_every_number_of_threads(isa):
    x, weight, gate = (drawn(*shape, dtype=torch.bfloat16, seed=5) for shape in ((300, 257), (257,), (40, 257)))
    for bind in (
        lambda **how: kernels.bind_rms_norm(weight, 1e-6, **how),
        lambda **how: kernels.bind_router(gate, 4, "softmax_top_k", dot=True, **how),
        lambda **how: kernels.bind_router(gate, 4, "softmax_top_k", dot=False, **how),
    ):
        whole = _all(bind(parallel=True, isa=isa)(x))
        alone = [
            torch.cat(parts)
            for parts in zip(*(_all(bind(parallel=False, isa=isa)(row[None])) for row in x), strict=True)
        ]
        assert all(torch.equal(one, two) for one, two in zip(whole, alone, strict=True))


def _all(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def test_what_is_not_contiguous_is_copied_first():
    if not _calls._EXCHANGE:
        pytest.skip("addresses are taken by the dispatcher, which copies")
    x, weight = drawn(6, 10, dtype=torch.float32, seed=0), drawn(6, dtype=torch.float32, seed=1)
    norm = kernels.bind_rms_norm(weight, 1e-6, parallel=False)
    assert torch.equal(norm(x.T), norm(x.T.contiguous()))


def test_a_sum_elsewhere_than_on_the_cpu_is_refused_where_addresses_are_handed_over(monkeypatch):
    monkeypatch.setattr(_calls, "_EXCHANGE", False)
    with pytest.raises(ValueError, match="on the CPU"):
        kernels.bind_residual_add(1.0, parallel=False)(X.to("meta"), X.to("meta"))


X, W = torch.ones(2, 8), torch.ones(8)
WRONG: list[tuple[str, Callable[[], object]]] = [
    ("contiguous bfloat16 or float32", lambda: kernels.bind_rms_norm(W.double(), 1e-6, parallel=False)),
    ("contiguous bfloat16 or float32", lambda: kernels.bind_add_rms_norm(W[::2], 1e-6, 1.0, parallel=False)),
    (
        "contiguous bfloat16 or float32",
        lambda: kernels.bind_router(X.half(), 1, "softmax_top_k", dot=True, parallel=False),
    ),
    ("3 of 2 experts", lambda: kernels.bind_router(X, 3, "softmax_top_k", dot=True, parallel=False)),
    ("instruction set sse is not usable", lambda: kernels.bind_rms_norm(W, 1e-6, parallel=False, isa="sse")),
]
WRONG_CALLS: list[tuple[str, Callable[[], object]]] = [
    ("as long as the weight", lambda: kernels.bind_rms_norm(W, 1e-6, parallel=False)(X[:, :4])),
    ("not of the weight's dtype", lambda: kernels.bind_rms_norm(W, 1e-6, parallel=False)(X.bfloat16())),
    ("not on the CPU", lambda: kernels.bind_rms_norm(W, 1e-6, parallel=False)(X.to("meta"))),
    ("different sizes", lambda: kernels.bind_add_rms_norm(W, 1e-6, 1.0, parallel=False)(X, X[:1])),
    ("different sizes", lambda: kernels.bind_residual_add(1.0, parallel=False)(X, X[:1])),
    ("bfloat16 or float32 tensor", lambda: kernels.bind_residual_add(1.0, parallel=False)(X.half(), X.half())),
    (r"\[M, H\]", lambda: kernels.bind_router(X, 1, "softmax_top_k", dot=True, parallel=False)(X[None])),
]


@pytest.mark.parametrize(("message", "call"), WRONG)
def test_what_does_not_fit_is_refused_by_name(message, call):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("message", "call"), WRONG_CALLS)
def test_a_call_that_does_not_fit_is_refused_by_name(message, call):
    if not _calls._EXCHANGE:
        pytest.skip("where tensors go by address, the dispatcher alone looks at them")
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("rms_norm", (0, 0, 1e-6, -1, 8, 0, False, 1)),
        ("residual_add", (0, 0, 1.0, 1, 8, 0, False, 0)),
        ("bind_residual_add", (1.0, 0)),
        ("router", (0, 0, 1, 4, 8, 5, 0, True, False, 0, False, 0, False, 0, 1)),
        ("router", (0, 0, 1, 4, 8, 2, 3, True, False, 0, False, 0, False, 0, 1)),
        ("router", (0, 0, 1, 4, 8, 2, 0, True, True, 0, False, 0, False, 0, 1)),
        ("router", (0, 0, -1, 4, 8, 2, 0, True, False, 0, False, 0, False, 0, 1)),
    ],
)
def test_impossible_sizes_are_refused_before_any_memory_is_touched(name, arguments):
    with pytest.raises(ValueError, match=r"sizes|experts|scoring"):
        getattr(kernels.rows(), name)(*arguments)
