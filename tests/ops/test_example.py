"""An op's example: what it makes is held against the problem that it was to make, and what fails is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.errors import OpError
from tunebook.ops import example_inputs, example_options
from tunebook.records import Problem

pytestmark = pytest.mark.usefixtures("clean_ops")
PROBLEM = Problem.parse("demo::sum|x.1=3,s=2.0|fp32|M≤8")


def make(example: Any) -> Any:
    @tb.op("demo::sum", buckets={"x": {0: tb.pow2(max=64, name="M")}}, example=example)
    def total(x: torch.Tensor, s: float) -> torch.Tensor:
        return x * s

    return total


def right(problem: Problem, sizes: dict[str, int], seed: int, *, offset: float = 0.0) -> tuple[Any, ...]:
    x = torch.rand(sizes["M"], 3, generator=torch.Generator().manual_seed(seed))
    return x + offset, 2.0


def test_an_example_gives_the_arguments_of_exactly_the_sizes() -> None:
    op = make(right)
    x, s = example_inputs(op, PROBLEM, {"M": 5}, 7)
    assert (x.shape, s) == ((5, 3), 2.0)
    assert torch.equal(example_inputs(op, PROBLEM, {"M": 5}, 7, offset=1.0)[0], x + 1)
    assert example_options(op) == {"offset": 0.0}


def test_an_op_without_one_says_what_to_give() -> None:
    op = make(None)
    assert example_options(op) == {}
    with pytest.raises(OpError) as caught:
        example_inputs(op, PROBLEM, {"M": 8}, 0)
    for word in ("demo::sum", "example=function", "function(problem, sizes, seed)"):
        assert word in str(caught.value)


def test_what_is_no_function_is_no_example() -> None:
    with pytest.raises(OpError, match="example='random' is not a function"):
        make("random")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda problem, sizes, seed: (torch.zeros(8, 3),), "gives 1 arguments, and the op takes (x, s)"),
        (lambda problem, sizes, seed: (torch.zeros(8, 4), 2.0), "another problem (x.1: 3 ≠ 4)"),
        (lambda problem, sizes, seed: (torch.zeros(8, 3).half(), 2.0), "another problem (dtypes: fp32 ≠ fp16)"),
        (lambda problem, sizes, seed: (torch.zeros(9, 3), 2.0), "another problem (M: M≤8 ≠ M≤16)"),
        (lambda problem, sizes, seed: (torch.zeros(65, 3), 2.0), "a size has no bucket"),
        (lambda problem, sizes, seed: (torch.zeros(7, 3), 2.0), "has the sizes M=7, not M=8"),
        (lambda problem, sizes, seed: (object(), 2.0), "argument x is a object"),
        (lambda problem, sizes, seed: torch.zeros(-1), "RuntimeError"),
        (lambda problem, sizes, seed: 3, "TypeError"),
    ],
)
def test_an_example_that_is_wrong_is_refused_by_what_is_wrong(wrong: Any, words: str) -> None:
    with pytest.raises(OpError) as caught:
        example_inputs(make(wrong), PROBLEM, {"M": 8}, 0)
    assert words in str(caught.value)
    assert "demo::sum" in str(caught.value)
    assert "\n" not in str(caught.value)
