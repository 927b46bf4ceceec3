"""vLLM's FlashInfer warm-up under tunebook on two ranks: real processes, a real gloo group; `vllm_stage` says what is a stub."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
for folder in (ROOT, ROOT / "benchmarks"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

from _rank_processes import run_ranks  # noqa: E402 - found beside the benchmarks
from tests.integrations.vllm_ranks import starts  # noqa: E402 - found from the root
from tests.integrations.vllm_stage import installed  # noqa: E402

from tunebook.store import read_cache  # noqa: E402


def on_two_ranks(directory: Path, *faults: str) -> list[list[dict[str, Any]]]:
    """By start, what it gave on each rank."""
    if importlib.util.find_spec("flashinfer") is None:
        pytest.skip("flashinfer-python is not installed; `make test` installs it")
    installed()
    ended = run_ranks(partial(starts, faults=list(faults)), 2, directory)
    assert all(one.error is None for one in ended), [one.error or one.log for one in ended]
    return [list(both) for both in zip(*(one.value for one in ended), strict=True)]


def test_ranks_share_the_tuning_and_the_next_start_measures_nothing(tmp_path: Path) -> None:
    first, second = on_two_ranks(tmp_path, "", "")
    for one in first:
        assert (one["served"], one["own"], one["failed"], one["group"]) == (3, 0, [], False)
        assert one["samples"] > 0
    assert [(one["served"], one["samples"], one["failed"]) for one in second] == [(3, 0, [])] * 2
    (directory,) = (tmp_path / "vllm").iterdir()
    verdicts = [
        read_cache(directory / f"autotune_configs_dp0_rank{rank}.tunebook.json", None).verdicts for rank in (0, 1)
    ]
    assert [len(one) for one in verdicts] == [5, 5]
    runs = {verdict.run for one in verdicts for verdict in one.values()}
    assert len(runs) == 2, "each rank has raced some of them"
    files = [json.loads((directory / f"autotune_configs_dp0_rank{rank}.json").read_text()) for rank in (0, 1)]
    winners = [[value[1] for key, value in file.items() if key.startswith("(")] for file in files]
    assert winners == [[3] * 5] * 2


def test_where_one_rank_cannot_go_on_flashinfer_tunes_on_all(tmp_path: Path) -> None:
    begins, tunes, installs = on_two_ranks(tmp_path, "begins", "tunes", "installs")
    for one, why in zip(begins, ("another rank could not go on", "TUNEBOOK_BUDGET_S"), strict=True):
        assert (one["runs"], one["served"]) == (1, 3)
        assert one["own"] == one["samples"] > 0
        (line,) = one["failed"]
        assert why in line
    for one, why in zip(tunes, ("rank 1 failed", "MemoryError: no room"), strict=True):
        assert (one["runs"], one["served"]) == (2, 3)
        assert one["own"] > 0
        (line,) = one["failed"]
        assert why in line
    for one in installs:
        assert (one["runs"], one["served"]) == (2, 3)
        (line,) = one["failed"]
        assert line.endswith("MemoryError: no room")
    first, second = (one["own"] for one in installs)
    assert first == second > 0, "a rank that knows more than another does not meet it where timings are added up"
