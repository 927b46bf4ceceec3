"""Four ranks, one killed at each of eight stages: the other three end with an error that names it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from _faults import Figure
from _faults_ranks import rank_figures


@pytest.mark.faults
def test_survivors_name_the_rank_that_died(record: Callable[[Iterable[Figure]], None], tmp_path: Path) -> None:
    record(rank_figures(tmp_path))
