"""The fast look-up serves exactly what a look at everything would: whatever came before, whatever comes in between."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tunebook as tb
from tunebook.dispatch import FREE
from tunebook.records import Tactic

FAST = Tactic(runner="fast")

#: Arguments of one shape, [4, 3], by what is special about them, and whether the tactic tuned for fp32 may serve them.
KINDS: dict[str, tuple[Any, bool]] = {
    "plain": (lambda: torch.ones(4, 3), True),
    "another plain": (lambda: torch.zeros(4, 3), True),
    "double": (lambda: torch.ones(4, 3, dtype=torch.float64), False),
    "transposed": (lambda: torch.ones(3, 4).t(), True),
    "parameter": (lambda: torch.nn.Parameter(torch.ones(4, 3), requires_grad=False), True),
    "meta": (lambda: torch.ones(4, 3, device="meta"), False),
    "wants a gradient": (lambda: torch.ones(4, 3, requires_grad=True), False),
    "narrow": (lambda: torch.ones(2, 3), False),
}


@pytest.fixture(autouse=True)
def own_ops(clean_ops: None) -> None:
    """Each example declares ops anew."""


def one_argument() -> tuple[Any, list[Any]]:
    given_to_tactic: list[Any] = []

    @tb.op("one")
    def one(x: torch.Tensor) -> str:
        return "default"

    @one.runner("fast", version="1")
    def fast(x: torch.Tensor) -> str:
        given_to_tactic.append(x)
        return "fast"

    FREE.install({"one|x.1=3|fp32|x.0≤4": FAST})
    return one, given_to_tactic


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.sampled_from(["", "autocast", "no grad"])), max_size=12))
def test_any_sequence_of_calls_is_served_as_each_call_alone(sequence: list[tuple[str, str]]) -> None:
    one, given_to_tactic = one_argument()
    for kind, mode in sequence:
        make, fits = KINDS[kind]
        expected = (
            "fast" if (fits or (kind == "wants a gradient" and mode == "no grad")) and mode != "autocast" else "default"
        )
        with (
            torch.autocast("cpu", enabled=mode == "autocast", dtype=torch.bfloat16),
            torch.set_grad_enabled(mode != "no grad"),
        ):
            assert one(make()) == expected, (kind, mode)
    assert all(x.is_contiguous() and x.dtype is torch.float32 and x.device.type == "cpu" for x in given_to_tactic)


VALUES = [1, 1.0, True, "1", None, 2, 0, False, 0.5]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(range(len(VALUES))), st.booleans()), min_size=1, max_size=15))
def test_plain_values_that_are_equal_but_of_another_type_are_told_apart(calls: list[tuple[int, bool]]) -> None:
    @tb.op("two")
    def two(x: torch.Tensor, s: Any = 7) -> tuple[str, Any]:
        return "default", s

    @two.runner("fast", version="1")
    def fast(x: torch.Tensor, s: Any) -> tuple[str, Any]:
        return "fast", s

    FREE.install({"two|x.1=3,s=1|fp32|x.0≤4": FAST})  # what the number 1 and the text "1" are called
    for number, keyword in calls:
        value = VALUES[number]
        who, seen = two(torch.ones(4, 3), s=value) if keyword else two(torch.ones(4, 3), value)
        assert (who, type(seen), seen) == ("fast" if str(value) == "1" else "default", type(value), value)
    assert two(torch.ones(4, 3)) == ("default", 7)


def test_every_tensor_of_several_is_looked_at() -> None:
    @tb.op("sum")
    def add(x: torch.Tensor, y: torch.Tensor) -> str:
        return "default"

    @add.runner("fast", version="1")
    def fast(x: torch.Tensor, y: torch.Tensor) -> str:
        assert x.is_contiguous()
        assert y.is_contiguous()
        return "fast"

    FREE.install({"sum|x.1=3,y.0=4,y.1=3|fp32|x.0≤4": FAST})
    good = torch.ones(4, 3)
    for _ in range(2):
        assert add(good, good) == "fast"
        assert add(good, torch.ones(3, 4).t()) == "fast"
        assert add(good, good.double()) == "default"
        assert add(good, torch.ones(5, 3)) == "default"
        assert add(good.double(), good) == "default"
        with torch.enable_grad():
            assert add(good, torch.ones(4, 3, requires_grad=True)) == "default"


def test_names_of_arguments_may_be_what_generated_code_could_use() -> None:
    @tb.op("names")
    def names(_found: torch.Tensor, _slow: int, __call: int = 3, /) -> tuple[Any, ...]:
        return ("default", _slow, __call)

    assert names(torch.ones(2, 2), 1) == ("default", 1, 3)
    assert names(torch.ones(2, 2), 1, 2) == ("default", 1, 2)
    with pytest.raises(TypeError, match=r"__call|positional"):
        names(torch.ones(2, 2), 1, __call=2)  # type: ignore[call-arg]


def weighted_op() -> tuple[Any, list[Any]]:
    prepared: list[Any] = []

    @tb.op("weighted", constants=("w", "b"))
    def weighted(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        return x @ w + (0 if b is None else b)

    def pack(w: torch.Tensor, b: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        prepared.append(w)
        return w.clone(), torch.zeros(3) if b is None else b.clone()

    @weighted.runner("fast", version="1", prepare=pack)
    def fast(x: torch.Tensor, packed: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return x @ packed[0] + packed[1]

    return weighted, prepared


@torch.no_grad()
def test_constants_that_change_in_any_way_are_never_served_stale() -> None:
    weighted, prepared = weighted_op()
    x, w, b = torch.ones(4, 3), torch.eye(3), torch.zeros(3)
    FREE.install({"weighted|x.1=3,w.0=3,w.1=3,b.0=3|fp32|x.0≤4": FAST})
    FREE.install({"weighted|x.1=3,w.0=3,w.1=3,b=None|fp32|x.0≤4": FAST})

    def check() -> None:
        for _ in range(2):
            assert torch.equal(weighted(x, w, b), x @ w + b)
            assert torch.equal(weighted(x, w, None), x @ w)
            assert torch.equal(weighted(x, w=w), x @ w)

    check()
    assert len(prepared) == 2
    w.mul_(3)
    check()
    b.add_(5)
    check()
    w.data = torch.full((3, 3), 2.0)
    check()
    w = copy.copy(w)
    check()
    w = copy.deepcopy(w)
    check()
    b = b + 1
    check()


def test_an_op_stays_one_after_its_first_call() -> None:
    one, _ = one_argument()
    one(torch.ones(4, 3))
    assert isinstance(one, tb.Op)
    assert one.__name__ == "one"  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        one()
