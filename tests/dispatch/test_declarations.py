"""Declaring ops and runners: what cannot be is refused by name, and a name belongs to whoever declared it first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.dispatch import OPS
from tunebook.errors import OpError
from tunebook.ops import load_file
from tunebook.records import Tactic

FAST = Tactic(runner="fast")


def rows(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(count * 3).reshape(count, 3).to(dtype)


def function(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return x


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("a b", {}, "a b"),
        ("a|b", {}, "a|b"),
        ("", {}, "''"),
        ("1a", {}, "1a"),
        ("ok", {"constants": ("w",)}, "last arguments"),
        ("ok", {"constants": ("b", "w")}, "last arguments"),
        ("ok", {"constants": ("x", "w", "b")}, "nothing to tune"),
        ("ok", {"constants": ("no",)}, "'no'"),
        ("ok", {"lead": "no"}, "'no'"),
        ("ok", {"lead": "w", "constants": ("w", "b")}, "'w'"),
        ("ok", {"buckets": {"y": {0: tb.pow2()}}}, "'y'"),
        ("ok", {"buckets": {"x": {0: tb.pow2(name="M")}, "w": {0: tb.multiple(4, name="M")}}}, "two rules"),
    ],
)
def test_a_declaration_that_cannot_be_is_an_error_that_names_it(name: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(OpError) as caught:
        tb.op(name, **options)(function)
    assert named in str(caught.value)
    assert name not in OPS


@pytest.mark.parametrize(
    "unfit",
    [lambda *x: x, lambda **x: x, lambda x, *, y: x, lambda: 0],
    ids=["*args", "**kwargs", "keyword only", "none"],
)
def test_a_function_without_plain_arguments_is_no_op(unfit: Callable[..., Any]) -> None:
    with pytest.raises(OpError):
        tb.op("unfit")(unfit)


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("default", {}, "default"),
        ("a b", {}, "a b"),
        ("", {}, "''"),
        ("ok", {"space": {"p": ()}}, "empty"),
        ("ok", {"space": []}, "empty"),
        ("ok", {"space": {"p": "abc"}}, "'abc'"),
        ("ok", {"space": {"p": 3}}, "3"),
        ("ok", {"space": {"1p": (1,)}}, "1p"),
        ("ok", {"space": {"p": (1, 1)}}, "twice"),
        ("ok", {"space": [{"p": 1}, {"p": 1}]}, "twice"),
        ("ok", {"space": {"p": (float("nan"),)}}, "number"),
        ("ok", {"space": {"p": ([1, 2],)}}, "p"),
        ("ok", {"space": {"p": (None, 1)}}, "p"),
        ("ok", {"space": {"p": (torch.float32,)}}, "p"),
        ("ok", {"layout": "name"}, "function"),
        ("ok", {"workspace": 5}, "function"),
        ("ok", {"layout": str, "workspace": 5}, "function"),
        ("ok", {"prepare": "pack"}, "function"),
        ("ok", {"supports": True}, "function"),
        ("ok", {"available": "yes"}, "available"),
    ],
)
def test_a_runner_that_cannot_be_is_an_error_that_names_it(
    declare: Any, name: str, options: dict[str, Any], named: str
) -> None:
    demo = declare()
    with pytest.raises(OpError) as caught:
        demo.op.runner(name, **{"version": "1", **options})(lambda x: x)
    assert named in str(caught.value)
    assert set(demo.op.runners) == {"fast"}


def test_a_runner_that_is_not_there_cannot_be_removed(declare: Any) -> None:
    demo = declare()
    with pytest.raises(OpError, match="has no runner 'none'; it has fast"):
        demo.op.remove_runner("none")
    demo.op.remove_runner("fast")
    assert not demo.op.runners


def test_a_binding_needs_the_constants_of_its_op(declare_weighted: Any) -> None:
    weighted, _ = declare_weighted()
    with pytest.raises(OpError, match="w"):
        weighted.bind()


SOURCE = """
import tunebook as tb

@tb.op("from_file")
def from_file(x):
    return x * {factor}

@from_file.runner("mine", version="1")
def mine(x):
    return x
"""
RUNNER = """
from tunebook.dispatch import OPS

@OPS["from_file"].runner("mine", version="2")
def mine(x):
    return x
"""


def test_an_op_and_a_runner_belong_to_the_file_that_declared_them_first(tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}.py" for name in ("first", "second", "third"))
    first.write_text(SOURCE.format(factor=2))
    second.write_text(SOURCE.format(factor=3))
    third.write_text(RUNNER)
    load_file(first)
    for path, what in ((second, "op 'from_file'"), (third, "runner 'mine'")):
        with pytest.raises(Exception, match="already") as caught:
            load_file(path)
        assert what in str(caught.value)
        assert "first" in str(caught.value), "it names where the other one is"
    assert OPS["from_file"](torch.ones(1, 1)) == 2
    assert OPS["from_file"].runners["mine"].version == "v:1"


def test_declaring_again_in_the_same_file_replaces(declare: Any) -> None:
    first, second = declare(), declare()
    assert OPS["demo"] is second.op
    assert first.op is not second.op


class Kernel:
    """A runner's function that is an object, as compiled kernels are."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def test_a_runner_may_be_any_callable_and_be_declared_again(declare: Any) -> None:
    demo = declare()
    demo.op.runner("kernel", version="1")(Kernel())
    demo.op.runner("kernel", version="2")(Kernel())
    demo.serve(4, tactic=Tactic(runner="kernel"))
    assert torch.equal(demo.op(rows(4)), rows(4) * 2)
    assert not demo.ran
