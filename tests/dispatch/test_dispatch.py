"""A call of an op: one look-up, the arguments as they are, and the default wherever a tactic may not serve."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.dispatch import FREE
from tunebook.ops import Description
from tunebook.records import Tactic

FAST = Tactic(runner="fast")


def rows(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(count * 3).reshape(count, 3).to(dtype)


def counts() -> dict[str, int]:
    return dict(FREE.counts)


def test_a_signature_is_resolved_once(declare: Any) -> None:
    demo = declare()
    demo.serve(4)
    assert [demo.who(rows(4)) for _ in range(5)] == ["fast"] * 5
    assert demo.described == 1
    assert [demo.who(rows(3)) for _ in range(5)] == ["fast"] * 5
    assert demo.described == 2


def test_what_is_not_tuned_is_resolved_once_too_and_every_call_is_counted(declare: Any) -> None:
    demo = declare()
    assert [demo.who(rows(4)) for _ in range(5)] == ["default"] * 5
    assert demo.described == 1
    assert counts() == {"default: not tuned": 5}


def test_a_size_within_the_bucket_is_counted_and_its_edge_is_not(declare: Any) -> None:
    demo = declare()
    demo.serve(4)
    demo.who(rows(4))
    assert counts() == {}
    demo.who(rows(3))
    demo.who(rows(3))
    assert counts() == {"bucket": 2}


def test_a_size_without_a_bucket_runs_the_default(declare: Any) -> None:
    demo = declare(buckets={"x": {0: tb.pow2(max=8)}})
    demo.serve(8, 16)
    assert [demo.who(rows(size)) for size in (8, 9, 9)] == ["fast", "default", "default"]
    assert counts() == {"default: no bucket for this size": 2}


def test_a_call_is_like_the_functions_own() -> None:
    @tb.op("scaled")
    def scaled(x: torch.Tensor, factor: int = 3, name: str = "n") -> tuple[torch.Tensor, int, str]:
        """Times factor."""
        return x * factor, factor, name

    @scaled.runner("fast", version="1")
    def fast(x: torch.Tensor, factor: int, name: str) -> tuple[torch.Tensor, int, str]:
        return x * factor, -factor, name

    x = torch.ones(4, 3)
    FREE.install({"scaled|x.1=3,factor=5,name=m|fp32|x.0≤4": FAST})
    assert scaled(x)[1:] == (3, "n")
    assert scaled(x, 4)[1:] == (4, "n")
    assert scaled(x, name="m", factor=5)[1:] == (-5, "m")
    assert scaled(factor=5, name="m", x=x)[1:] == (-5, "m")
    assert scaled(x, 5, "m")[1:] == (-5, "m")
    assert scaled.__name__ == "scaled"  # type: ignore[attr-defined]
    assert scaled.__doc__ == "Times factor."
    for wrong in ({}, {"y": 1}, {"x": x, "z": 1}):
        with pytest.raises(TypeError):
            scaled(**wrong)
    with pytest.raises(TypeError):
        scaled(x, 1, "a", "b")  # type: ignore[call-arg]


def test_one_argument_leads_and_the_others_cost_no_resolution() -> None:
    """A plain number beside the leading tensor must not send every call through the description."""
    described = []

    def describe(args: Sequence[Any]) -> Description:
        described.append(args)
        return Description((), ("fp32",), {"x.0": len(args[0])})

    @tb.op("led", lead="x", describe=describe)
    def led(x: torch.Tensor, index: torch.Tensor, top: int) -> torch.Tensor:
        return x[index] * top

    @led.runner("fast", version="1")
    def fast(x: torch.Tensor, index: torch.Tensor, top: int) -> torch.Tensor:
        return x[index] * top + 100

    FREE.install({"led||fp32|x.0≤4": FAST})
    index = torch.tensor([1])
    for _ in range(4):
        assert led(rows(4), index, 2)[0, 0] == 106
    assert len(described) == 1


def test_another_dtype_device_or_width_is_another_problem(declare: Any) -> None:
    demo = declare()
    demo.serve(4)
    assert demo.who(rows(4)) == "fast"
    assert demo.who(rows(4, torch.float64)) == "default"
    assert demo.who(rows(4)) == "fast"
    assert torch.equal(demo.op(torch.ones(4, 5)), torch.full((4, 5), 2.0))
    assert demo.ran["default"] == 2
    assert counts() == {"default: not tuned": 2}


def test_a_tensor_on_another_device_does_not_get_what_was_tuned_here(declare: Any) -> None:
    demo = declare()
    demo.serve(4)
    assert demo.who(rows(4)) == "fast"
    for _ in range(2):
        assert demo.op(rows(4).to("meta")).device.type == "meta"
    assert demo.ran == {"fast": 1, "default": 2}
    assert sum(counts().values()) == 2


@pytest.mark.parametrize("order", [("plain", "odd"), ("odd", "plain")])
def test_a_tactic_is_given_contiguous_arguments_whatever_the_call_has(order: tuple[str, str]) -> None:
    strides: list[tuple[int, ...]] = []

    @tb.op("strided")
    def strided(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @strided.runner("fast", version="1")
    def fast(x: torch.Tensor) -> torch.Tensor:
        strides.append(x.stride())
        return x * 2 + 100 if x.is_contiguous() else x * 0

    FREE.install({"strided|x.1=3|fp32|x.0≤4": FAST})
    inputs = {"plain": rows(4), "odd": rows(8)[::2], "turned": torch.arange(12.0).reshape(3, 4).t()}
    for name in (*order, "turned", *order):
        x = inputs[name]
        assert torch.equal(strided(x), x * 2 + 100) or torch.equal(strided(x), x * 2), name
    assert set(strides) == {(3, 1)}


def test_gradients_run_the_default_and_are_counted(declare: Any) -> None:
    demo = declare()
    demo.serve(4)
    x = rows(4).requires_grad_()
    assert demo.who(x) == "fast", "gradients are off here"
    with torch.enable_grad():
        for _ in range(2):
            y = demo.op(x)
            assert y.requires_grad
        assert demo.who(rows(4)) == "fast", "nothing here needs a gradient"
        (note,) = (what for what in counts() if "gradient" in what)
    assert counts()[note] == 2
    assert demo.ran["default"] == 2
    assert demo.who(x) == "fast"


def test_autocast_runs_the_default(declare: Any) -> None:
    demo = declare()
    demo.serve(4)
    assert demo.who(rows(4)) == "fast"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert demo.who(rows(4)) == "default"
    assert demo.who(rows(4)) == "fast"
    assert sum(counts().values()) == 1


class Unhashable:
    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    "odd", [[1, 2], {"a": 1}, Unhashable(), (1, [2]), object(), 1j], ids=lambda v: type(v).__name__
)
def test_an_argument_that_makes_no_key_runs_the_default_with_one_warning(
    odd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    @tb.op("odd")
    def op(x: torch.Tensor, extra: Any) -> Any:
        return extra

    with caplog.at_level(logging.WARNING, "tunebook"):
        for _ in range(3):
            assert op(rows(4), odd) is odd
    assert len([record for record in caplog.records if "extra" in record.getMessage()]) == 1
    assert sum(counts().values()) == 3
    assert all(what.startswith("default: ") for what in counts())


@pytest.mark.parametrize("odd", [[[1.0, 2.0, 3.0]], None, 3, "x"], ids=repr)
def test_a_leading_argument_that_is_no_tensor_runs_the_default(odd: Any) -> None:
    @tb.op("odd")
    def op(x: Any) -> Any:
        return x

    for _ in range(3):
        assert op(odd) is odd
    assert sum(counts().values()) == 3


def test_a_tactic_that_is_not_offered_leaves_the_default(declare: Any) -> None:
    demo = declare()
    demo.serve(4, tactic=Tactic(runner="gone", params=(("p", 1),)))
    assert [demo.who(rows(4)) for _ in range(2)] == ["default"] * 2
    assert sum(counts().values()) == 2
