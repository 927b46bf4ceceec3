"""The choice of weight layouts, against every assignment that there is."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebook.plan import Choices, Usable, choose_layouts
from tunebook.records import Member, Offered, Verdict

#: Fewer bytes are preferred to a gain below this share of the whole time: "negligible" in the documents.
NEGLIGIBLE = 0.01


def usable(
    family: str,
    size: int,
    weight: float,
    speedup: float,
    members: dict[str, tuple[float, str, int]],
    default: bool = True,
) -> Usable:
    """A problem of `family`; `members` are tactics with (ratio, layout, bytes), the first one the winner."""
    listed = [
        Member(tactic=name, ratio=ratio, low=ratio, high=ratio, layout=layout, bytes=size_)
        for name, (ratio, layout, size_) in members.items()
    ]
    if default and "default" not in members:
        listed.append(Member(tactic="default", ratio=speedup, low=speedup, high=speedup))
    key = f"{family}||bf16|M≤{size}"
    verdict = Verdict(
        problem=key,
        winner=listed[0].tactic,
        status="proven",
        speedup=speedup,
        low=speedup,
        high=speedup,
        seconds=1e-3,
        frontier=tuple(listed),
        offered={name: Offered(version="1", space="") for name in ["default", *(m.tactic for m in listed)]},
    )
    return Usable(key, weight, verdict, tuple(listed))


@dataclass(frozen=True)
class Instance:
    items: list[Usable]
    layers: dict[str, int]
    limit: int


@st.composite
def instances(draw: st.DrawFn) -> Instance:
    items: list[Usable] = []
    layers: dict[str, int] = {}
    for f in range(draw(st.integers(1, 3))):
        name = f"op{f}"
        layers[f"{name}||bf16"] = draw(st.integers(1, 4))
        sizes = {layout: draw(st.integers(0, 50)) for layout in ("x", "y", "z")[: draw(st.integers(0, 3))]}
        for p in range(draw(st.integers(1, 2))):
            offered = {f"t{layout}": layout for layout in sizes} | ({"plain": ""} if draw(st.booleans()) else {})
            names = draw(st.permutations(sorted(offered)))
            members: dict[str, tuple[float, str, int]] = {}
            for position, tactic in enumerate(names):
                layout = offered[tactic]
                known = draw(st.booleans()) or p == 0  # one problem knows the bytes, another may not
                ratio = 1.0 if position == 0 else draw(st.floats(1, 4))
                members[tactic] = (ratio, layout, sizes[layout] if layout and known else 0)
            speedup = draw(st.floats(1, 4)) if members else 1.0
            default = not members or draw(st.booleans())
            items.append(usable(name, 1 << p, draw(st.floats(0.01, 10)), speedup, members, default))
    return Instance(items, layers, draw(st.integers(0, 400)))


def family_of(item: Usable) -> str:
    return item.problem.rpartition("|")[0]


def layout_bytes(instance: Instance) -> dict[tuple[str, str], int]:
    """What each layout of a family takes over all its layers: the most that any problem knows."""
    found: dict[tuple[str, str], int] = {}
    for item in instance.items:
        for member in item.members:
            if member.layout:
                key = (family_of(item), member.layout)
                found[key] = max(found.get(key, 0), member.bytes * instance.layers[family_of(item)])
    return found


def assignments(instance: Instance) -> list[tuple[int, float]]:
    """Bytes and seconds of every choice of one member, or the default, for each problem."""
    sizes = layout_bytes(instance)
    found = []
    per_item = [[None, *item.members] for item in instance.items]
    for picked in itertools.product(*per_item):
        seconds, needed = 0.0, set()
        for item, member in zip(instance.items, picked, strict=True):
            seconds += item.weight if member is None else item.weight / item.verdict.speedup * member.ratio
            if member is not None and member.layout:
                needed.add((family_of(item), member.layout))
        found.append((sum(sizes[key] for key in needed), seconds))
    return found


def costs(instance: Instance, choices: Choices) -> tuple[int, float]:
    """What a choice takes and how long it lasts, from its tactics and layouts alone."""
    sizes = layout_bytes(instance)
    seconds = 0.0
    for item in instance.items:
        tactic = choices.tactics[item.problem].name
        member = next((m for m in item.members if m.tactic == tactic), None)
        if member is None:
            assert tactic == "default"
        elif member.layout:
            assert member.layout in choices.layouts[family_of(item)], "a tactic without its weights"
        seconds += item.weight if member is None else item.weight / item.verdict.speedup * member.ratio
    return sum(sizes[family, name] for family, names in choices.layouts.items() for name in names), seconds


@settings(max_examples=150)
@given(instances())
def test_no_assignment_is_better(instance: Instance) -> None:
    choices = choose_layouts(instance.items, instance.layers, instance.limit)
    used, seconds = costs(instance, choices)
    assert used == choices.bytes <= instance.limit
    assert seconds == pytest.approx(choices.seconds)
    allowed = [(b, s) for b, s in assignments(instance) if b <= instance.limit]
    fastest = min(s for _, s in allowed)
    margin = NEGLIGIBLE * sum(item.weight for item in instance.items)
    assert seconds <= fastest + margin + 1e-9
    assert used <= min(b for b, s in allowed if s <= fastest + margin - 1e-9), "bytes for nothing"


def test_without_memory_what_needs_none_serves() -> None:
    item = usable("op", 1, 1.0, 2.0, {"packed": (1.0, "x", 10), "plain": (1.5, "", 0)})
    assert choose_layouts([item], {"op||bf16": 2}, 19).tactics[item.problem].name == "plain"
    full = choose_layouts([item], {"op||bf16": 2}, 20)
    assert full.tactics[item.problem].name == "packed"
    assert (full.bytes, full.layouts) == (20, {"op||bf16": ("x",)})
    assert full.seconds == pytest.approx(0.5)


def test_without_memory_and_without_another_tactic_the_default_serves() -> None:
    item = usable("op", 1, 1.0, 2.0, {"packed": (1.0, "x", 10)}, default=False)
    none = choose_layouts([item], {"op||bf16": 1}, 0)
    assert none.tactics[item.problem].name == "default"
    assert (none.bytes, none.layouts, none.seconds) == (0, {}, 1.0)


def test_a_gain_that_is_negligible_is_not_worth_bytes() -> None:
    def chosen(ratio: float) -> str:
        item = usable("op", 1, 1.0, 2.0, {"packed": (1.0, "x", 10), "plain": (ratio, "", 0)})
        return choose_layouts([item], {"op||bf16": 1}, 100).tactics[item.problem].name

    assert chosen(1.003) == "plain"
    assert chosen(1.05) == "packed"


def test_one_layout_that_serves_two_problems_is_paid_once() -> None:
    one = usable("op", 1, 1.0, 2.0, {"a": (1.0, "x", 10)})
    two = usable("op", 2, 1.0, 2.0, {"a": (1.0, "x", 10), "b": (1.001, "y", 10)})
    choices = choose_layouts([one, two], {"op||bf16": 3}, 1000)
    assert choices.bytes == 30
    assert choices.layouts == {"op||bf16": ("x",)}


def test_memory_goes_to_the_family_where_it_buys_most() -> None:
    heavy = usable("op", 1, 10.0, 2.0, {"a": (1.0, "x", 10)})
    light = usable("other", 1, 1.0, 4.0, {"a": (1.0, "x", 10)})
    layers = {"op||bf16": 1, "other||bf16": 1}
    choices = choose_layouts([light, heavy], layers, 10)
    assert choices.layouts == {"op||bf16": ("x",)}
    assert choices.tactics[light.problem].name == "default"
    assert choose_layouts([light, heavy], layers, 20).bytes == 20


def test_bytes_that_one_problem_does_not_know_are_taken_from_another() -> None:
    """A member of an older verdict may say nothing of its bytes; its layout takes them all the same."""
    knows = usable("op", 1, 0.001, 1.01, {"a": (1.0, "x", 50)})
    silent = usable("op", 2, 10.0, 2.0, {"a": (1.0, "x", 0)})
    assert choose_layouts([silent, knows], {"op||bf16": 1}, 49).layouts == {}
    assert choose_layouts([silent, knows], {"op||bf16": 1}, 50).bytes == 50


def test_the_verdicts_winner_is_kept_against_a_tie_that_measured_a_little_faster() -> None:
    item = usable("op", 1, 1.0, 2.0, {"kept": (1.0, "", 0), "tie": (0.995, "", 0)})
    assert choose_layouts([item], {"op||bf16": 1}, 0).tactics[item.problem].name == "kept"


def test_nothing_to_choose_is_an_empty_choice() -> None:
    assert choose_layouts([], {}, 10) == Choices({}, {}, 0, 0.0)


def test_of_many_layouts_the_ones_that_matter_are_found() -> None:
    members = {f"t{i}": (1.0 + i / 10, f"l{i}", 10 - i % 3) for i in range(12)}
    item = usable("op", 1, 1.0, 3.0, members)
    choices = choose_layouts([item], {"op||bf16": 1}, 100)
    assert choices.tactics[item.problem].name == "t0"
    assert choices.layouts == {"op||bf16": ("l0",)}
