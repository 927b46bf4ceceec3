"""What a tuning holds beside the model, counted in bytes: prepared weights of all races, live inputs, and calls."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import tunebook as tb
from tunebook.devices import Flush
from tunebook.dispatch import FREE, collecting
from tunebook.records import Timed, Verdict
from tunebook.store import resolve_policy
from tunebook.tuner import Collection, Session

MEGABYTE = 1 << 20
LAYOUTS = tuple(range(6))
SECONDS = (0.002, 0.0025, 0.003, 0.0035, 0.004, 0.0045)


class Model:
    """Layers of one op, with a weight of so many bytes each and tactics that each prepare a layout of its own.

    `peak` is the most that was prepared at once, and needed by calls; `layers` counts a tactic's calls by layer; `made` is
    how often a layout was prepared, all layers together.
    """

    def __init__(
        self,
        lab: Any,
        count: int,
        size: int,
        *,
        seconds: Sequence[float] = SECONDS,
        sigma: float | None = None,
        workspace: Sequence[int] = (0,) * len(LAYOUTS),
    ) -> None:
        self.lab = lab
        self.held = self.peak = self.made = 0
        self.layers: dict[int, Counter[int]] = {number: Counter() for number in range(len(seconds))}

        @tb.op("layer", buckets={"x": {0: tb.pow2(name="M")}}, constants=("w",))
        def layer(x: Tensor, w: Tensor) -> Tensor:
            lab.machine.work(0.005, sigma)
            return x * 2

        @layer.runner(
            "packed",
            {"number": tuple(range(len(seconds)))},
            version="1",
            prepare=self._prepare,
            layout=lambda number: f"layout {number}",
            workspace=lambda *args, number: workspace[number],
        )
        def packed(x: Tensor, prepared: tuple[Tensor, int], *, number: int) -> Tensor:
            self.peak = max(self.peak, self.held + workspace[number])
            self.layers[number][prepared[1]] += 1
            lab.machine.work(seconds[number], sigma)
            return x * 2

        weights = [torch.zeros(size // 4) for _ in range(count)]  # pages that nobody writes to take no memory
        self.bindings = [layer.bind(weight) for weight in weights]
        self._places = {weight.data_ptr(): place for place, weight in enumerate(weights)}

    def _prepare(self, w: Tensor, *, number: int) -> tuple[Tensor, int]:
        made, size = torch.empty_like(w), w.nbytes
        self.made += 1
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(made, self._released, size)
        return made, self._places[w.data_ptr()]

    def _released(self, size: int) -> None:
        self.held -= size

    def tune(self, budget: float | None = None, sizes: Sequence[int] = (1,), width: int = 3) -> dict[str, Verdict]:
        """The verdicts, by key, of tuning a call of each layer at each size."""
        FREE.install({}, replace=True)
        collection, machine = Collection(self.lab.machine), self.lab.machine
        with collecting(collection), torch.inference_mode():
            for size in sizes:
                for binding in self.bindings:
                    binding.caller()(torch.ones(size, width))
        for calls in self.layers.values():
            calls.clear()
        self.lab.session = Session(resolve_policy(), cache=str(self.lab.cache), device=machine, seed=0)
        outcome = self.lab.session.tune(collection, budget)
        self.lab.session.publish(outcome)
        self.lab.session.finish()
        return outcome.verdicts


@pytest.mark.parametrize("limit", [7, 13, 49])
def test_a_race_rotates_over_as_many_layers_as_fit_and_no_layout_is_refused(lab: Any, limit: int) -> None:
    """Eight layers, six layouts of a megabyte: unbounded, a race would prepare 48."""
    lab.machine.free = 4 * limit * MEGABYTE
    model = Model(lab, 8, MEGABYTE)
    (verdict,) = model.tune().values()
    assert model.peak <= limit * MEGABYTE
    assert verdict.rejected == ()
    assert verdict.seen == 1 + len(LAYOUTS)
    assert (verdict.winner, verdict.status) == ("packed[number=0]", "proven")
    assert {len(model.layers[number]) for number in LAYOUTS} == {min(8, limit // len(LAYOUTS))}
    assert {tuple(model.layers[number]) for number in LAYOUTS} == {tuple(model.layers[0])}, "the same layers for each"


@pytest.mark.parametrize(("limit", "flushed"), [(7, True), (40, True), (49, False)])
def test_fewer_layers_than_there_should_be_are_made_cold_by_flushes(lab: Any, limit: int, flushed: bool) -> None:
    """Their weights are more than a flush in any case, but a call may read a part of them."""
    flushes: list[int] = []

    class Counted(Flush):
        def __call__(self) -> None:
            flushes.append(1)

    lab.machine.free = 4 * limit * MEGABYTE
    lab.machine.flush = lambda: Counted(1)
    Model(lab, 8, MEGABYTE).tune()
    assert bool(flushes) == flushed


def test_the_bound_is_a_share_of_the_weights_that_are_tuned(lab: Any) -> None:
    """Forty layers of 8 MiB, and memory without an end: prepared weights and inputs take 1.1 times the weights."""
    model = Model(lab, 40, 8 * MEGABYTE)
    model.tune()
    assert model.peak <= 1.1 * 40 * 8 * MEGABYTE
    assert all(model.layers[number] for number in LAYOUTS)


def test_live_inputs_are_within_the_bound(lab: Any) -> None:
    """Eight inputs of a megabyte each are kept, and a problem meets copies of them: three layouts' room is left."""
    lab.machine.free = 4 * 19 * MEGABYTE
    model = Model(lab, 8, MEGABYTE, seconds=(0.002, 0.0025))
    model.tune(width=MEGABYTE // 4)
    assert model.peak <= 3 * MEGABYTE
    assert all(model.layers.values())


def test_what_does_not_fit_beside_better_looks_is_rejected_by_name(lab: Any) -> None:
    lab.machine.free = 4 * 4 * MEGABYTE + MEGABYTE
    model = Model(lab, 8, MEGABYTE)
    (verdict,) = model.tune().values()
    assert model.peak <= 4.25 * MEGABYTE
    assert [(r.tactic, r.reason) for r in verdict.rejected] == [
        ("packed[number=4]", "memory"),
        ("packed[number=5]", "memory"),
    ]
    assert "0.00 GB more for the race" in verdict.rejected[0].detail
    assert verdict.winner == "packed[number=0]"


def test_what_a_call_needs_is_within_the_bound(lab: Any) -> None:
    """The slowest tactic's call needs four megabytes of seven: others' weights make room for its check."""
    lab.machine.free = 4 * 7 * MEGABYTE + MEGABYTE
    slow = (0.002, 0.0025, 0.003, 0.0035, 0.004, 0.03)
    model = Model(lab, 8, MEGABYTE, seconds=slow, workspace=(0, 0, 0, 0, 0, 4 * MEGABYTE))
    (verdict,) = model.tune().values()
    assert model.layers[5], "it was checked"
    assert model.peak <= 7.25 * MEGABYTE
    assert verdict.rejected == ()


def test_buckets_of_the_same_layers_share_what_was_prepared(lab: Any) -> None:
    lab.machine.free = 4 * 13 * MEGABYTE
    model = Model(lab, 2, MEGABYTE)
    assert len(model.tune(sizes=(1, 2, 4, 8))) == 4
    assert model.made == 2 * len(LAYOUTS)


def test_a_race_that_goes_on_with_fewer_tactics_rotates_over_more_layers(lab: Any) -> None:
    """Four of six leave in the first rounds; the two that are left are told apart on more layers."""
    lab.machine.free = 4 * 8 * MEGABYTE
    seconds = (0.0020, 0.00201, 0.006, 0.006, 0.006, 0.006)
    model = Model(lab, 8, MEGABYTE, seconds=seconds, sigma=0.1)
    (verdict,) = model.tune(budget=3.0).values()
    written = [
        line.trial.rounds
        for line in lab.run().trials
        if isinstance(line.trial, Timed) and line.trial.tactic == "packed[number=0]"
    ]
    assert max(number for rounds in written for number in rounds) >= 8, "it went on after the first pass"
    assert len(model.layers[0]) == len(model.layers[1]) >= 3
    assert {len(model.layers[number]) for number in (2, 3, 4, 5)} == {1}
    assert model.peak <= 8 * MEGABYTE
    assert verdict.winner in ("packed[number=0]", "packed[number=1]")


def test_when_a_tuning_ends_its_unfinished_races_hold_nothing(lab: Any) -> None:
    """Bindings may keep prepared weights for the plan; what they release is free at once, without a garbage collection."""
    lab.machine.free = 4 * 64 * MEGABYTE
    near = tuple(0.002 + 0.00001 * number for number in LAYOUTS)
    model = Model(lab, 2, MEGABYTE, seconds=near, sigma=0.3)
    gc.disable()
    try:
        (verdict,) = model.tune(budget=0.5).values()
        assert verdict.status == "unresolved"
        assert model.held > 0
        for binding in model.bindings:
            binding.prepared.clear()
        assert model.held == 0
    finally:
        gc.enable()
