"""The space-filling order: once each, the same for the same seed, and every beginning spread over the space."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.records import Scalar, Tactic
from tunebook.search import space_filling

VALUES = st.one_of(
    st.integers(-5, 5), st.sampled_from(["row", "column", "1"]), st.booleans(), st.sampled_from([0.5, 2.5])
)


def grid(**values: Sequence[Scalar]) -> list[Tactic]:
    return [
        Tactic(runner="r", params=tuple(zip(values, point, strict=True)))
        for point in itertools.product(*values.values())
    ]


def typed(tactic: Tactic) -> dict[str, tuple[str, Scalar]]:
    return {name: (type(value).__name__, value) for name, value in tactic.params}


def used(tactics: Iterable[Tactic]) -> dict[str, Counter[tuple[str, Scalar]]]:
    """How often each value of each parameter occurs; True and 1 are two values."""
    found: dict[str, Counter[tuple[str, Scalar]]] = {}
    for tactic in tactics:
        for name, value in typed(tactic).items():
            found.setdefault(name, Counter())[value] += 1
    return found


@st.composite
def grids(draw: st.DrawFn) -> list[Tactic]:
    columns = draw(st.lists(st.lists(VALUES, min_size=1, max_size=5, unique_by=lambda v: (type(v), v)), max_size=4))
    return grid(**{f"p{number}": column for number, column in enumerate(columns)})


@st.composite
def spaces(draw: st.DrawFn) -> list[Tactic]:
    """Any tactics: parts of grids, in which parameters may be missing too."""
    point = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)
    points: list[Mapping[str, Scalar]] = draw(st.lists(point, min_size=1, max_size=40))
    found = [Tactic(runner="r", params=tuple(sorted(point.items()))) for point in points]
    return list({tactic.name: tactic for tactic in found}.values())


@given(spaces(), st.integers(0, 99))
def test_every_tactic_comes_once_and_the_seed_settles_the_order(space: list[Tactic], seed: int) -> None:
    order = [tactic.name for tactic in space_filling(space, random.Random(seed))]
    assert sorted(order) == sorted(tactic.name for tactic in space)
    assert order == [tactic.name for tactic in space_filling(space, random.Random(seed))]


def test_nothing_to_order_is_no_error() -> None:
    assert list(space_filling([], random.Random(0))) == []


@given(grids(), st.integers(0, 99))
def test_on_a_grid_as_many_tactics_as_a_parameter_has_values_show_each_of_them(space: list[Tactic], seed: int) -> None:
    order = list(space_filling(space, random.Random(seed)))
    for name, counts in used(space).items():
        assert used(order[: len(counts)])[name] == dict.fromkeys(counts, 1), "a Latin hypercube"


def test_a_sample_has_every_value_about_equally_often() -> None:
    space = grid(a=range(10), b=(16, 32, 64, 128, 256), c=(True, False), d=("x", "y", "z"))
    for size in range(1, 101):
        for seed in range(3):
            for counts in used(itertools.islice(space_filling(space, random.Random(seed)), size)).values():
                assert max(counts.values()) - min(counts.values()) <= 1 + (size > 60)


@given(spaces(), st.integers(0, 99))
def test_each_brings_a_new_value_until_all_were_tried(space: list[Tactic], seed: int) -> None:
    """Also where parameters are missing here and there: to lack one is a value of it."""
    names = {name for tactic in space for name, _ in tactic.params}
    values = {tactic: {(name, typed(tactic).get(name)) for name in names} for tactic in space}
    missing = set().union(*values.values())
    for tactic in space_filling(space, random.Random(seed)):
        assert values[tactic] & missing or not missing
        missing -= values[tactic]
    assert not missing


def apart(tactics: Sequence[Tactic], top: int) -> float:
    """The mean distance to the nearest other one."""
    points = [[float(value) / top for _, value in tactic.params] for tactic in tactics]
    return statistics.fmean(min(math.dist(one, two) for two in points if two is not one) for one in points)


@pytest.mark.parametrize("size", [10, 20, 40])
def test_a_sample_lies_farther_apart_than_a_random_one(size: int) -> None:
    space = grid(a=range(10), b=range(10), c=range(10))
    for seed in range(5):
        mine = apart(list(itertools.islice(space_filling(space, random.Random(seed)), size)), 9)
        rng = random.Random(seed)
        assert mine > statistics.fmean(apart(rng.sample(space, size), 9) for _ in range(20))


def test_numbers_are_spread_by_rank_so_that_powers_of_two_are_as_even_as_any() -> None:
    powers, plain = grid(p=[2**i for i in range(16)]), grid(p=range(16))
    for seed in range(5):
        one = [tactic.kwargs["p"] for tactic in space_filling(powers, random.Random(seed))]
        two = [tactic.kwargs["p"] for tactic in space_filling(plain, random.Random(seed))]
        assert one == [2 ** int(value) for value in two]


def test_of_one_parameter_the_ends_come_before_the_gaps_are_filled() -> None:
    order = [int(t.kwargs["p"]) for t in space_filling(grid(p=range(17)), random.Random(3))]
    assert {0, 16} & set(order[:2])
    first = sorted(order[:9])
    assert max(b - a for a, b in itertools.pairwise([-2, *first, 18])) <= 5
