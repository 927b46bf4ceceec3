"""The choice of weight layouts, against every assignment that there is."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebook.plan import Choices, Usable, Weights
from tunebook.plan import choose_layouts as choose
from tunebook.records import Member, Offered, Verdict

#: Fewer bytes are preferred to a gain below this share of the whole time: "negligible" in the documents.
NEGLIGIBLE = 0.01

ONE, TWO, THREE = ({"op||bf16": Weights(layers=count)} for count in (1, 2, 3))


def choose_layouts(items: list[Usable], weights: dict[str, Weights], limit: int, **options: Any) -> Choices:
    """Something always fits where the default may serve."""
    found = choose(items, weights, limit, **options)
    assert found is not None
    return found


def usable(
    family: str,
    size: int,
    weight: float,
    speedup: float,
    members: dict[str, tuple[float, str, int]],
    default: bool = True,
    **more: Any,
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
    return Usable(key, weight, verdict, tuple(listed), **more)


@dataclass(frozen=True)
class Instance:
    items: list[Usable]
    weights: dict[str, Weights]
    limit: int


@st.composite
def instances(draw: st.DrawFn) -> Instance:
    items: list[Usable] = []
    weights: dict[str, Weights] = {}
    for f in range(draw(st.integers(1, 3))):
        name = f"op{f}"
        sizes = {layout: draw(st.integers(0, 50)) for layout in ("x", "y", "z")[: draw(st.integers(0, 3))]}
        weights[f"{name}||bf16"] = Weights(
            layers=draw(st.integers(1, 4)),
            releasable=draw(st.sampled_from((0, 20, 100))),
            restores=frozenset(layout for layout in sizes if draw(st.booleans())),
        )
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
    return Instance(items, weights, draw(st.integers(0, 400)))


def family_of(item: Usable) -> str:
    return item.problem.rpartition("|")[0]


def layout_bytes(instance: Instance) -> dict[tuple[str, str], int]:
    """What each layout of a family takes over all its layers: the most that any problem knows."""
    found: dict[tuple[str, str], int] = {}
    for item in instance.items:
        for member in item.members:
            if member.layout:
                key = (family_of(item), member.layout)
                found[key] = max(found.get(key, 0), member.bytes * instance.weights[family_of(item)].layers)
    return found


def assignments(instance: Instance) -> list[tuple[int, float]]:
    """Bytes and seconds of every choice of one member, or the default, for each problem, originals kept or released."""
    found = [(0, 0.0)]
    for family in instance.weights:
        items = [item for item in instance.items if family_of(item) == family]
        mine = _of_family(instance, family, items)
        found = [(b + bytes_, s + seconds) for b, s in found for bytes_, seconds in mine]
    return found


def _of_family(instance: Instance, family: str, items: list[Usable]) -> list[tuple[int, float]]:
    weights = instance.weights[family]
    sizes = {name: size for (of, name), size in layout_bytes(instance).items() if of == family}
    found = []
    for picked in itertools.product(*([None, *item.members] for item in items)):
        chosen = list(zip(items, picked, strict=True))
        seconds = sum(
            item.weight if member is None else item.weight / item.verdict.speedup * member.ratio
            for item, member in chosen
        )
        needed = {member.layout for member in picked if member is not None and member.layout}
        found.append((sum(sizes[name] for name in needed), seconds))
        if weights.releasable and weights.restores and all(m is not None and m.layout for m in picked):
            if not needed & weights.restores:
                needed.add(min(weights.restores & sizes.keys(), key=lambda name: sizes[name]))
            found.append((sum(sizes[name] for name in needed) - weights.releasable, seconds))
    return found


def costs(instance: Instance, choices: Choices) -> tuple[int, float]:
    """What a choice takes and how long it lasts, from its tactics, layouts and sources alone."""
    sizes = layout_bytes(instance)
    seconds = 0.0
    for item in instance.items:
        tactic, family = choices.tactics[item.problem].name, family_of(item)
        member = next((m for m in item.members if m.tactic == tactic), None)
        if member is None:
            assert tactic == "default"
        elif member.layout:
            assert member.layout in choices.layouts[family], "a tactic without its weights"
        if family in choices.sources:
            assert member is not None, "the default serves without its weights"
            assert member.layout, "a tactic of the model's own weights serves without them"
        seconds += item.weight if member is None else item.weight / item.verdict.speedup * member.ratio
    for family, source in choices.sources.items():
        layout = source.name.removeprefix("t")
        assert layout in choices.layouts[family]
        assert layout in instance.weights[family].restores
    held = sum(sizes[family, name] for family, names in choices.layouts.items() for name in names)
    assert choices.prepared == held
    return held - sum(instance.weights[family].releasable for family in choices.sources), seconds


@settings(max_examples=200)
@given(instances())
def test_no_assignment_is_better(instance: Instance) -> None:
    choices = choose_layouts(instance.items, instance.weights, instance.limit)
    used, seconds = costs(instance, choices)
    assert used == choices.bytes <= instance.limit
    assert seconds == pytest.approx(choices.seconds)
    allowed = [(b, s) for b, s in assignments(instance) if b <= instance.limit]
    fastest = min(s for _, s in allowed)
    margin = NEGLIGIBLE * sum(item.weight for item in instance.items)
    assert seconds <= fastest + margin + 1e-9
    assert used <= max(0, min(b for b, s in allowed if s <= fastest + margin - 1e-9)), "bytes for nothing"
    assert seconds <= min(s for b, s in allowed if b <= max(0, used)) + 1e-9, "slower, and no less memory than before"


@settings(max_examples=50)
@given(instances(), st.data())
def test_what_is_fixed_stays_and_the_rest_is_as_good_as_it_can_be(instance: Instance, data: st.DataObject) -> None:
    first = choose_layouts(instance.items, instance.weights, instance.limit)
    free = data.draw(st.sampled_from(sorted(instance.weights)))
    again = choose_layouts(instance.items, instance.weights, instance.limit, fixed=first, free=[free])
    assert again.seconds <= first.seconds + NEGLIGIBLE * sum(item.weight for item in instance.items) + 1e-9
    for item in instance.items:
        if family_of(item) != free:
            assert again.tactics[item.problem] == first.tactics[item.problem]
    for family in instance.weights.keys() - {free}:
        assert again.layouts.get(family) == first.layouts.get(family)
        assert again.sources.get(family) == first.sources.get(family)
    assert choose(instance.items, instance.weights, min(0, first.bytes) - 1000, fixed=first) is None


def test_without_memory_what_needs_none_serves() -> None:
    item = usable("op", 1, 1.0, 2.0, {"packed": (1.0, "x", 10), "plain": (1.5, "", 0)})
    assert choose_layouts([item], TWO, 19).tactics[item.problem].name == "plain"
    full = choose_layouts([item], TWO, 20)
    assert full.tactics[item.problem].name == "packed"
    assert (full.bytes, full.layouts) == (20, {"op||bf16": ("x",)})
    assert full.seconds == pytest.approx(0.5)


def test_without_memory_and_without_another_tactic_the_default_serves() -> None:
    item = usable("op", 1, 1.0, 2.0, {"packed": (1.0, "x", 10)}, default=False)
    none = choose_layouts([item], ONE, 0)
    assert none.tactics[item.problem].name == "default"
    assert (none.bytes, none.layouts, none.seconds) == (0, {}, 1.0)


def test_a_gain_that_is_negligible_is_not_worth_bytes() -> None:
    def chosen(ratio: float) -> str:
        item = usable("op", 1, 1.0, 2.0, {"packed": (1.0, "x", 10), "plain": (ratio, "", 0)})
        return choose_layouts([item], ONE, 100).tactics[item.problem].name

    assert chosen(1.003) == "plain"
    assert chosen(1.05) == "packed"


def test_one_layout_that_serves_two_problems_is_paid_once() -> None:
    one = usable("op", 1, 1.0, 2.0, {"a": (1.0, "x", 10)})
    two = usable("op", 2, 1.0, 2.0, {"a": (1.0, "x", 10), "b": (1.001, "y", 10)})
    choices = choose_layouts([one, two], THREE, 1000)
    assert choices.bytes == 30
    assert choices.layouts == {"op||bf16": ("x",)}


def test_memory_goes_to_the_family_where_it_buys_most() -> None:
    heavy = usable("op", 1, 10.0, 2.0, {"a": (1.0, "x", 10)})
    light = usable("other", 1, 1.0, 4.0, {"a": (1.0, "x", 10)})
    layers = {"op||bf16": Weights(), "other||bf16": Weights()}
    choices = choose_layouts([light, heavy], layers, 10)
    assert choices.layouts == {"op||bf16": ("x",)}
    assert choices.tactics[light.problem].name == "default"
    assert choose_layouts([light, heavy], layers, 20).bytes == 20


def test_bytes_that_one_problem_does_not_know_are_taken_from_another() -> None:
    """A member of an older verdict may say nothing of its bytes; its layout takes them all the same."""
    knows = usable("op", 1, 0.001, 1.01, {"a": (1.0, "x", 50)})
    silent = usable("op", 2, 10.0, 2.0, {"a": (1.0, "x", 0)})
    assert choose_layouts([silent, knows], ONE, 49).layouts == {}
    assert choose_layouts([silent, knows], ONE, 50).bytes == 50


def test_the_verdicts_winner_is_kept_against_a_tie_that_measured_a_little_faster() -> None:
    item = usable("op", 1, 1.0, 2.0, {"kept": (1.0, "", 0), "tie": (0.995, "", 0)})
    assert choose_layouts([item], ONE, 0).tactics[item.problem].name == "kept"


def test_nothing_to_choose_is_an_empty_choice() -> None:
    assert choose_layouts([], {}, 10) == Choices({}, {}, 0, 0.0)


def test_of_many_layouts_the_ones_that_matter_are_found() -> None:
    members = {f"t{i}": (1.0 + i / 10, f"l{i}", 10 - i % 3) for i in range(12)}
    item = usable("op", 1, 1.0, 3.0, members)
    choices = choose_layouts([item], ONE, 100)
    assert choices.tactics[item.problem].name == "t0"
    assert choices.layouts == {"op||bf16": ("l0",)}


PACKED = {"op||bf16": Weights(layers=2, releasable=20, restores=frozenset("x"))}


def test_originals_that_nothing_needs_are_released_and_make_room() -> None:
    item = usable("op", 1, 1.0, 2.0, {"tx": (1.0, "x", 10)})
    choices = choose_layouts([item], PACKED, 0)
    assert (choices.bytes, choices.prepared, choices.layouts) == (0, 20, {"op||bf16": ("x",)})
    assert {family: source.name for family, source in choices.sources.items()} == {"op||bf16": "tx"}
    assert choose_layouts([item], {"op||bf16": Weights(layers=2, restores=frozenset("x"))}, 19).layouts == {}
    assert choose_layouts([item], {"op||bf16": Weights(layers=2, releasable=20)}, 19).layouts == {}


def test_originals_are_kept_where_the_default_serves_a_part_of_the_time_that_counts() -> None:
    one = usable("op", 1, 1.0, 2.0, {"tx": (1.0, "x", 10)})
    two = usable("op", 2, 1.0, 1.0, {"default": (1.0, "", 0), "tx": (3.0, "x", 10)})
    kept = choose_layouts([one, two], PACKED, 20)
    assert (kept.sources, kept.bytes, kept.tactics[two.problem].name) == ({}, 20, "default")
    assert kept.seconds == pytest.approx(1.5)
    tight = choose_layouts([one, two], PACKED, 19)
    assert (tight.layouts, tight.seconds) == ({}, 2.0), "a slow tactic is served to save memory"


def test_a_layout_that_nothing_serves_from_is_held_to_make_the_originals_from() -> None:
    """y is fastest everywhere, and only from x can the originals be made again."""
    weights = {"op||bf16": Weights(layers=1, releasable=50, restores=frozenset("x"))}
    item = usable("op", 1, 1.0, 4.0, {"ty": (1.0, "y", 40), "tx": (3.9, "x", 5)})
    choices = choose_layouts([item], weights, 0)
    assert choices.tactics[item.problem].name == "ty"
    assert choices.layouts == {"op||bf16": ("x", "y")}
    assert (choices.bytes, choices.sources["op||bf16"].name) == (-5, "tx")


def test_what_was_not_measured_is_served_by_a_lent_tactic_only_where_the_originals_are_gone() -> None:
    one = usable("op", 1, 1.0, 2.0, {"tx": (1.0, "x", 10)})
    lent = Member(tactic="tx", ratio=1.0, low=1.0, high=1.0, layout="x", bytes=10)
    two = usable("op", 2, 0.1, 1.0, {}, borrowed=(lent,))
    alone = usable("op", 2, 0.1, 1.0, {})
    assert choose_layouts([one, two], PACKED, 0).tactics[two.problem].name == "tx"
    assert choose_layouts([one, two], TWO, 20).tactics[two.problem].name == "default"
    assert choose_layouts([one, alone], PACKED, 0).sources == {}, "nothing can serve one of them"


def test_a_barred_tactic_leaves_the_default_or_the_next_best_where_that_cannot_serve() -> None:
    one = usable("op", 1, 1.0, 2.0, {"tx": (1.0, "x", 10)})
    members = {"tx": (1.0, "x", 10), "sx": (1.5, "x", 10)}
    two = usable("op", 2, 1.0, 2.0, members, barred=frozenset(("tx",)))
    kept = choose_layouts([one, two], PACKED, 20)
    assert kept.tactics[two.problem].name == "sx", "faster than the default, and it takes no more memory"
    assert choose_layouts([one, two], TWO, 20).tactics[two.problem].name == "default"


def test_for_one_result_whatever_the_batch_a_class_serves_all_sizes() -> None:
    weights = {"op||bf16": Weights(layers=1, releasable=10, restores=frozenset("xy"))}
    classes = {"tx": "k:a", "ty": "k:b"}
    one = usable("op", 1, 1.0, 4.0, {"tx": (1.0, "x", 10), "ty": (2.0, "y", 10)}, numerics=classes)
    two = usable("op", 2, 3.0, 4.0, {"ty": (1.0, "y", 10), "tx": (3.0, "x", 10)}, numerics=classes)
    choices = choose_layouts([one, two], weights, 100, invariant=True)
    assert {tactic.name for tactic in choices.tactics.values()} == {"ty"}
    assert choices.numerics == {"op||bf16": "k:b"}
    assert {tactic.name for tactic in choose_layouts([one, two], weights, 100).tactics.values()} == {"tx", "ty"}
    assert choose([one, two], weights, -1, invariant=True) is None
    lone = usable("op", 4, 1.0, 1.0, {})
    assert choose([one, two, lone], weights, 100, invariant=True) is None, "the default serves one of them"


def test_thirty_families_of_eight_layouts_are_chosen_as_well_as_a_relaxation_allows() -> None:
    """No choice under the limit is faster than any of Lagrange's bounds, and the best of them is close to the best choice."""
    rng, limit = random.Random(1), 24 * 500 * 3
    items, weights = [], {}
    for f in range(30):
        names = [f"l{i}" for i in range(8)]
        sizes = {name: rng.randrange(1, 1000) for name in names}
        weights[f"op{f}||bf16"] = Weights(layers=24, releasable=24 * 500, restores=frozenset(names[:4]))
        for p in range(4):
            ratios = [1.0, *(rng.uniform(1, 3) for _ in range(7))]
            order = rng.sample(names, 8)
            members = {f"t{name}": (ratio, name, sizes[name]) for name, ratio in zip(order, ratios, strict=True)}
            items.append(usable(f"op{f}", 1 << p, rng.uniform(0.01, 1), 3.0, members, default=False))
    choices = choose_layouts(items, weights, limit)
    instance = Instance(items, weights, limit)
    assert costs(instance, choices) == (choices.bytes, pytest.approx(choices.seconds))
    assert choices.bytes <= limit
    grids = [np.array(_subsets(instance, family)) for family in weights]
    prices = [10.0**-power for power in np.linspace(3, 7, 200)]
    bound = max(sum((grid[:, 1] + price * grid[:, 0]).min() for grid in grids) - price * limit for price in prices)
    total = sum(item.weight for item in items)
    assert bound <= choices.seconds <= bound + 1.5 * NEGLIGIBLE * total


def _subsets(instance: Instance, family: str) -> list[tuple[int, float]]:
    """Bytes and seconds of every set of layouts of a family, originals released or kept (the default is no faster here)."""
    weights, items = instance.weights[family], [item for item in instance.items if family_of(item) == family]
    sizes = {name: size for (of, name), size in layout_bytes(instance).items() if of == family}
    found = []
    for count in range(len(sizes) + 1):
        for names in itertools.combinations(sizes, count):
            used = sum(sizes[name] for name in names)
            members = [[m for m in item.members if m.layout in names] for item in items]
            times = [
                item.weight * min([1.0, *(m.ratio / item.verdict.speedup for m in some)])
                for item, some in zip(items, members, strict=True)
            ]
            found.append((used, sum(times)))
            if weights.restores & set(names):
                found.append((used - weights.releasable, sum(times)))
    return found
