"""FlashInfer under tunebook on several ranks: real processes, a real gloo group, FlashInfer's own autotuner on the CPU."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
for folder in (ROOT, ROOT / "benchmarks"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

from _rank_processes import Ended, run_ranks  # noqa: E402 - found beside the benchmarks
from tests.integrations.flashinfer_ranks import BUCKETS, faults, start  # noqa: E402 - found from the root

from tunebook.integrations.flashinfer._team import Met, matched, part, shares  # noqa: E402

Ranks = Callable[..., list[Ended]]


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    """``ranks(size, **keywords)``: how each rank's `start` ended."""
    if importlib.util.find_spec("flashinfer") is None:
        pytest.skip("flashinfer-python is not installed; `make test` installs it")

    def run(size: int = 2, **keywords: Any) -> list[Ended]:
        return run_ranks(partial(start, **keywords), size, tmp_path)

    return run


def values(ended: list[Ended], turn: int = 0) -> list[dict[str, Any]]:
    assert all(one.error is None for one in ended), [one.error or one.log for one in ended]
    return [one.value[turn] for one in ended]


@pytest.mark.parametrize("by_rank", [True, False])
def test_ranks_share_the_work_and_serve_the_same(ranks: Ranks, by_rank: bool) -> None:
    ended = ranks(starts=2, by_rank=by_rank)
    first = values(ended)
    assert [one["served"] for one in first] == [[3] * 4] * 2
    assert sum(one["raced"] for one in first) == len(BUCKETS)
    assert all(one["raced"] for one in first)
    assert [one["fresh"] for one in first] == [4, 4]
    assert [len(one["said"]) for one in first] == [one["raced"] for one in first], "each winner is told by one rank"
    assert all(one["reduced"] == [] and one["group is back"] and one["cache"] for one in first)
    assert first[0]["runs"] == first[1]["runs"]
    assert len(first[0]["keys"]) == 4
    assert (first[0]["keys"] == first[1]["keys"]) is not by_rank
    second = values(ended, 1)
    assert [(one["raced"], one["cached"], one["served"]) for one in second] == [(0, 4, [3] * 4)] * 2


def test_ranks_that_would_choose_differently_serve_the_same(ranks: Ranks) -> None:
    one, two = values(ranks(favourite=(2, 5)))
    assert one["served"] == two["served"]
    assert set(one["served"]) == {2, 5}  # each problem by the rank that raced it
    assert one["winners"] == two["winners"]


def test_a_tactic_that_one_rank_cannot_serve_is_served_by_none(ranks: Ranks) -> None:
    one, two = values(ranks(refuses=(3,)))
    assert one["served"] == two["served"]
    assert 3 not in one["served"]
    assert any("which not every rank can serve" in miss for miss in one["misses"])


@pytest.mark.parametrize("who", [0, 1])
def test_what_one_rank_knows_all_serve_without_measuring(ranks: Ranks, who: int) -> None:
    for one in values(ranks(cached=(who,), favourite=(4, 4))):
        assert one["in the block"] == -1, "where all have yet to agree"
        assert (one["raced"], one["fresh"], one["cached"], one["served"]) == (0, 0, 4, [4] * 4)


def test_where_both_know_something_else_the_lower_rank_counts(ranks: Ranks) -> None:
    for one in values(ranks(cached=(0, 1), favourite=(4, 2))):
        assert (one["raced"], one["served"]) == (0, [4] * 4)


def test_nothing_is_tuned_for_replay(ranks: Ranks) -> None:
    for one in values(ranks(options={"policy": "replay"})):
        assert (one["raced"], one["keys"], one["served"], one["cache"]) == (0, [], [-1] * 4, False)


def test_a_budget_that_is_spent_leaves_the_default_on_all(ranks: Ranks) -> None:
    for one in values(ranks(options={"budget_s": 1e-9})):
        assert (one["raced"], one["fresh"], one["served"]) == (0, 0, [-1] * 4)


@pytest.mark.parametrize(
    ("on_one", "field"), [({"policy": "fresh"}, "policy=fresh"), ({"thorough": True}, "thorough=True")]
)
def test_ranks_that_were_started_differently_say_so_on_all(ranks: Ranks, on_one: dict[str, Any], field: str) -> None:
    for one in ranks(on_one=on_one):
        assert one.error is not None
        kind, text = one.error
        assert kind == "ContradictionError"
        assert "rank 1 has " + field in text


def test_a_dummy_run_that_fails_on_one_rank_is_told_to_the_others(ranks: Ranks) -> None:
    one, two = ranks(fails=1)
    assert two.error == ("ZeroDivisionError", "in the dummy run")
    assert one.error is not None
    assert one.error[0] == "RankError"
    assert "rank 1 failed while it was in its dummy run: ZeroDivisionError" in one.error[1]


def test_a_rank_that_dies_ends_the_wait_of_the_others(ranks: Ranks) -> None:
    one, _ = ranks(dies=1, timeout=4.0)
    assert one.error is not None
    assert one.error[0] == "RankError"
    assert "rank 1 died or hangs" in one.error[1]


def test_a_rank_that_calls_nothing_keeps_the_others_from_nothing(ranks: Ranks) -> None:
    one, two = values(ranks(silent=0))
    assert (one["raced"], one["keys"], one["cache"]) == (0, [], False)
    assert (two["raced"], two["served"]) == (len(BUCKETS), [3] * 4)


def test_a_block_inside_a_block_is_tuned_by_all_ranks_together(ranks: Ranks) -> None:
    ended = values(ranks(nested=True))
    assert sum(one["raced"] for one in ended) == len(BUCKETS)
    assert all((one["fresh"], one["served"], one["group is back"]) == (4, [3] * 4, True) for one in ended)


