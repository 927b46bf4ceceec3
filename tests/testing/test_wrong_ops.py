"""Ops that break a promise are told by name, with the remedy, in one line; and one that keeps them all passes."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.errors import UsageError
from tunebook.records import Problem
from tunebook.testing import ContractError, check_op

pytestmark = pytest.mark.usefixtures("clean_ops")
KEY = "contract::scale|x.1=16|fp32|M≤8"
ROWS = {"x": {0: tb.pow2(name="M")}}


def example(problem: Problem, sizes: Mapping[str, int], seed: int) -> tuple[Any, ...]:
    return (torch.randn(sizes["M"], 16, generator=torch.Generator().manual_seed(seed)),)


def scale(x):
    return 2 * x


def declared(function: Any = scale, **options: Any) -> Any:
    return tb.op("contract::scale", **{"buckets": ROWS, "example": example, **options})(function)


def said(op: Any, problems: Sequence[Any] = (KEY,)) -> str:
    with pytest.raises(ContractError) as error:
        check_op(op, problems)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("op contract::scale")
    assert ";" in text, "no remedy"
    return text


@pytest.mark.parametrize("given", [KEY, Problem.parse(KEY), (torch.randn(5, 16),)], ids=["key", "problem", "call"])
def test_an_op_that_keeps_its_promises_passes(given: Any) -> None:
    check_op(declared(), [given])


def test_without_an_example_a_call_does() -> None:
    op = declared(example=None)
    assert "nothing makes inputs" in said(op)
    check_op(op, [(torch.randn(8, 16),)])


def test_something_has_to_be_checked() -> None:
    assert "no problem was given" in said(declared(), [])


@pytest.mark.parametrize(
    ("function", "rounding", "words"),
    [
        (lambda size: size if size < 100 else 64, "down", "rounds 100 to 64, and a smaller size to 99"),
        (lambda size: size + 1, "up", "rounds 1 to 2, and that to 3"),
        (lambda size: 64, "up", "rounds 65 up to 64"),
        (lambda size: size if size != 7 else 1 // 0, "up", "fails for 7: ZeroDivisionError"),
    ],
)
def test_buckets_out_of_order(function: Any, rounding: str, words: str) -> None:
    rule = tb.buckets(function, "mine", rounding=rounding, name="M")
    text = said(declared(buckets={"x": {0: rule}}))
    assert words in text
    assert text.startswith("op contract::scale, dimension M")


def test_a_default_that_changes_its_arguments() -> None:
    assert "the default changes its arguments" in said(declared(lambda x: x.mul_(2)))


def test_a_default_that_raises_at_an_edge() -> None:
    def fussy(x):
        if len(x) == 5:
            raise ValueError("five rows")
        return 2 * x

    assert "M=5: the default raises ValueError: five rows" in said(declared(fussy))


def test_a_default_that_is_no_function_of_its_arguments() -> None:
    assert "does not agree with itself" in said(declared(lambda x: x * torch.rand(())))


def test_an_example_of_another_problem() -> None:
    def wide(problem: Problem, sizes: Mapping[str, int], seed: int) -> tuple[Any, ...]:
        return (torch.randn(sizes["M"], 17),)

    assert "is a call of another problem (x.1: 16 ≠ 17)" in said(declared(example=wide))


def test_an_example_that_does_not_heed_its_seed() -> None:
    assert "inputs differ for the same seed" in said(
        declared(example=lambda p, sizes, seed: (torch.randn(sizes["M"], 16),))
    )
    assert "the same for every seed" in said(declared(example=lambda p, sizes, seed: (torch.ones(sizes["M"], 16),)))


def test_resample_of_other_sizes_than_asked_for() -> None:
    def stubborn(dynamic: Sequence[Any], sizes: Mapping[str, int], rng: random.Random) -> tuple[Any, ...]:
        return tuple(dynamic)

    assert "resampled to M=5 it has M=8" in said(declared(resample=stubborn))


def test_resample_that_fails() -> None:
    def failing(dynamic: Sequence[Any], sizes: Mapping[str, int], rng: random.Random) -> tuple[Any, ...]:
        raise RuntimeError("no rows")

    assert "it raises RuntimeError: no rows" in said(declared(resample=failing))
    assert "its resample to {'M': 5} raises RuntimeError: no rows" in said(
        declared(resample=failing, example=None), [(torch.randn(8, 16),)]
    )


def test_extremes_of_another_problem() -> None:
    def larger(args: Sequence[Any], rng: random.Random) -> list[tuple[str, tuple[Any, ...]]]:
        return [("twice as many", (torch.cat([args[0]] * 4),))]

    assert "extremes" in said(declared(extremes=larger))


def test_a_comparison_that_takes_anything() -> None:
    assert "takes an output of NaN for right" in said(declared(agree=lambda got, expected, args: 0.0))
    assert "does not agree with itself: never" in said(declared(agree=lambda got, expected, args: "never"))

    def raising(got: Any, expected: Any, args: Any) -> float:
        raise KeyError("x")

    assert "its agree raises KeyError" in said(declared(agree=raising))


def test_a_call_without_a_bucket() -> None:
    op = declared(buckets={"x": {0: tb.pow2(max=4, name="M")}})
    assert "has no bucket" in said(op, [(torch.randn(8, 16),)])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("nonsense", "has 1 parts"),
        ("linear|N=1|fp32|M≤8", "is a problem of the op linear"),
        ((torch.ones(1), torch.ones(1)), r"a call has the arguments \(x\)"),
        ("contract::scale|x.1=16|fp32|R≤8", "has a dimension R, the op has none"),
    ],
)
def test_what_is_no_problem_of_the_op_is_the_callers_mistake(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_op(declared(), [given])
