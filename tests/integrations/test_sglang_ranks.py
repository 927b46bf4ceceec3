"""SGLang under tunebook with tensor parallelism: real processes, a real gloo group, SGLang's step as in `sglang_stage`."""

from __future__ import annotations

import importlib.util
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

from _rank_processes import run_ranks  # noqa: E402 - found beside the benchmarks
from tests.integrations.engine_wheels import SGLANG  # noqa: E402 - found from the root
from tests.integrations.sglang_ranks import BUCKETS, start  # noqa: E402

Ranks = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    """``ranks(**keywords)``: what `start` gave on each of two ranks, and its log."""
    if importlib.util.find_spec("flashinfer") is None or not SGLANG.is_there:
        pytest.skip("FlashInfer and SGLang's files are not there; `make test` installs them")

    def run(**keywords: Any) -> list[dict[str, Any]]:
        ended = run_ranks(partial(start, **keywords), 2, tmp_path)
        assert all(one.error is None and one.value for one in ended), [one.error or one.log for one in ended]
        return [{**one.value, "log": one.log} for one in ended]

    return run


def test_ranks_share_the_work_and_keep_the_same(ranks: Ranks) -> None:
    one, two = ranks()
    for each in (one, two):
        assert each["served"] == [3] * 2 * len(BUCKETS)
        assert each["flashinfer"] == [], "it has found all of them tuned"
        assert (each["caches"], each["runs"], each["group after"]) == (True, 1, False)
        assert each["raced"]
    assert one["files"] == two["files"]
    assert one["generations"] == two["generations"], "SGLang discards the files of ranks that disagree"


def test_where_one_rank_has_no_session_flashinfer_tunes_on_all(ranks: Ranks) -> None:
    one, two = ranks(refused=1)
    assert one["flashinfer"] == two["flashinfer"] != []
    assert one["served"] == two["served"] == [3] * 2 * len(BUCKETS)
    assert (one["raced"], two["raced"], one["caches"]) == (0, 0, False)
    assert one["files"] == two["files"]


def test_where_one_rank_fails_all_forget_and_flashinfer_tunes_in_step(ranks: Ranks) -> None:
    one, two = ranks(fails=1)
    assert two["left"] == []
    assert one["later"] == two["later"] == [3] * len(BUCKETS), "what an earlier step brought is still there"
    assert one["flashinfer"] == two["flashinfer"] != []
    assert one["served"] == two["served"] == [3] * 2 * len(BUCKETS)
    assert one["files"] == two["files"]
