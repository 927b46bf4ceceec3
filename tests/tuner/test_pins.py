"""Pins in a session: a user's choice serves whatever was measured, and never what the op does not offer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.dispatch import FREE
from tunebook.records import DEFAULT, Tactic
from tunebook.store import pins_path, read_cache, update_pins

pytestmark = pytest.mark.usefixtures("clean_ops")

SLOW, FAST = Tactic.parse("one[p=2]"), Tactic.parse("one[p=1]")


def key(size: int) -> str:
    return f"o|x.1=3|fp32|M≤{size}"


@pytest.fixture
def world(lab: Any) -> Any:
    """An op whose `one[p=1]` is fast, `one[p=2]` slow, and `one[p=3]` not for M≤8."""
    lab.op("o", 4e-3)
    lab.runner("o", "one", {"p": (1, 2)}, lambda size, p: {1: 1e-3, 2: 8e-3}[p])
    return lab


def served(outcome: Any) -> dict[str, Tactic]:
    return outcome.tactics


def test_the_narrowest_pin_goes_before_the_cache_and_is_not_raced(world: Any) -> None:
    assert set(served(world.tune({"o": [1, 8]}, 60.0)).values()) == {FAST}
    before = world.cache.read_bytes()
    update_pins(pins_path(world.cache), {"o": SLOW, "o@M≤4": DEFAULT, key(2): FAST})
    outcome = world.tune({"o": [1, 8]}, 60.0)
    assert served(outcome) == {key(1): SLOW, key(2): FAST, key(4): DEFAULT, key(8): SLOW}
    assert (outcome.fresh, outcome.cached, world.session.run_path) == ([], 4, None)
    assert world.cache.read_bytes() == before, "a pin is no result"
    update_pins(pins_path(world.cache), {"o": None, "o@M≤4": None, key(2): None})
    assert set(served(world.tune({"o": [1, 8]}, 60.0)).values()) == {FAST}


def test_a_pinned_problem_that_nothing_is_known_of_is_not_measured(world: Any) -> None:
    update_pins(pins_path(world.cache), {"o@M≤1": SLOW})
    outcome = world.tune({"o": [2]}, 60.0)
    assert served(outcome) == {key(1): SLOW, key(2): FAST}
    assert outcome.fresh == [key(2)]
    assert list(read_cache(world.cache, None).verdicts) == [key(2)]
    assert (outcome.verdicts[key(1)].winner, outcome.verdicts[key(1)].note) == (SLOW.name, "pinned")


def test_what_is_known_of_a_pinned_tactic_goes_into_the_plan(world: Any) -> None:
    world.tune({"o": [1]}, 60.0)
    update_pins(pins_path(world.cache), {"o": DEFAULT})
    verdict = world.tune({"o": [1]}, 60.0).verdicts[key(1)]
    assert (verdict.winner, verdict.status) == ("default", "proven")
    assert verdict.low <= verdict.speedup <= verdict.high
    assert 0.9 < verdict.speedup < 1.1


@pytest.mark.parametrize(
    ("pin", "says"),
    [
        ("one[p=3]", "does not offer"),
        ("one[p=1.0]", "does not offer"),
        ("one[p=true]", "does not offer"),
        ("one", "does not offer"),
        ("two[p=1]", "runner two is not offered"),
        ("away", "not available: no such device"),
        ("some", "not for one row"),
    ],
)
def test_a_pin_that_is_not_offered_is_named_and_not_served(
    world: Any, caplog: pytest.LogCaptureFixture, pin: str, says: str
) -> None:
    op = world.ops["o"][0]
    op.runner("away", available=lambda: "no such device", version="1")(lambda x: x * 2)
    op.runner("some", supports=lambda problem: "not for one row", version="1")(lambda x: x * 2)
    world.tune({"o": [1]}, 60.0)
    update_pins(pins_path(world.cache), {"o": Tactic.parse(pin)})
    caplog.set_level(logging.WARNING, "tunebook.tuner")
    outcome = world.tune({"o": [1]}, 60.0)
    assert served(outcome) == {key(1): FAST}
    (note,) = outcome.misses
    assert all(text in note for text in (f"pin o = {pin}", says))
    (line,) = [record.getMessage() for record in caplog.records if "pin o" in record.getMessage()]
    assert str(pins_path(world.cache)) in line


def test_a_pin_that_is_not_offered_costs_no_result(world: Any) -> None:
    update_pins(pins_path(world.cache), {"o": Tactic.parse("two")})
    outcome = world.tune({"o": [1]}, 60.0)
    assert (served(outcome), outcome.fresh) == ({key(1): FAST}, [key(1)])


def test_a_broken_file_of_pins_is_a_miss(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    pins_path(world.cache).write_text('[pins]\n"o" = \n')
    assert served(world.tune({"o": [1]}, 60.0)) == {key(1): FAST}
    world.session.announce()
    assert any("pins.toml: not TOML" in record.getMessage() for record in caplog.records)
    assert [miss.kind for miss in world.session.recall.misses if miss.where.endswith("pins.toml")] == ["not TOML"]


def scale() -> Any:
    @tb.op("o", buckets={"x": {0: tb.pow2(name="M")}})
    def scale(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    scale.runner("one", {"p": (1, 2)}, version="1")(lambda x, *, p: x * 2)
    return scale


def test_policies(tmp_path: Path, restart: Callable[[], None]) -> None:
    cache, op = tmp_path / "c.json", scale()
    update_pins(pins_path(cache), {"o": SLOW, key(4): FAST})
    with tb.autotune(cache=cache, budget_s=5.0):
        op(torch.ones(2, 3))
    assert dict(FREE.tactics) == {key(1): SLOW, key(2): SLOW}
    restart()
    with tb.autotune(tune_mode=False, cache=cache):
        op(torch.ones(2, 3))
    assert dict(FREE.tactics) == {key(4): FAST}, "nothing is known of the others"
    restart()
    with tb.autotune(cache=cache, policy="fresh", budget_s=5.0) as tuned:
        op(torch.ones(2, 3))
    assert tuned.outcome is not None
    assert tuned.outcome.tuned == 2
    assert not any(verdict.note == "pinned" for verdict in tuned.outcome.verdicts.values())
