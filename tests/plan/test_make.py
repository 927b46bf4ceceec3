"""Plans of what is known: whose ratios are believed, what other sizes lend, and what is given back under a limit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.dispatch import Binding, Scope, is_released, releasable_bytes
from tunebook.plan import Knowledge, Room, expected, holdings, install, make, prepare, release, without
from tunebook.records import DEFAULT, Member, Offered, Rejected, Tactic, Verdict

BYTES = 4 * 3 * 5  # of a weight
FAMILY = "plan_times|x.1=3,w.0=3,w.1=5|fp32"


def key(rows: int) -> str:
    return f"{FAMILY}|x.0≤{rows}"


@pytest.fixture
def times(clean_ops: None) -> Any:
    """``x @ w``; `flipped` keeps the weight in another order and gives it back, `copied` keeps a copy, `direct` none."""

    @tb.op("plan_times", buckets={"x": {0: tb.pow2()}}, constants=("w",), lead="x")
    def op(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w

    @op.runner(
        "flipped",
        {"run": (1, 2)},
        prepare=lambda w, *, run: w.flip(1),
        layout=lambda *, run: "flip",
        restore=lambda prepared, *, last: (prepared.flip(1),),
        supports=lambda problem, *, run: "too large" if run == 2 and problem.dims[0].size > 64 else None,
    )
    def flipped(x: torch.Tensor, prepared: torch.Tensor, *, run: int) -> torch.Tensor:
        return (x @ prepared).flip(1)

    @op.runner("copied", prepare=lambda w: w.clone())
    def copied(x: torch.Tensor, prepared: torch.Tensor) -> torch.Tensor:
        return x @ prepared

    @op.runner("direct")
    def direct(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w

    return op


class Known:
    """What is known of `layers` layers with the same weights."""

    def __init__(self, op: Any, layers: int = 2) -> None:
        self.scope = Scope("test")
        self.weights = [torch.nn.Parameter(torch.randn(3, 5), requires_grad=False) for _ in range(layers)]
        self.before = [weight.detach().clone() for weight in self.weights]
        self.bindings: list[Binding] = [op.bind(weight, scope=self.scope) for weight in self.weights]
        for binding in self.bindings:
            binding.releasable = releasable_bytes(binding.constants)
        self.known = Knowledge(families=dict.fromkeys(self.bindings, (FAMILY,)))

    def add(
        self,
        rows: int,
        members: dict[str, float],
        speedup: float = 4.0,
        weight: float = 1.0,
        ties: tuple[str, ...] = (),
        rejected: tuple[Rejected, ...] = (),
    ) -> None:
        """Tactics with their time over that of the winner, the first."""
        layouts = {"flipped": "flipped:flip", "copied": "copied:copied"}
        listed = tuple(
            Member(
                tactic=name,
                ratio=ratio,
                low=ratio,
                high=ratio,
                layout=layouts.get(name.partition("[")[0], ""),
                bytes=BYTES if name.partition("[")[0] in layouts else 0,
            )
            for name, ratio in members.items()
        )
        self.known.members[key(rows)] = listed
        self.known.weights[key(rows)] = weight
        self.known.verdicts[key(rows)] = Verdict(
            problem=key(rows),
            winner=listed[0].tactic,
            status="likely",
            speedup=speedup,
            low=speedup,
            high=speedup,
            seconds=1e-3,
            frontier=listed,
            offered={Tactic.parse(m.tactic).runner: Offered(version="1", space="") for m in listed},
            ties=ties,
            rejected=rejected,
        )

    def serve(self, rows: int) -> None:
        for binding, before in zip(self.bindings, self.before, strict=True):
            x = torch.randn(rows, 3)
            with torch.inference_mode():
                assert torch.allclose(binding.caller()(x), x @ before, atol=1e-6)


ONE, TWO = "flipped[run=1]", "flipped[run=2]"


def test_a_ratio_that_contradicts_its_verdict_is_not_believed(times: Any) -> None:
    """`direct` lost both, and where it did not race its first look seems four times as fast as the winner."""
    state = Known(times)
    state.add(1, {ONE: 1.0, "direct": 1.5, "default": 4.0})
    state.add(4, {ONE: 1.0, "direct": 0.25, "default": 4.0})
    choices = make(state.known, Room(0))
    assert {tactic.name for tactic in choices.tactics.values()} == {ONE}
    assert expected(choices, state.known) == {key(1): 0.25, key(4): 0.25}
    tight = make(state.known, Room(0, release=False))
    assert tight.tactics[key(4)].name == "direct"
    assert expected(tight, state.known)[key(4)] == pytest.approx(1.5 / 4), "as on the size where it raced"


def test_a_tie_is_as_fast_as_the_winner(times: Any) -> None:
    state = Known(times)
    state.add(1, {ONE: 1.0, "direct": 0.99, "default": 4.0}, ties=("direct",))
    choices = make(state.known, Room(10**6, release=False))
    assert choices.tactics[key(1)].name == "direct", "it takes no memory"
    assert expected(choices, state.known) == {key(1): 0.25}


def test_sizes_that_were_left_out_are_lent_the_nearest_tactic_once_the_originals_go(times: Any) -> None:
    state = Known(times)
    state.add(1, {ONE: 1.0, "default": 4.0})
    state.add(64, {TWO: 1.0, "default": 4.0})
    state.add(2, {"default": 1.0}, speedup=1.0, weight=0.01)
    state.add(32, {"default": 1.0}, speedup=1.0, weight=0.01)
    state.add(128, {"default": 1.0}, speedup=1.0, weight=0.01)
    choices = make(state.known, Room(0))
    assert choices.sources.keys() == {FAMILY}
    served = {rows: choices.tactics[key(rows)].name for rows in (1, 2, 32, 64, 128)}
    assert served == {1: ONE, 2: ONE, 32: TWO, 64: TWO, 128: ONE}, "run=2 does not fit 128 rows"
    kept = make(state.known, Room(0, release=False))
    assert set(kept.tactics.values()) == {DEFAULT}


@pytest.mark.parametrize(
    "rejected",
    [Rejected(tactic=TWO, reason="correctness"), Rejected(tactic=ONE, reason="memory")],
    ids=lambda one: one.reason,
)
def test_what_was_rejected_for_a_size_is_not_lent_to_it(rejected: Rejected, times: Any) -> None:
    state = Known(times)
    state.add(1, {ONE: 1.0, "default": 4.0})
    state.add(2, {"default": 1.0}, speedup=1.0, rejected=(rejected,))
    assert make(state.known, Room(0)).sources == {}


def test_weights_that_serve_two_families_or_others_too_are_kept(times: Any) -> None:
    state = Known(times)
    state.add(1, {ONE: 1.0, "default": 4.0})
    state.known.families[state.bindings[0]] = (FAMILY, "other||fp32")
    assert make(state.known, Room(BYTES - 1)).sources == {}
    half = make(state.known, Room(BYTES))
    assert half.bytes == BYTES, "one of two layers is released"
    install(state.scope, half, state.known.families)
    prepare(half, state.known.families)
    assert release(half, state.known.families) == BYTES
    assert [is_released(weight) for weight in state.weights] == [False, True]
    for binding in state.bindings:
        binding.releasable = 0
        binding.restore()
    assert make(state.known, Room(0)).sources == {}


@pytest.mark.parametrize("releasing", [False, True])
def test_a_plan_is_put_into_service_and_another_one_takes_its_place(releasing: bool, times: Any) -> None:
    state = Known(times)
    state.add(1, {ONE: 1.0, "copied": 2.0, "direct": 3.0, "default": 4.0})
    first = make(state.known, Room(0))
    install(state.scope, first, state.known.families)
    assert prepare(first, state.known.families, releasing=releasing) == 2 * BYTES
    assert [binding.released for binding in state.bindings] == [releasing] * 2
    assert release(first, state.known.families) == 2 * BYTES
    for rows in (1, 7):
        state.serve(rows)
    assert all(binding.released for binding in state.bindings), "a call needed the originals"
    del state.known.members[key(1)]
    state.add(1, {"copied": 1.0, "default": 4.0})
    second = make(state.known, Room(2 * BYTES))
    install(state.scope, second, state.known.families)
    assert not any(binding.released for binding in state.bindings)
    assert all(torch.equal(now, then) for now, then in zip(state.weights, state.before, strict=True))
    prepare(second, state.known.families, releasing=True)
    assert {binding.prepared.layouts for binding in state.bindings} == {("copied:copied",)}
    state.serve(1)


def test_a_layer_that_cannot_be_prepared_is_told_and_the_others_are(times: Any) -> None:
    state = Known(times)
    state.add(1, {ONE: 1.0, "default": 4.0})
    choices = make(state.known, Room(0))
    install(state.scope, choices, state.known.families)
    broken: list[Binding] = []
    state.bindings[0].constants = ("nothing",)
    prepare(choices, state.known.families, releasing=True, failed=lambda binding, error: broken.append(binding))
    assert broken == [state.bindings[0]]
    assert state.bindings[1].released
    with pytest.raises(Exception, match="flip"):
        prepare(choices, state.known.families)


def test_what_is_given_back_gets_the_default_where_the_originals_fit_beside_the_rest(times: Any) -> None:
    state = Known(times)
    state.add(1, {ONE: 1.0, "default": 4.0})
    state.add(64, {ONE: 1.0, "default": 4.0})
    roomy, tight = Room(2 * BYTES), Room(2 * BYTES - 1)
    first = make(state.known, tight)
    assert first.sources
    kept = without(make(state.known, roomy), [key(1)], state.known, roomy)
    assert {rows: kept.tactics[key(rows)].name for rows in (1, 64)} == {1: "default", 64: ONE}
    assert (kept.sources, kept.bytes) == ({}, 2 * BYTES)
    assert kept.barred == {key(1): frozenset((ONE,))}
    none = without(first, [key(1)], state.known, tight)
    assert set(none.tactics.values()) == {DEFAULT}, "the default does not fit beside the other size's layout"
    assert (none.bytes, none.layouts) == (0, {})
    assert without(first, [], state.known, tight) is first


def test_what_is_given_back_gets_the_next_best_on_the_layout_where_the_originals_do_not_fit(times: Any) -> None:
    state = Known(times)
    state.add(1, {ONE: 1.0, TWO: 1.2, "default": 4.0})
    state.add(64, {ONE: 1.0, "default": 4.0})
    first = make(state.known, Room(0))
    again = without(first, [key(1)], state.known, Room(0))
    assert {rows: again.tactics[key(rows)].name for rows in (1, 64)} == {1: TWO, 64: ONE}
    assert again.sources.keys() == first.sources.keys()
    last = without(again, [key(1)], state.known, Room(0))
    assert set(last.tactics.values()) == {DEFAULT}, "both of its tactics were given back"


def test_holdings_tell_what_each_layout_costs_and_buys(times: Any) -> None:
    state = Known(times)
    state.add(1, {ONE: 1.0, "default": 4.0}, weight=0.8)
    state.known.rest = 0.2
    choices = make(state.known, Room(0))
    (holding,) = holdings(choices, state.known)
    assert (holding.family, holding.layers, holding.layouts) == (FAMILY, 2, {"flipped:flip": 2 * BYTES})
    assert (holding.released, holding.source) == (2 * BYTES, ONE)
    assert holding.buys["flipped:flip"] == pytest.approx(1.0 / (0.2 + 0.2)), "the default takes 0.8, the tactic 0.2"
