"""Several ranks tune together: one result, one file, shared work, and an error that names whoever does not keep up."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _rank_processes import Ended
from tests.ranks.rank_workers import replay_sum, run_page, tune_in_subgroup, tune_model, tune_on_devices, tune_sum

import tunebook as tb
from tunebook.errors import UsageError
from tunebook.records import Timed
from tunebook.store import read_cache, read_run

Run = Callable[..., list[Ended]]

KEY = "demo::double|x.1=2|fp32|x.0≤{}"


def values(ended: list[Ended]) -> list[dict[str, Any]]:
    """What the ranks returned; none failed."""
    assert [one.error for one in ended] == [None] * len(ended), [one.log for one in ended]
    assert [one.code for one in ended] == [0] * len(ended)
    return [one.value for one in ended]


def errors(ended: list[Ended]) -> list[str]:
    """The errors of all ranks, ``class text``."""
    assert all(one.error is not None for one in ended), [one.value for one in ended]
    return [" ".join(one.error) for one in ended if one.error is not None]


def turns(one: dict[str, Any]) -> list[tuple[float, float]]:
    """From when to when a rank measured: from the message that says so to the last call before the next one."""
    found = []
    for (begin, text), (after, _) in itertools.pairwise(one["said"]):
        if ": timing " in text:
            found.append((begin, max(end for end in one["ends"] if begin < end < after)))
    return found


def overlap(one: list[tuple[float, float]], other: list[tuple[float, float]]) -> bool:
    return any(a < d and c < b for a, b in one for c, d in other)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_ranks_share_the_work_and_hold_the_same_bytes(ranks: Run, tmp_path: Path, size: int) -> None:
    every = values(ranks(size=size, sizes=[[64]]))
    assert len({one["winners"] for one in every}) == 1
    assert every[0]["tactics"] == {KEY.format(2**i): "napping[quick=true]" for i in range(7)}
    assert all(one["served"] == ["quick"] * 7 for one in every)
    assert all(one["published"] for one in every)

    (path,) = (tmp_path / "runs").iterdir()
    assert {one["run"] for one in every} == {str(path)}
    run = read_run(path)
    assert run.misses == ()
    assert run.footer is not None
    assert run.footer.problems == 7
    tuned_by = Counter({line.problem: line.rank for line in run.trials}.values())
    assert set(tuned_by) == set(range(size))  # every rank has its share, and each problem is tuned once
    assert tuned_by.total() == 7
    assert all(len({line.rank for line in run.trials if line.problem == key}) == 1 for key in run.verdicts)
    assert run.verdicts == dict(read_cache(tmp_path / "cache.json", None).verdicts)

    measured = [turns(one) for one in every]  # on one device, so never two at a time
    assert all(measured)
    assert not any(overlap(a, b) for a, b in itertools.combinations(measured, 2))


def test_ranks_on_different_devices_measure_at_the_same_time(ranks: Run) -> None:
    one, other = values(ranks(tune_on_devices))
    assert one["winners"] == other["winners"]
    for each in (one, other):
        assert any(text == "rank 1 has torch 9.1, rank 0 9.0; the tuning goes on" for _, text in each["said"])
    assert overlap(turns(one), turns(other))


def test_what_only_some_ranks_saw_is_tuned_by_them_and_held_by_all(ranks: Run, tmp_path: Path) -> None:
    every = values(ranks(size=3, sizes=[[4], [64], []]))
    assert len({one["winners"] for one in every}) == 1
    assert all(one["seen"] == 7 and one["served"] == ["quick"] * 7 for one in every)
    run = read_run(next((tmp_path / "runs").iterdir()))
    assert {line.rank for line in run.trials if line.problem == KEY.format(64)} == {1}
    assert {line.rank for line in run.trials} == {0, 1}


def test_ranks_with_other_caches_put_together_what_they_hold(ranks: Run, tmp_path: Path) -> None:
    options = [{"cache": str(tmp_path / "zero.json")}, {"cache": str(tmp_path / "one.json")}]
    every = values(ranks(sizes=[[2], [64]], options=options, start=[{"alone": [2]}, {"alone": [64]}]))
    assert len({one["winners"] for one in every}) == 1
    assert all(one["fresh"] == [] and one["seen"] == 7 for one in every)
    assert all(any("rank 1 started with another cache" in text for _, text in one["said"]) for one in every)
    assert len(read_cache(tmp_path / "zero.json", None).verdicts) == 7
    assert all(one["published"] for one in every)


def test_ranks_serve_what_was_shipped_and_put_together_what_only_some_find(ranks: Run, tmp_path: Path) -> None:
    shipped = tmp_path / "shipped.json"
    values(ranks(sizes=[[4]], options=[{"cache": str(shipped)}]))
    for name in ("port", "others ended"):
        (tmp_path / name).unlink()
    before = shipped.read_bytes()
    both, one_alone = [{"TUNEBOOK_CACHE_PATH": str(shipped)}], [{}, {"TUNEBOOK_CACHE_PATH": str(shipped)}]
    for variables, differ in ((both, False), (one_alone, True)):
        every = values(ranks(sizes=[[4]], variables=variables))
        assert len({one["winners"] for one in every}) == 1
        assert all((one["fresh"], one["seen"]) == ([], 3) for one in every)
        assert all(any("started with another cache" in text for _, text in one["said"]) is differ for one in every)
        assert (tmp_path / "cache.json").exists() is differ  # what rank 0 did not have of itself
        for name in ("port", "others ended"):
            (tmp_path / name).unlink()
    assert shipped.read_bytes() == before


def test_fresh_ranks_leave_the_cache_alone(ranks: Run, tmp_path: Path) -> None:
    (tmp_path / "cache.json").write_bytes(b"not to be touched")
    every = values(ranks(variables=[{"TUNEBOOK_AUTOTUNE_CACHE": "0"}]))
    assert (tmp_path / "cache.json").read_bytes() == b"not to be touched"
    run = read_run(every[0]["run"])
    assert len({one["winners"] for one in every}) == 1
    assert {line.rank for line in run.trials} == {0, 1}
    assert set(run.verdicts) == {KEY.format(size) for size in (1, 2, 4)}


def test_replaying_ranks_serve_the_same(ranks: Run, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    options = [{"cache": str(tmp_path / "first" / "cache.json")}]
    values(ranks(sizes=[[8]], options=options))
    for name in ("port", "others ended"):
        (tmp_path / name).unlink()
    every = values(ranks(options=[{**options[0], "policy": "replay"}]))
    assert all(one["served"] == ["quick"] * 4 + ["default"] * 3 for one in every)
    assert len(list((tmp_path / "first" / "runs").iterdir())) == 1


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"options": [{"budget_s": 20.0}, {"budget_s": 30.0}]}, "rank 1 has budget_s=30.0, rank 0 budget_s=20.0"),
        ({"variables": [{}, {"TUNEBOOK_AUTOTUNE_CACHE": "0"}]}, "rank 1 has policy=fresh, rank 0 policy=reuse"),
        (
            {"variables": [{}, {"TUNEBOOK_THREADS": "2"}]},
            "rank 1 runs in another environment than rank 0: threads: 2 ≠ 1",
        ),
        (
            {"start": [{}, {"version": "2"}]},
            "rank 1 has runner napping of op demo::double in version v:2, rank 0 in v:1",
        ),
    ],
    ids=["argument", "variable", "environment", "runner"],
)
def test_ranks_that_contradict_each_other_all_say_so(
    ranks: Run, tmp_path: Path, given: dict[str, Any], names: str
) -> None:
    text = f"ContradictionError the ranks cannot tune together: {names}; start all with the same"
    assert errors(ranks(**given)) == [text, text]
    assert not (tmp_path / "cache.json").exists()


def test_a_long_dummy_run_does_not_end_by_the_timeout(ranks: Run) -> None:
    one, other = values(ranks(variables=[{"timeout": 1.5}], start=[{}, {"dawdles": 4.0}]))
    assert one["winners"] == other["winners"]


def test_a_rank_that_does_not_come_is_named(ranks: Run) -> None:
    late = ranks(variables=[{"timeout": 1.5}], start=[{}, {"late": 5.0}])
    assert all("RankError rank 1 has not joined" in text for text in errors(late))
    assert late[0].seconds < 120


@pytest.mark.parametrize(
    ("start", "stage"),
    [("fails", "in its dummy run"), ("fails_later", "timing demo::double")],
    ids=["dummy run", "default"],
)
def test_a_rank_that_fails_is_named_with_its_stage(ranks: Run, start: str, stage: str) -> None:
    other, failed, third = errors(ranks(size=3, sizes=[[4, 32, 64]], start=[{}, {start: "no such weight"}, {}]))
    assert failed == "RuntimeError no such weight"
    for text in (other, third):
        assert text.startswith(f"RankError rank 1 failed while it was {stage}")
        assert text.endswith("RuntimeError: no such weight")


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_hangs_is_named(ranks: Run, stopped: int) -> None:
    start: list[dict[str, Any]] = [{}, {}]
    start[stopped] = {"stops": 6}
    ended = ranks(sizes=[[64]], variables=[{"timeout": 2.0}], start=start)
    (name, text) = ended[1 - stopped].error or ("", "")
    assert name == "RankError"
    assert text.startswith(f"rank {stopped}")
    assert ended[stopped].value is None


def test_what_was_settled_before_a_rank_was_lost_is_kept(ranks: Run, tmp_path: Path) -> None:
    for _ in range(5):  # where the rank that fails has the first turn, nothing was settled before
        errors(ranks(sizes=[[4, 64]], start=[{}, {"fails_later": "no such weight"}]))
        (path,) = (tmp_path / "runs").iterdir()
        run = read_run(path)
        if run.verdicts:
            break
        for left in (path, tmp_path / "port", tmp_path / "others ended"):
            left.unlink()
    assert run.footer is None
    cached = read_cache(tmp_path / "cache.json", None).verdicts
    assert cached
    assert dict(cached).items() <= run.verdicts.items()


def test_a_subgroup_is_named_by_ranks_of_the_job_and_places(ranks: Run) -> None:
    zero, one, two, three = values(ranks(tune_in_subgroup, 4))
    assert one["winners"] == three["winners"]
    assert (one["fresh"], one["run"]) == (three["fresh"], three["run"])
    assert three["error"].startswith("KeyError")
    text = "RankError rank 3 (place 1 in the group) failed while it was in its dummy run: KeyError: 'spare wheel'"
    assert (one["error"], one["number"]) == (text, 3)
    for outside in (zero, two):
        assert "is not a process group that this process belongs to" in outside["error"]


# Collectives


@pytest.mark.parametrize("size", [2, 4])
def test_collectives_are_raced_in_lock_step(ranks: Run, size: int) -> None:
    every = values(ranks(tune_sum, size))
    assert all(one["right"] for one in every)
    assert len({one["winners"] for one in every}) == 1
    assert set(every[0]["fresh"]) == {f"demo::sum|x.1=2|fp32|x.0≤{2**i}" for i in range(7)}
    run = read_run(every[0]["run"])
    raced = {line.trial.tactic for line in run.trials if line.problem.endswith("≤64") and isinstance(line.trial, Timed)}
    assert raced == {"default", "in_parts"}
    assert all(not verdict.rejected for key, verdict in run.verdicts.items() if key.endswith("≤64"))


@pytest.mark.parametrize(
    ("flaw", "reason", "says"),
    [
        ("after", "runtime", "rank 1: called in lock-step: RuntimeError: a bad ending"),
        ("wrong", "correctness", "rank 1: x.0=48: row 0 is off by 0.33 of its size (limit 0.0001)"),
    ],
)
def test_a_tactic_that_fails_on_one_rank_is_rejected_on_all(ranks: Run, flaw: str, reason: str, says: str) -> None:
    every = values(ranks(tune_sum, 2, flaw, 1))
    assert all(one["right"] for one in every)
    assert len({one["winners"] for one in every}) == 1
    for one in every:
        assert ["flawed", reason, says] in one["rejected"]
        assert "flawed" not in one["tactics"].values()


@pytest.mark.parametrize(
    ("flaw", "says"),
    [
        ("before", "called in lock-step: RuntimeError: no such channel"),
        ("late", "raced in lock-step: RuntimeError: worn"),
    ],
)
def test_a_tactic_that_leaves_the_others_in_a_collective_is_named(ranks: Run, flaw: str, says: str) -> None:
    ended = ranks(tune_sum, 2, flaw, 1, 2.0)
    for text in errors(ended):
        assert text.startswith("RankError racing demo::sum|x.1=2|fp32|x.0≤64 in lock-step: flawed, which left the")
        assert f"failed on rank 1: {says}" in text


def test_collectives_from_the_cache_are_served_by_all_ranks_or_none(ranks: Run) -> None:
    every = values(ranks(replay_sum))
    assert all(one["served"] == ["quick", "quick", "default"] for one in every)
    assert all(any("not every rank has the same tactic" in text for _, text in one["said"]) for one in every)


@pytest.mark.usefixtures("clean_ops")
def test_collectives_are_left_alone_without_the_others(tmp_path: Path) -> None:
    @tb.op("demo::alone", communicates=True)
    def alone(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    @alone.runner("other", version="1")
    def other(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("called without the others")

    with torch.inference_mode():
        with tb.autotune(cache=tmp_path / "cache.json") as tuning:
            alone(torch.ones(2, 2))
        assert bool((alone(torch.ones(2, 2)) == 2).all())
    assert tuning.outcome is not None
    assert tuning.outcome.tuned == 0
    assert any("autotune(group=…)" in miss for miss in tuning.outcome.misses)


# Models


@pytest.mark.slow
def test_one_rank_proves_a_model_for_all(ranks: Run, tmp_path: Path) -> None:
    one, other = values(ranks(tune_model))
    assert one["starts"] == other["starts"]
    first, second = one["starts"]
    assert first["tuned"] > 0
    assert first["verified"]
    assert first["serves"] == first["active"]
    assert (second["tuned"], second["plan"]) == (0, first["plan"])
    assert len(list((tmp_path / "runs").iterdir())) == 1
    assert next(iter(read_cache(tmp_path / "cache.json", None).plans.values())).verified
    proofs = [sum("proving the plan" in text for _, text in start["said"]) for start in (one, other)]
    assert proofs == [1, 0]
    assert json.loads(first["plan"])["model"] == "tiny"


# Documentation


def test_the_example_of_the_page_runs_on_two_ranks(ranks: Run, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "ranks.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "page.py").write_text(code, encoding="utf-8")
    one, other = values(ranks(run_page, 2, tmp_path / "page.py"))
    assert one == other
    assert one["ranks"] == 2
    assert one["seen"] == len(one["tactics"]) == 7 + 4


# Arguments


def test_a_group_needs_torch_distributed() -> None:
    with (
        pytest.raises(UsageError, match=r"call torch\.distributed\.init_process_group first"),
        tb.autotune(group="all"),
    ):
        pass


def test_a_run_is_not_resumed_by_a_group(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"resume=\S+ with group=…"):
        tb.autotune(resume=tmp_path / "run.jsonl", group=object())


def test_a_block_inside_a_block_has_its_group(tmp_path: Path) -> None:
    with (
        tb.autotune(cache=tmp_path / "cache.json"),
        pytest.raises(UsageError, match="group=another differs from the outer block's None"),
        tb.autotune(group="another"),
    ):
        pass
