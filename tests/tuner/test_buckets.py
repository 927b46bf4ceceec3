"""Buckets: which sizes share a verdict, against a walk over all sizes."""

from __future__ import annotations

import bisect
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.errors import OpError
from tunebook.ops import Bucket, buckets, exact, multiple, pow2
from tunebook.records import Problem


def steps(edges: list[int]) -> Callable[[int], int]:
    """Round up to the next of `edges`, and beyond the last one not at all."""
    return lambda size: edges[bisect.bisect_left(edges, size)] if size <= edges[-1] else size


def steps_down(edges: list[int]) -> Callable[[int], int]:
    return lambda size: edges[bisect.bisect_right(edges, size) - 1]


@st.composite
def rules(draw: st.DrawFn) -> Bucket:
    most = draw(st.one_of(st.none(), st.integers(1, 80)))
    edges = sorted(draw(st.sets(st.integers(1, 60), min_size=1, max_size=6)))
    kind = draw(st.sampled_from(["pow2", "multiple", "exact", "up", "down"]))
    if kind == "pow2":
        return pow2(max=most)
    if kind == "multiple":
        return multiple(draw(st.integers(1, 20)), max=most)
    if kind == "exact":
        return exact(max=most)
    if kind == "up":
        return buckets(steps(edges), f"up{edges}", max=most)
    return buckets(steps_down([1, *edges]), f"down{edges}", rounding="down", max=most)


SIZES = st.integers(1, 100)


@given(rules(), SIZES)
def test_a_size_falls_into_the_bucket_on_its_own_side(rule: Bucket, size: int) -> None:
    bucket = rule.of(size)
    if rule.max is not None and size > rule.max:
        assert bucket is None
        return
    assert bucket is not None
    if rule.rounding == "up":
        assert bucket >= size
    elif rule.rounding == "down":
        assert 1 <= bucket <= size
    else:
        assert bucket == size
    assert rule.max is None or bucket <= rule.max
    assert rule.of(bucket) == bucket, "a bucket stands for itself"


@given(rules(), SIZES)
def test_the_buckets_up_to_a_size_are_those_of_all_sizes_up_to_it(rule: Bucket, largest: int) -> None:
    met = {bucket for size in range(1, largest + 1) if (bucket := rule.of(size)) is not None}
    assert rule.up_to(largest) == tuple(sorted(met))


@given(rules(), SIZES)
def test_edges_are_the_least_and_the_greatest_size_of_a_bucket(rule: Bucket, largest: int) -> None:
    for bucket in rule.up_to(largest):
        inside = [size for size in range(1, max(bucket, largest) + 1) if rule.of(size) == bucket]
        assert rule.edges(bucket, largest) == (min(inside), max(inside))


@given(rules(), SIZES)
def test_a_bucket_in_a_key_reads_back(rule: Bucket, size: int) -> None:
    dim = rule.dim("M", size)
    if dim is None:
        assert rule.of(size) is None
        return
    assert (dim.size, dim.rounding) == (rule.of(size), rule.rounding)
    problem = Problem(op="o", dims=(dim,))
    assert Problem.parse(problem.key) == problem


def test_the_rules_that_come_with_it() -> None:
    assert pow2().up_to(9) == (1, 2, 4, 8, 16)
    assert pow2(max=12).up_to(100) == (1, 2, 4, 8, 12)
    assert multiple(32).up_to(65) == (32, 64, 96)
    assert multiple(32).edges(64, 65) == (33, 64)
    assert exact().up_to(4) == (1, 2, 3, 4)
    assert pow2().edges(16, 9) == (9, 16)
    assert pow2(max=12).edges(12, 12) == (9, 12)


@pytest.mark.parametrize("size", [0, -1, -100])
@pytest.mark.parametrize("rule", [pow2(), multiple(4), exact()], ids=lambda rule: rule.rule)
def test_there_is_no_bucket_below_one(rule: Bucket, size: int) -> None:
    assert rule.of(size) is None
    assert rule.dim("M", size) is None
    assert rule.up_to(size) == ()


def test_a_very_long_dimension_is_walked_by_its_buckets() -> None:
    assert len(pow2().up_to(1 << 40)) == 41
    assert len(multiple(1 << 20).up_to(1 << 24)) == 16


def test_a_rule_that_rounds_to_the_wrong_side_is_an_error_that_names_it() -> None:
    for rounding, wrong in (
        ("up", lambda size: size - 1),
        ("down", lambda size: size + 1),
        ("exact", lambda size: size + 1),
    ):
        with pytest.raises(OpError, match="'mine'"):
            buckets(wrong, "mine", rounding=rounding).of(5)
    with pytest.raises(OpError, match="'zero'"):
        buckets(lambda _: 0, "zero", rounding="down").of(5)


def test_a_rule_that_cannot_be_is_an_error() -> None:
    with pytest.raises(OpError, match="at least 1"):
        multiple(0)
    with pytest.raises(OpError, match="'nearest'"):
        buckets(lambda size: size, "mine", rounding="nearest")


def test_two_functions_under_one_name_are_walked_each_by_itself() -> None:
    """A notebook declares its rule again: the edges are those of the new function."""
    one = buckets(steps([4, 8]), "again")
    assert one.edges(8, 8) == (5, 8)
    other = buckets(steps([6, 8]), "again")
    assert other.edges(8, 8) == (7, 8)
