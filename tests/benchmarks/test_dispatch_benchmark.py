"""dispatch.py: each of its calls is really served by the winner, and its figures are there without FlashInfer too."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from _dispatch_flashinfer import HOW_TO_INSTALL, missing
from _dispatch_ours import floor, variants, with_entries

from dispatch import FIGURES, Batch, Pair, measure, ratio_of, turn_batch
from tunebook.dispatch import BINDINGS, FREE

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "dispatch.py"
WITHOUT_FLASHINFER = importlib.util.find_spec("flashinfer") is None


@pytest.mark.usefixtures("clean_ops")
def test_every_variant_serves_its_winner():
    def counted() -> Counter[str]:
        return sum((binding.scope.counts for binding in list(BINDINGS)), Counter(FREE.counts))

    earlier = counted()  # other tests' bindings may still be there
    with torch.inference_mode():
        made = variants()
        assert len(made) == len(FIGURES)
        for variant in made:
            for _ in range(2):  # resolved, then found
                assert torch.equal(variant.tuned(*variant.args), variant.direct(*variant.args)), variant.name
        counts = counted() - earlier
    assert not {what for what in counts if what.startswith("default")}


@pytest.mark.usefixtures("clean_ops")
def test_entries_are_as_many_shapes_all_served():
    held = with_entries(50)
    assert len({x.shape for x in held.tensors}) == 50
    assert len(FREE.tactics) == 50
    assert held.op(held.one) is held.one
    assert not FREE.counts


def test_the_floor_calls_what_it_looks_up():
    x = torch.ones(3)
    assert floor(x)(x) is x


def test_a_cost_is_the_difference_of_two_batches_by_call():
    calls: list[str] = []

    def batch(name: str) -> Batch:
        return Batch("f()", {"f": lambda: calls.append(name)}, 7)

    costs = measure([Pair("one", batch("tuned"), batch("direct"))], rounds=3)
    assert costs["one"].shape == (3,)
    assert calls.count("tuned") == calls.count("direct") == 4 * 7  # a round of warm-up and three


def test_tensors_in_turn_make_as_many_calls():
    met: list[int] = []
    batch = turn_batch(met.append, [1, 2, 3, 4], 10)
    assert batch.calls == 2
    batch.seconds()
    assert met == [1, 2, 3, 4] * 2


def test_a_ratio_survives_a_cost_that_noise_made_negative():
    ratio = ratio_of([1.0, 1.0, 1.0], [0.5, -0.2, 0.5])
    assert ratio.value == pytest.approx(2.0)


@pytest.mark.skipif(not WITHOUT_FLASHINFER, reason="FlashInfer is installed here")
def test_without_flashinfer_it_says_how_to_install_it_and_goes_on(tmp_path):
    assert (missing() or "").startswith(HOW_TO_INSTALL)
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--rounds", "1", "--json", str(figures)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert HOW_TO_INSTALL in done.stderr
    document = json.loads(figures.read_text())
    assert {"overhead_us", "growth_10000", *FIGURES} <= document["figures"].keys()
    assert set(document["goals"]) == {"overhead_us", "growth_10000"}
