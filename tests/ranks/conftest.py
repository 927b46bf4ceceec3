"""Ranks are processes of their own: what they run is found there by its name, and how they are started, beside the benchmarks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
for folder in (ROOT, ROOT / "benchmarks"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

from _rank_processes import Ended, run_ranks  # noqa: E402 - found beside the benchmarks
from tests.ranks.rank_workers import tune  # noqa: E402 - found from the root


@pytest.fixture
def ranks(tmp_path: Path) -> Callable[..., list[Ended]]:
    """``ranks(function, size, *arguments, **keywords)``: how each rank ended. Its files are in `tmp_path`."""

    def run(function: Callable[..., Any] = tune, size: int = 2, *arguments: Any, **keywords: Any) -> list[Ended]:
        return run_ranks(partial(function, **keywords), size, tmp_path, *arguments)

    return run
