"""The problems of benchmarks/flashinfer_protocol.py: eight tactics that compute the same, and FlashInfer's protocol."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.append(str(BENCHMARKS))

import _flashinfer_problems as problems  # noqa: E402 - found from the root
from tests.integrations.flashinfer_stage import Stage  # noqa: E402


def test_twelve_problems_of_eight_tactics(stage: Stage) -> None:
    assert (len(problems.PROBLEMS), len(problems.TACTICS)) == (12, 8)
    assert len({product.name for product in problems.PROBLEMS}) == 12


@pytest.mark.parametrize("product", [*problems.QUICK_PROBLEMS, problems.Product(8, 96, 64)], ids=lambda p: p.name)
def test_all_tactics_compute_the_same_product(stage: Stage, product: Any) -> None:
    candidates = problems.Problem(product, copies_bytes=1).candidates()
    expected, *others = [candidate.calls[0]() for candidate in candidates]
    assert len(others) == 7
    for other in others:
        torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-3)


def test_each_call_meets_the_next_copy_of_the_weights() -> None:
    product = problems.Product(1, 8, 16)
    weights = problems.Weights(product, copies_bytes=4 * product.columns * product.inner * 4)
    met = [weights.next()[0].data_ptr() for _ in range(8)]
    assert len(set(met)) == 4
    assert met[:4] == met[4:]


def test_flashinfers_protocol_is_three_calls_and_the_mean_of_ten(stage: Stage) -> None:
    with problems.on_the_cpu() as fresh:
        tuner = fresh()
        calls: list[Any] = []
        milliseconds = tuner._profile_single_kernel(
            lambda inputs, tactic: calls.append(tactic), [], 7, stage.module.TuningConfig()
        )
        assert calls == [7] * 13
        assert milliseconds > 0
        with stage.module.autotune(True):
            choice = problems.Problem(problems.QUICK_PROBLEMS[0], copies_bytes=1).choose(tuner)
    assert choice in [problems.name_of(*tactic) for tactic in problems.TACTICS]
