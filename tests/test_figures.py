"""Figures as people read them."""

from __future__ import annotations

import pytest

from tunebook._figures import duration, size


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (8.5e-7, "850 ns"),
        (1.234e-5, "12.3 µs"),
        (4.561e-3, "4.56 ms"),
        (1.0, "1.0 s"),
        (7.82, "7.8 s"),
        (999.94, "999.9 s"),
        (3600, "3,600 s"),
        (1.5e6, "1,500,000 s"),
        (0, "0 ns"),
    ],
)
def test_a_duration_has_the_unit_that_suits_it(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_536_000, "1.54 MB"),
        (2_750_000_000, "2.75 GB"),
        (1_234_500_000_000, "1,234.50 GB"),
    ],
)
def test_a_size_is_in_powers_of_ten(count: int, shown: str) -> None:
    assert size(count) == shown
