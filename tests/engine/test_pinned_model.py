"""Pins of a whole model: the plan serves them, prepared weights and all, and the next start does so without measuring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunebook.engine import ModelRunner
from tunebook.engine._phases import requests
from tunebook.records import DEFAULT, Problem, Tactic
from tunebook.store import pins_path, read_cache, update_pins

pytestmark = pytest.mark.usefixtures("clean_ops")
WANTED = requests((1,), ())


@pytest.fixture
def runner(tiny_model: Callable[..., Any]) -> Any:
    with ModelRunner(tiny_model(), threads=1) as made:
        yield made


def packed(runner: Any, op: str) -> Tactic:
    """A tactic of the op that wants weights of its own."""
    spec = next(b.spec for b in runner.attachment.bindings.values() if b.spec.name == op)
    return next(
        t
        for r in spec.runners.values()
        if r.prepare is not None and r.requirement.reason() is None
        for t in r.combinations
    )


def tactics(runner: Any, op: str) -> set[str]:
    """What the scope serves the problems of an op with."""
    return {tactic.name for key, tactic in runner.scope.tactics.items() if Problem.parse(key).op == op}


def test_a_pin_serves_in_the_plan_and_at_the_next_start(runner: Any, tmp_path: Path) -> None:
    cache = tmp_path / "c.json"
    runner.autotune(cache=cache, budget_s=6.0, wanted=WANTED, seed=0, memory_limit="4x")
    before = dict(read_cache(cache, None).verdicts)
    pinned = packed(runner, "experts")
    update_pins(pins_path(cache), {"experts": pinned, "linear": DEFAULT})
    report = runner.autotune(cache=cache, budget_s=6.0, wanted=WANTED, seed=0)
    assert (report.outcome.fresh, tactics(runner, "experts"), tactics(runner, "linear")) == (
        [],
        {pinned.name},
        {"default"},
    )
    assert report.plan.active
    assert dict(read_cache(cache, None).verdicts) == before
    needed, why = runner.should_autotune(cache=cache, wanted=WANTED)
    assert not needed, why
    runner.autotune(cache=cache, budget_s=6.0, wanted=WANTED, seed=0)
    assert tactics(runner, "experts") == {pinned.name}
    layouts = {
        layout for b in runner.attachment.bindings.values() if b.spec.name == "experts" for layout in b.prepared.layouts
    }
    assert len(layouts) == 1
    update_pins(pins_path(cache), {"experts": None, "linear": None})
    needed, why = runner.should_autotune(cache=cache, wanted=WANTED)
    assert needed
    assert "not pinned" in why
    runner.autotune(cache=cache, budget_s=6.0, wanted=WANTED, seed=0)
    assert tactics(runner, "experts") != {pinned.name}
