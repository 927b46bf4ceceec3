"""Predicted against measured: what each op saves inside the model, on a clock that the ops move themselves."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tunebook.dispatch import collector
from tunebook.plan import EFFECT_ROUNDS, measure_effects
from tunebook.records import DEFAULT, Effect, Tactic

Make = Callable[..., Any]


def effects(toy: Any, steps: list[Any], tactics: dict[str, Tactic], expected: float = 0.5) -> dict[str, Effect]:
    found = measure_effects(steps, toy.serving, tactics, dict.fromkeys(tactics, expected), random.Random(0))
    assert len({(effect.problem, effect.phase) for effect in found}) == len(found)
    return {effect.problem: effect for effect in found}


@pytest.mark.parametrize(
    ("quick", "outcome"),
    [(0.5, "arrived"), (0.7, "arrived"), (0.95, "did not arrive"), (1.0, "did not arrive"), (1.5, "slower")],
)
def test_a_prediction_is_held_against_the_saving_in_the_model(quick: float, outcome: str, toy: Make) -> None:
    model = toy({"a": (1.0, quick), "b": (2.0, 1.0)})
    found = effects(model, [model.step(calls=3)], model.plan("a", "b"))
    a, b = found[model.key("a")], found[model.key("b")]
    assert (a.phase, a.tactic, a.calls) == ("decode_1", "quick", 3)
    assert a.default_ms == pytest.approx(3000, rel=0.03)
    assert a.predicted_ms == pytest.approx(1500, rel=0.03)
    assert a.measured_ms == pytest.approx(3000 * (1 - quick), abs=80)
    assert a.low_ms <= a.measured_ms <= a.high_ms
    assert (a.outcome, a.missing) == (outcome, outcome != "arrived")
    assert (b.outcome, b.missing) == ("arrived", False), "one op's loss is not another's"
    assert list(found) == [b.problem, a.problem], "the costliest first"


def test_noise_alone_is_not_a_gain_that_did_not_arrive(toy: Make) -> None:
    for seed in range(10):
        model = toy({"a": (1.0, 0.8)}, noise=0.1, seed=seed)
        found = effects(model, [model.step(calls=2)], model.plan("a"), expected=0.8)
        assert not found[model.key("a")].missing


@pytest.mark.parametrize(("quick", "outcome"), [(1.0, "immaterial"), (1.5, "immaterial"), (9.0, "slower")])
def test_what_is_less_than_a_hundredth_of_the_step_is_not_worth_a_word(quick: float, outcome: str, toy: Make) -> None:
    model = toy({"a": (1.0, quick), "b": (1.0, 1.0)}, rest=198.0)
    assert effects(model, [model.step()], model.plan("a"))[model.key("a")].outcome == outcome


def test_each_phase_and_bucket_stands_for_itself_and_what_runs_the_default_is_left_out(toy: Make) -> None:
    model = toy({"a": (1.0, 0.5), "b": (1.0, 0.5)})
    tactics = {**model.plan("a", rows=(1, 4, 8)), model.key("b"): DEFAULT}
    found = measure_effects(
        [model.step(1), model.step(3)], model.serving, tactics, dict.fromkeys(tactics, 0.5), random.Random(0)
    )
    assert [(effect.phase, effect.problem) for effect in found] == [
        ("decode_1", model.key("a", 1)),
        ("decode_3", model.key("a", 4)),
    ]


def test_default_and_tuned_take_turns_and_every_call_is_waited_for(toy: Make) -> None:
    model = toy({"a": (1.0, 0.5)})
    served = model.served
    seen: list[tuple[int, int]] = []
    measure_effects(
        [model.step()],
        model.serving,
        model.plan("a"),
        {model.key("a"): 0.5},
        random.Random(1),
        lambda done, total, what: seen.append((done, total)),
    )
    rounds = [{who for _, who in served[i : i + 2]} for i in range(0, len(served), 2)]
    assert rounds == [{"default", "quick"}] * EFFECT_ROUNDS
    assert {served[i][1] for i in range(0, len(served), 2)} == {"default", "quick"}, "always the same one first"
    assert model.waited >= 4 * len(served)
    assert seen == [(i + 1, EFFECT_ROUNDS) for i in range(EFFECT_ROUNDS)]
    assert collector() is None


def test_a_step_that_raises_leaves_no_collection_open(toy: Make) -> None:
    model = toy({"a": (1.0, 0.5)})

    def fail(op: str, served: str, seconds: float) -> float:
        raise KeyboardInterrupt

    model.after = fail
    with pytest.raises(KeyboardInterrupt):
        effects(model, [model.step()], model.plan("a"))
    assert collector() is None


def test_serving_runs_what_dispatch_would(toy: Make) -> None:
    """Other scopes and calls without a problem run the default; so does a tactic that cannot be prepared."""
    model, serving = toy({"a": (1.0, 0.5)}), None
    other = toy({"c": (1.0, 0.5)})
    other.plan("c")
    serving = model.serving
    tactics = {**model.plan("a"), other.key("c"): Tactic(runner="quick")}
    x = torch.ones(1, 2)
    mixed = model.step()
    both = type(mixed)("decode", 1, 1, lambda: (mixed.run(), other.callers["c"](x), model.callers["a"](x[:0])))
    serving.run(both, tactics)
    assert model.served == [("a", "quick"), ("a", "default")]
    assert other.served == [("c", "default")]
    assert serving.met == {model.key("a")}
    serving.run(mixed, {model.key("a"): Tactic(runner="nobody")})
    serving.run(mixed, {})
    assert model.served[2:] == [("a", "default")] * 2


def test_a_call_on_a_strided_tensor_is_given_a_contiguous_one(toy: Make) -> None:
    model = toy({"a": (1.0, 0.5)})
    strided = torch.arange(8.0).reshape(2, 4)[:, ::2]
    assert not strided.is_contiguous()
    results: list[torch.Tensor] = []
    step = type(model.step())("decode", 2, 1, lambda: results.append(model.callers["a"](strided)))
    serving = model.serving
    serving.run(step, {})
    (key,) = serving.met
    serving.run(step, {key: Tactic(runner="quick")})
    assert [who for _, who in model.served] == ["default", "quick"]
    assert torch.equal(results[0], results[1])
    assert [r.is_contiguous() for r in results] == [False, True]


@pytest.mark.parametrize(
    "wrong",
    [
        {"low_ms": 2.0},
        {"high_ms": 0.5},
        {"high_ms": float("inf")},
        {"measured_ms": float("nan")},
        {"predicted_ms": float("nan")},
        {"default_ms": -1.0},
        {"problem": "linear"},
        {"tactic": "[]"},
    ],
    ids=str,
)
def test_an_impossible_effect_cannot_exist(wrong: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        "problem": "linear|N=8|bf16|M≤1",
        "phase": "decode_1",
        "tactic": "quick",
        "calls": 1,
        "default_ms": 2.0,
        "predicted_ms": 1.0,
        "measured_ms": 1.0,
        "low_ms": 0.9,
        "high_ms": 1.1,
        "outcome": "arrived",
    }
    assert not Effect(**fields).missing
    with pytest.raises(ValueError, match=r"linear|\[\]"):
        Effect(**{**fields, **wrong})
