"""The two-way fit finds what was put in, through drift and spikes; its losses and degrees of doubt are those of simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebook.stats import Fit, Matrix, expected_losses, two_way

SHAPES = st.tuples(st.integers(2, 8), st.integers(3, 30), st.integers(0, 1 << 30))


def field(tactics: int, rounds: int, seed: int, sigma: float = 0.1) -> Matrix:
    return np.asarray(np.random.default_rng(seed).normal(0, sigma, (tactics, rounds)))


def contrasts(fit: Fit) -> Matrix:
    return fit.effects - fit.effects[0]


def test_without_noise_the_fit_is_what_was_put_in() -> None:
    effects, levels = np.array([0.3, 0.0, 0.7, 0.1]), np.linspace(-2, 3, 9)
    fit = two_way(effects[:, None] + levels)
    assert contrasts(fit) == pytest.approx(effects - effects[0])
    assert np.diff(fit.levels) == pytest.approx(np.diff(levels))
    assert fit.leader == 1
    assert fit.outliers == 0


@given(SHAPES, st.floats(-5, 5))
def test_neither_another_unit_nor_a_drift_of_the_machine_changes_the_contrasts(
    shape: tuple[int, int, int], unit: float
) -> None:
    logs = field(*shape)
    drift = np.cumsum(np.random.default_rng(shape[2] + 1).normal(0, 0.5, shape[1]))
    moved = two_way(logs + unit + drift)
    fit = two_way(logs)
    assert contrasts(moved) == pytest.approx(contrasts(fit), abs=1e-6)
    assert moved.scale == pytest.approx(fit.scale, rel=1e-5, abs=1e-9)


@given(SHAPES)
def test_the_order_of_the_tactics_does_not_matter(shape: tuple[int, int, int]) -> None:
    logs = field(*shape)
    turned = two_way(logs[::-1])
    assert turned.effects[::-1] - turned.effects[-1] == pytest.approx(contrasts(two_way(logs)), abs=1e-6)


def spread_of(estimate: object, logs: list[Matrix]) -> float:
    assert callable(estimate)
    return float(np.std([(lambda e: e[1] - e[0])(estimate(values)) for values in logs]))


def test_under_normal_noise_it_is_nearly_as_good_as_the_mean_and_better_than_medians() -> None:
    logs = [field(8, 30, seed) for seed in range(400)]
    mean = spread_of(lambda values: values.mean(axis=1), logs)
    median = spread_of(lambda values: np.median(values, axis=1), logs)
    fit = spread_of(lambda values: two_way(values).effects, logs)
    assert fit <= 1.06 * mean
    assert fit <= 0.9 * median


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_spikes_do_it_little_harm_and_are_counted(share: float) -> None:
    quiet = [field(8, 30, seed) for seed in range(200)]
    spiky, counted = [], []
    for seed, logs in enumerate(quiet):
        rng = np.random.default_rng((9, seed))
        spiky.append(logs + (rng.random(logs.shape) < share) * np.log(rng.uniform(3, 10, logs.shape)))
        counted.append(two_way(spiky[-1]).outliers)
    fit = [spread_of(lambda values: two_way(values).effects, logs) for logs in (quiet, spiky)]
    mean = [spread_of(lambda values: values.mean(axis=1), logs) for logs in (quiet, spiky)]
    assert fit[1] <= 1.5 * fit[0]
    assert mean[1] >= 2.5 * mean[0]
    assert np.mean(counted) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("tactics", [2, 3, 4, 8, 20])
@pytest.mark.parametrize("rounds", [8, 40])
def test_the_scale_is_that_of_one_sample_and_not_far_below_it(tactics: int, rounds: int) -> None:
    scales = [two_way(field(tactics, rounds, seed)).scale / 0.1 for seed in range(200)]
    assert 0.95 <= np.median(scales) <= 1.35
    assert np.quantile(scales, 0.05) >= 0.6


def test_one_round_and_one_tactic_are_fitted_too() -> None:
    single = two_way(np.array([[0.2], [0.1]]))
    assert single.leader == 1
    alone = two_way(np.array([[0.1, 0.4, 0.2]]))
    assert alone.levels + alone.effects[0] == pytest.approx([0.1, 0.4, 0.2])
    assert expected_losses(alone, np.random.default_rng(0)) == pytest.approx([0.0])


def test_dependence_between_rounds_is_seen_and_independence_is_not_taken_for_it() -> None:
    def inflation(rho: float, seed: int) -> float:
        values = field(6, 40, seed)
        for r in range(1, 40):
            values[:, r] = rho * values[:, r - 1] + math.sqrt(1 - rho**2) * values[:, r]
        return two_way(values).inflation

    independent = [inflation(0.0, seed) for seed in range(40)]
    dependent = [inflation(0.6, seed) for seed in range(40)]
    assert np.median(independent) <= 1.1
    assert np.median(dependent) == pytest.approx(1.6 / 0.4, rel=0.35)
    assert two_way(field(6, 7, 0)).inflation == 1, "too few rounds to tell"


def test_a_loss_is_the_distance_to_the_best_where_nothing_is_uncertain() -> None:
    logs = np.log(np.array([[1.0] * 8, [1.2] * 8, [1.1] * 8]))
    losses = expected_losses(two_way(logs), np.random.default_rng(0))
    assert losses == pytest.approx([0.0, math.log(1.2), math.log(1.1)], abs=1e-6)


def test_after_one_round_nothing_is_certain() -> None:
    losses = expected_losses(two_way(np.array([[0.0], [0.3], [0.1]])), np.random.default_rng(0))
    assert losses == pytest.approx([0.3, 0.0, 0.2])


@pytest.mark.parametrize(("tactics", "rounds", "gap"), [(2, 10, 0.05), (4, 20, 0.03), (8, 30, 0.02)])
def test_an_expected_loss_is_about_what_choosing_the_leader_costs(tactics: int, rounds: int, gap: float) -> None:
    """Where effects come from a wide field, so that a posterior without prior knowledge is right."""
    rng = np.random.default_rng(3)
    foretold, real = [], []
    for _ in range(400):
        truth = rng.uniform(0, gap * tactics, tactics)
        fit = two_way(truth[:, None] + rng.normal(0, 0.1, (tactics, rounds)))
        foretold.append(float(expected_losses(fit, rng)[fit.leader]))
        real.append(float(truth[fit.leader] - truth.min()))
    assert np.mean(real) <= 1.3 * np.mean(foretold), "too sure"
    assert np.mean(foretold) <= 3 * np.mean(real) + 1e-3, "never sure"


@given(SHAPES)
def test_losses_are_finite_and_not_negative_and_the_leader_has_the_least(shape: tuple[int, int, int]) -> None:
    fit = two_way(field(*shape))
    losses = expected_losses(fit, np.random.default_rng(shape[2]))
    assert np.isfinite(losses).all()
    assert (losses >= 0).all()
    assert losses[fit.leader] == losses.min()
    assert losses - losses.min() == pytest.approx(fit.effects - fit.effects.min())
