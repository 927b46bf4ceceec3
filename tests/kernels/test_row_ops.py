"""The row ops: their keys, what is checked of a router's choice, and tuning them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tunebook as tb
from tunebook.devices import CpuDevice
from tunebook.dispatch import Op
from tunebook.errors import OpError
from tunebook.kernels import SCORINGS, add_rms_norm, residual_add, rms_norm, router
from tunebook.kernels._native import unavailable
from tunebook.kernels._rows._router import agree
from tunebook.measure import Case, Finding, Passed, Reference, check

pytestmark = pytest.mark.usefixtures("clean_ops")
_GENERATOR = torch.Generator().manual_seed(0)
X, WEIGHT = torch.randn(3, 5, 16, generator=_GENERATOR), torch.ones(16)
GATE = torch.randn(8, 16, generator=_GENERATOR) / 4
CALLS: dict[str, tuple[Op[..., Any], tuple[Any, ...]]] = {
    "rms_norm|H=16|fp32|M≤16": (rms_norm, (X, WEIGHT, 1e-6)),
    "add_rms_norm|H=16|fp32|M≤16": (add_rms_norm, (X, X, WEIGHT, 1e-6, 0.5)),
    "residual_add|H=16|fp32|M≤16": (residual_add, (X, X, 0.5)),
    "router|E=8,K=2,H=16,scoring=softmax_top_k|fp32|M≤4": (router, (X[:, 0], GATE, 2, "softmax_top_k")),
}


@pytest.mark.parametrize("key", CALLS)
def test_keys_have_sizes_and_dtypes_and_no_values(key: str) -> None:
    op, args = CALLS[key]
    problem = op.shape.problem(op.shape.describe(args))
    assert problem is not None
    assert problem.key == key


def test_dtypes_that_differ_are_another_problem_which_native_refuses() -> None:
    problem = rms_norm.shape.problem(rms_norm.shape.describe((X.bfloat16(), WEIGHT, 1e-6)))
    assert problem is not None
    assert problem.dtypes == ("bf16", "fp32")
    for name, runner in rms_norm.runners.items():
        assert all(runner.refusal(tactic, problem) for tactic in runner.combinations), name


def test_a_router_of_other_than_rows_has_no_problem() -> None:
    with pytest.raises(OpError, match=r"\[M, H\]"):
        router.shape.describe((X, GATE, 2, "softmax_top_k"))


@pytest.mark.parametrize(
    ("op", "rows", "params", "reason"),
    [
        ("rms_norm", 1, {"parallel": True}, "too little work"),
        ("rms_norm", 1024, {"parallel": True}, None),
        ("router", 4, {"parallel": False, "dot": False}, "too few rows"),
        ("router", 5, {"parallel": False, "dot": False}, None),
        ("router", 128, {"parallel": True, "dot": True}, None),
    ],
)
def test_tactics_that_cannot_win_are_not_offered(
    op: str, rows: int, params: dict[str, bool], reason: str | None
) -> None:
    spec, args = next((o, a) for key, (o, a) in CALLS.items() if key.startswith(op))
    problem = spec.shape.problem(spec.shape.describe((torch.zeros(rows, 16), *args[1:])))
    assert problem is not None
    runner = spec.runners["native"]
    refusal = next(runner.refusal(t, problem) for t in runner.combinations if t.kwargs == params)
    assert refusal is None if reason is None else refusal is not None and reason in refusal


@pytest.mark.parametrize("key", CALLS)
def test_rows_drawn_for_another_size_stay_together(key: str) -> None:
    op, args = CALLS[key]
    dynamic, _ = op.split(args)
    made = op.shape.resample(dynamic, {"M": 40}, random.Random(0))
    assert [(value.ndim, value.shape[-2:]) for value in made] == [(value.ndim, (40, 16)) for value in dynamic]
    live = {tuple(row.tolist()) for row in dynamic[0].reshape(-1, 16)}
    assert {tuple(row.tolist()) for row in made[0].reshape(-1, 16)} == live
    assert all(torch.equal(value.reshape(-1), made[0].reshape(-1)) for value in made)


@pytest.mark.parametrize("key", CALLS)
def test_extremes_are_calls_of_the_same_problem(key: str) -> None:
    op, args = CALLS[key]
    problem = op.shape.problem(op.shape.describe(args))
    assert problem is not None
    dynamic, constants = op.split(args)
    found = op.extreme_inputs(problem, dynamic, constants, random.Random(0))
    assert (len(found) > 0) is (op is not residual_add)


@pytest.mark.skipif(unavailable() is not None, reason="the native kernels are not here")
@pytest.mark.parametrize("key", CALLS)
def test_every_offered_tactic_gives_what_the_default_gives(key: str) -> None:
    op, args = CALLS[key]
    binding = op.bind(*op.split(args)[1])
    problem = op.shape.problem(op.shape.describe(args))
    assert problem is not None
    dynamic = op.split(args)[0]
    with torch.inference_mode():
        cases = [Case(dynamic, binding.default(*dynamic), "live", agree=op.agree)]
        for label, extreme in op.extreme_inputs(problem, dynamic, binding.constants, random.Random(0)):
            cases.append(Case(extreme, binding.default(*extreme), label, agree=op.agree))
        reference, checked = Reference.of(cases, binding.constants), 0
        for runner in op.runners.values():
            for tactic in runner.combinations:
                if runner.refusal(tactic, problem) is None:
                    found = check(binding.bound(tactic), reference, CpuDevice())
                    assert isinstance(found, Passed), (tactic.name, found)
                    checked += 1
    assert checked > 0


@pytest.mark.skipif(unavailable() is not None, reason="the native kernels are not here")
def test_tuned_calls_give_what_untuned_calls_give() -> None:
    x = torch.randn(7, 16)
    with torch.inference_mode():
        expected = router(x, GATE, 2, "softmax_top_k_norm"), add_rms_norm(x, x, WEIGHT, 1e-6, 0.5)
        with tb.autotune(budget_s=2, only_runners=("native",)):
            router(x, GATE, 2, "softmax_top_k_norm")
            add_rms_norm(x, x, WEIGHT, 1e-6, 0.5)
        got = router(x, GATE, 2, "softmax_top_k_norm"), add_rms_norm(x, x, WEIGHT, 1e-6, 0.5)
    torch.testing.assert_close(got, expected)


def test_the_scorings_are_what_they_say() -> None:
    for name, how in SCORINGS.items():
        logits, scores, index = router(X[:, 0].bfloat16(), GATE.bfloat16(), 3, name)
        assert (logits.dtype == torch.float32) is how.wide_logits
        assert (scores.dtype == torch.float32) is how.wide_scores
        sums = scores.float().sum(-1)
        assert bool(((sums - 1).abs() < 0.02).all()) is (how.chosen or how.renormalise)
        assert torch.equal(logits.gather(1, index), logits.topk(3).values)


# ---------------------------------------------------------------- agree


def routed(scoring: str = "softmax_top_k") -> tuple[tuple[Tensor], tuple[Tensor, Tensor, Tensor]]:
    x = torch.randn(6, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    logits, scores, index = router(x, GATE.bfloat16(), 3, scoring)
    return (x,), (logits.clone(), scores.clone(), index.clone())


def test_equal_logits_may_be_chosen_in_any_order_and_in_each_others_place() -> None:
    args, (logits, scores, index) = routed()
    order = logits[0].argsort(descending=True)
    logits[0, order[1]] = logits[0, order[0]]  # equal among the chosen
    logits[0, order[3]] = logits[0, order[2]]  # equal at the edge
    scores[0, 1] = scores[0, 0]
    index[0] = order[:3]
    swapped = index.clone()
    swapped[0] = order[[1, 0, 3]]
    assert agree((logits, scores, swapped), (logits, scores, index), args) == 0.0


Spoil = Callable[[Tensor, Tensor, Tensor], object]
SPOILT: dict[str, tuple[Spoil, str]] = {
    "another logit": (lambda y, s, i: y[2].mul_(1.3), "output 0: row 2"),
    "another score": (lambda y, s, i: s[1].mul_(1.3), "output 1: row 1"),
    "a lesser one": (lambda y, s, i: i[3].__setitem__(2, y[3].argmin()), "row 3 has not chosen the greatest"),
    "out of order": (lambda y, s, i: i[4].copy_(i[4].flip(0)), "row 4 has not chosen"),
    "twice": (lambda y, s, i: i[5].fill_(int(i[5, 0])), "an expert twice"),
    "no expert": (lambda y, s, i: i[0].fill_(8), "outside 0…7"),
    "negative": (lambda y, s, i: i[0].fill_(-1), "outside 0…7"),
    "nan": (lambda y, s, i: y[0].fill_(float("nan")), "output 0: 8 values are NaN"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_wrong_routing_is_refused_in_words(what: str) -> None:
    args, expected = routed()
    spoil, words = SPOILT[what]
    got = tuple(value.clone() for value in expected)
    spoil(*got)
    said = agree(got, expected, args)
    assert isinstance(said, str)
    assert words in said


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (lambda y, s, i: (y, s), "not 3 values"),
        (lambda y, s, i: y, "not 3 values"),
        (lambda y, s, i: (y, s, i.int()), "output 2: dtype torch.int32"),
        (lambda y, s, i: (y, s, i[:, :2]), "output 2: shape (6, 2)"),
        (lambda y, s, i: (y.double(), s, i), "output 0: dtype torch.float64"),
        (lambda y, s, i: (y, None, i), "output 1: returned nothing"),
    ],
)
def test_what_is_no_routing_is_refused_in_words(got: Callable[..., Any], words: str) -> None:
    args, expected = routed()
    said = agree(got(*expected), expected, args)
    assert isinstance(said, str)
    assert words in said


def test_the_check_of_tactics_asks_the_op() -> None:
    args, expected = routed()
    swapped = (expected[0], expected[1], expected[2].flip(1))

    def said(**options: Any) -> Finding | Passed:
        return check(
            lambda x: tuple(v.clone() for v in swapped),
            Reference.of([Case(args, expected, "M=6", **options)], ()),
            CpuDevice(),
        )

    plain, asked = said(), said(agree=lambda got, want, live: 0.25 if live[0].shape == (6, 16) else "no")
    assert isinstance(plain, Finding)
    assert "output 2" in plain.detail
    assert asked == Passed(0.25, asked.seconds if isinstance(asked, Passed) else 0)
    refused = said(agree=router.agree)
    assert isinstance(refused, Finding)
    assert refused.reason == "correctness"


def test_agree_must_be_a_function() -> None:
    with pytest.raises(OpError, match="agree='yes' is not a function"):
        tb.op("demo::agree", agree="yes")(lambda x: x)  # type: ignore[arg-type]