def test_a_group_of_one_is_no_group(ranks: Ranks) -> None:
    ended = ranks(1, starts=2)
    assert (values(ended)[0]["raced"], values(ended)[0]["reduced"]) == (len(BUCKETS), [])
    (second,) = values(ended, 1)
    assert (second["raced"], second["in the block"], second["group is back"]) == (0, 3, True)


def test_ranks_may_have_one_cache(ranks: Ranks) -> None:
    ended = ranks(starts=2, shared=True)
    assert len(set(values(ended)[0]["runs"])) == 2, "a run file for each rank"
    for one in values(ended, 1):
        assert (one["raced"], one["cached"], one["served"]) == (0, 4, [3] * 4)


def test_what_another_rank_left_out_is_counted_and_named(ranks: Ranks) -> None:
    one, two = values(ranks(on_one={"budget_s": 1e-9}))
    assert 0 < one["fresh"] == two["fresh"] == len(BUCKETS) - one["left out"]
    assert one["left out"] == two["left out"]
    assert sum("left out by rank 1" in miss for miss in one["misses"]) == one["left out"]
    assert one["served"] == two["served"]


BEFORE_ALL_HAVE_MET = (
    "Session _untunable ZeroDivisionError",
    "Ledger known KeyboardInterrupt",
    "Team turns ZeroDivisionError",
    "Session _raced ZeroDivisionError",
    "Session _raced KeyboardInterrupt",
    "Team exchange ZeroDivisionError",
    "_together all_that_may_serve ZeroDivisionError",
    "Team agree KeyboardInterrupt",
)
AFTERWARDS = (
    "Session _install ZeroDivisionError",
    "Ledger conclude KeyboardInterrupt",
    "Session _publish ZeroDivisionError",
)


def test_wherever_one_rank_fails_the_others_do_not_wait_and_the_next_block_is_as_ever(
    ranks: Ranks, tmp_path: Path
) -> None:
    points = [*BEFORE_ALL_HAVE_MET, *AFTERWARDS]
    ended = run_ranks(partial(faults, points=points), 2, tmp_path / "faults")
    assert all(one.error is None and one.value for one in ended), [one.error or one.log for one in ended]
    one, two = (rank.value for rank in ended)
    assert [each["ended"] for each in two] == [f"{point.split()[2]}: at this point" for point in points] + [""]
    for point, each in zip(points, one, strict=False):
        if point in BEFORE_ALL_HAVE_MET:
            verb = "was ended" if "Keyboard" in point else "failed"
            assert each["ended"].startswith(f"RankError: rank 1 {verb} while it was "), point
        else:
            assert each["ended"] == "", point
    assert one[-1]["ended"] == ""
    assert all((each["back"], each["threads"]) == ("True", "") for each in (*one, *two))


met = st.builds(
    lambda bare, extra, weight, known: Met(f"{bare}{extra}", bare, weight, not known, None, False),
    st.sampled_from("abc"),
    st.sampled_from(["", "x", "y"]),
    st.floats(0.25, 1e9),
    st.booleans(),
)


@given(st.lists(st.lists(met, max_size=8, unique_by=lambda one: one.key), min_size=1, max_size=4), st.data())
def test_each_problem_of_each_rank_is_in_one_share_and_tuned_by_one_that_met_it(
    every: list[list[Met]], data: st.DataObject
) -> None:
    devices = data.draw(st.lists(st.sampled_from("pq"), min_size=len(every), max_size=len(every)))
    found = shares(every, devices)
    for place, mets in enumerate(every):
        assert sorted(one.keys[place] for one in found if place in one.keys) == sorted(met.key for met in mets)
    open_ones = {(place, met.key) for place, mets in enumerate(every) for met in mets if met.open}
    for one in found:
        able = {place for place, key in one.keys.items() if (place, key) in open_ones}
        assert (one.tuned_by in able) if able else one.tuned_by is None
    assert shares(every, devices) == found
    for device in set(devices):
        parts = [part(found, devices, place) for place in range(len(every)) if devices[place] == device]
        assert sum(parts) == pytest.approx(1.0) or not any(parts)


def test_the_time_of_a_device_is_shared_by_the_weight_of_what_its_ranks_tune() -> None:
    every = [
        [Met(f"{name} {weight}", name, weight, True, None, False)]
        for name, weight in (("a", 3.0), ("b", 1.0), ("c", 9.0))
    ]
    assert [part(shares(every, "ppq"), "ppq", place) for place in range(3)] == [0.75, 0.25, 1.0]
    assert part(shares([*every, []], "ppqq"), "ppqq", 3) == 0.0


@given(st.lists(met, max_size=8, unique_by=lambda one: one.key), st.integers(2, 4))
def test_ranks_that_met_the_same_keys_are_matched_by_key_in_whatever_order(mets: list[Met], size: int) -> None:
    every = [mets if place % 2 else mets[::-1] for place in range(size)]
    assert all({met.key for met in group.values()} == {group[0].key} for group in matched(every))
    assert len(matched(every)) == len(mets)


@given(st.lists(st.sampled_from("abc"), max_size=8), st.integers(2, 4))
def test_ranks_whose_keys_hold_their_number_are_matched_in_order(bares: list[str], size: int) -> None:
    every = [
        [Met(f"{bare}{turn} of {place}", bare, 1.0, True, None, False) for turn, bare in enumerate(bares)]
        for place in range(size)
    ]
    for group in matched(every):
        assert len(group) == size
        assert len({met.key.split(" of ")[0] for met in group.values()}) == 1
