"""Example inputs of the shipped ops: calls of just the problem that they are made for, on which every tactic is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tunebook.kernels  # noqa: F401 - declares the ops
from tunebook.book.repro import set_up
from tunebook.dispatch import OPS, Op
from tunebook.errors import OpError
from tunebook.kernels import SCORINGS
from tunebook.measure import Passed
from tunebook.ops import example_inputs, example_options
from tunebook.records import DEFAULT, Problem

SHIPPED = ("add_rms_norm", "attend", "experts", "linear", "qkv", "residual_add", "rms_norm", "router")
NAMES = ("bf16", "fp16", "fp32")
Attrs = dict[str, object]


def named(first: str, **others: str) -> tuple[str, ...]:
    """Dtypes as the ops with named tensors write them."""
    return (first, *(f"{name}:{dtype}" for name, dtype in others.items() if dtype != first))


@st.composite
def attributes(draw: Any, op: str) -> tuple[Attrs, tuple[str, ...]]:
    """The attributes and dtypes of a problem that a model could have."""
    size, dtype = st.integers(1, 24), st.sampled_from(NAMES)
    first, second, third = draw(dtype), draw(dtype), draw(dtype)
    several = tuple(draw(st.permutations(NAMES))[: draw(st.integers(1, 3 if op == "add_rms_norm" else 2))])
    if op == "linear":
        bias = {"bias": "yes"} if draw(st.booleans()) else {}
        return {"N": draw(size), "K": draw(size), **bias}, named(first, weight=second)
    if op in ("experts", "router"):
        count = draw(st.integers(1, 8))
        attrs: Attrs = {"E": count, "K": draw(st.integers(1, count)), "H": draw(size)}
        if op == "router":
            return {**attrs, "scoring": draw(st.sampled_from(sorted(SCORINGS)))}, several
        act = {"act": "gelu"} if draw(st.booleans()) else {}
        return {**attrs, "I": draw(size), **act}, named(first, weights=second, scores=third)
    if op == "qkv":
        dim, kv_heads = 2 * draw(st.integers(1, 4)), draw(st.integers(1, 2))
        queries = dim * kv_heads * draw(st.integers(1, 3))
        norm = draw(st.sampled_from(["", "head", "whole"] if queries != dim else ["", "head"]))
        extra = {"bias": draw(st.booleans()), "norm": norm, "clip": draw(st.booleans())}
        attrs = {"N": queries, "KV": dim * kv_heads, "K": draw(size), "D": dim}
        attrs |= {name: "yes" if value is True else value for name, value in extra.items() if value}
        return attrs, named(first, weight=second, cos=third)
    if op == "attend":
        kv_heads = draw(st.integers(1, 3))
        return {"Hq": kv_heads * draw(st.integers(1, 3)), "Hk": kv_heads, "D": draw(size)}, named(first, k=second)
    return {"H": draw(size)}, several


def problem_of(op: str, attrs: Attrs, dtypes: tuple[str, ...], rows: int) -> Problem:
    dim = OPS[op].shape.by_name["M"].dim("M", rows)
    assert dim is not None
    return Problem(op=op, attrs=tuple((name, str(value)) for name, value in attrs.items()), dtypes=dtypes, dims=(dim,))


def tensors(args: Sequence[Any]) -> list[torch.Tensor]:
    return [value for value in args if isinstance(value, torch.Tensor)]


def same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


def test_every_shipped_op_has_an_example() -> None:
    assert {op.name for op in OPS.values() if op.function.__module__.startswith("tunebook.kernels")} == {*SHIPPED}
    assert all(OPS[name].example is not None for name in SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
@settings(max_examples=60)
@given(data=st.data(), rows=st.integers(1, 70), seed=st.integers(0, 2**32 - 1))
def test_an_example_described_back_is_the_problem_itself_and_the_seed_says_which(
    name: str, data: Any, rows: int, seed: int
) -> None:
    op: Op[..., Any] = OPS[name]
    attrs, dtypes = data.draw(attributes(name))
    problem = problem_of(name, attrs, dtypes, rows)
    options = {"keys": data.draw(st.integers(1, 300))} if name == "attend" else {}
    args = example_inputs(op, problem, {"M": rows}, seed, **options)
    description = op.shape.describe(args)
    assert description.sizes == {"M": rows}
    made = op.shape.problem(description)
    assert made is not None
    assert made.key == problem.key
    assert Problem.parse(problem.key) == problem
    assert all(value.isfinite().all() and value.is_contiguous() for value in tensors(args))
    assert same(args, example_inputs(op, problem, {"M": rows}, seed, **options))
    if sum(value.numel() for value in tensors(args)) >= 32:  # fewer may be equal by chance
        assert not same(args, example_inputs(op, problem, {"M": rows}, seed ^ 1, **options))


#: By op: a problem of one dtype with a tactic of every runner that can run here.
TINY = {
    "add_rms_norm": ("add_rms_norm|H=64|bf16|M≤256", 200),
    "attend": ("attend|Hq=4,Hk=2,D=16|fp32|M≤4", 3),
    "experts": ("experts|E=4,K=2,H=32,I=64|bf16,scores:fp32|M≤8", 7),
    "linear": ("linear|N=64,K=32,bias=yes|bf16|M≤8", 5),
    "qkv": ("qkv|N=32,KV=16,K=32,D=8,norm=head|bf16|M≤8", 8),
    "residual_add": ("residual_add|H=64|fp32|M≤256", 256),
    "rms_norm": ("rms_norm|H=64|fp32|M≤256", 129),
    "router": ("router|E=8,K=2,H=64,scoring=softmax_top_k|bf16|M≤64", 40),
}


@pytest.mark.usefixtures("clean_ops")
@pytest.mark.parametrize("name", SHIPPED)
def test_every_tactic_gives_the_defaults_output_on_an_example(name: str) -> None:
    op: Op[..., Any] = OPS[name]
    key, rows = TINY[name]
    problem, tried = Problem.parse(key), set()
    for runner in op.runners.values():
        for tactic in runner.space_of(problem) if runner.requirement.reason() is None else ():
            if runner.refusal(tactic, problem) is None:
                trial = set_up(op, problem, tactic, {"M": rows}, {}, seed=3, layers=2)
                assert isinstance(trial.found, Passed), (tactic.name, trial.found)
                assert len(trial.calls) == 2
                assert bool(trial.layout) == bool(trial.prepared) == (runner.prepare is not None)
                tried.add(runner.name)
    offered = {name for name, runner in op.runners.items() if runner.requirement.reason() is None}
    assert tried == offered, "some runner is not tried"
    assert set_up(op, problem, DEFAULT, {"M": rows}, {}, seed=3, layers=1).found is None


def test_tokens_choose_different_experts_and_their_scores_add_up() -> None:
    problem = problem_of("experts", {"E": 16, "K": 4, "H": 8, "I": 8}, ("bf16", "scores:fp32"), 64)
    _, index, scores, *_ = example_inputs(OPS["experts"], problem, {"M": 64}, 5)
    assert all(len(set(row)) == 4 for row in index.tolist())
    assert set(index.flatten().tolist()) == {*range(16)}
    assert torch.allclose(scores.sum(dim=1), torch.ones(64))
    assert (scores[:, 0] > scores[:, -1]).all()


@pytest.mark.parametrize(
    ("rows", "options", "shape"),
    [(16, {}, (16, 1, 6)), (128, {}, (1, 128, 6)), (128, {"batch": 4}, (4, 32, 6)), (16, {"batch": 1}, (1, 16, 6))],
)
def test_few_rows_of_qkv_are_single_tokens_unless_a_batch_is_asked_for(
    rows: int, options: dict[str, int], shape: tuple[int, ...]
) -> None:
    problem = problem_of("qkv", {"N": 8, "KV": 8, "K": 6, "D": 4}, ("fp32",), rows)
    x, cos, sin, *_ = example_inputs(OPS["qkv"], problem, {"M": rows}, 0, **options)
    assert x.shape == shape
    assert cos.shape == sin.shape == (*shape[:2], 4)
    assert torch.allclose(cos.square() + sin.square(), torch.ones_like(cos), atol=1e-5)


@pytest.mark.parametrize(
    ("op", "attrs", "options", "words"),
    [
        ("qkv", {"N": 8, "KV": 8, "K": 6, "D": 4}, {"batch": 3}, "4 rows are not those of 3 sequences"),
        ("attend", {"Hq": 2, "Hk": 2, "D": 4}, {"keys": 0}, "keys=0"),
        ("experts", {"E": 2, "K": 3, "H": 4, "I": 4}, {}, "its example for experts|E=2,K=3"),
        ("linear", {"N": 4}, {}, "KeyError: 'K'"),
        ("linear", {"N": "many", "K": 4}, {}, "many"),
        ("linear", {"N": 4, "K": 4, "more": 1}, {}, "more: 1 ≠ -"),
    ],
)
def test_what_cannot_be_made_is_an_error_that_says_why(
    op: str, attrs: Attrs, options: dict[str, int], words: str
) -> None:
    with pytest.raises(OpError) as caught:
        example_inputs(OPS[op], problem_of(op, attrs, ("fp32",), 4), {"M": 4}, 0, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(OpError, match="dtype 'fp4x' is none of torch's"):
        example_inputs(OPS["linear"], problem_of("linear", {"N": 4, "K": 4}, ("fp4x",), 4), {"M": 4}, 0)


def test_what_a_key_leaves_open_can_be_chosen() -> None:
    assert example_options(OPS["attend"]) == {"keys": 512}
    assert example_options(OPS["residual_add"]) == {"multiplier": 1.0}
    assert example_options(OPS["linear"]) == {}
    problem = problem_of("attend", {"Hq": 2, "Hk": 1, "D": 4}, ("fp32",), 2)
    q, k, v, mask, keys, _ = example_inputs(OPS["attend"], problem, {"M": 2}, 0, keys=257)
    assert (q.shape, k.shape, v.shape) == ((2, 2, 1, 4), (2, 1, 512, 4), (2, 1, 512, 4))
    assert (mask, keys) == (None, 257)
