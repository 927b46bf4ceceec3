"""FlashInfer under tunebook, from start to start: what is kept, validated, served again, and written for others to load."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.integrations.flashinfer_stage import Stage, product_inputs  # noqa: E402 - found from the root

import tunebook as tb  # noqa: E402
from tunebook.integrations.flashinfer import known  # noqa: E402
from tunebook.store import read_cache, read_run  # noqa: E402

OP = "demo::product"
COSTS = {("Plain", 1): 0.8, ("Blocked", 0): 0.7, ("Blocked", 1): 0.4}


def runners(stage: Stage, **blocked: Any) -> list[Any]:
    """Two new runners, as each start of an engine makes them."""
    return [stage.runner("Plain", (1,)), stage.runner("Blocked", (0, 1), **blocked)]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "winners.json"


def start(stage: Stage, cache: Path, offered: list[Any] | None = None, again: bool = True, **options: Any) -> Any:
    """One start of an engine: a tuner that knows nothing, a block, a call in it. Gives the session and the call's answer."""
    if again:
        stage.start_again()
    stage.costs = stage.costs or dict(COSTS)
    offered = offered if offered is not None else runners(stage)
    with tb.flashinfer.autotune(cache=cache, seed=1, **options) as session:
        answer = stage.choose(OP, offered, stage.config((16,)), product_inputs())
    return session, answer


def served(stage: Stage, offered: list[Any] | None = None) -> tuple[str, Any]:
    return stage.choose(OP, offered or runners(stage), stage.config((16,)), product_inputs())


# ---------------------------------------------------------------- serving in this process


def test_new_runners_are_served_too(stage: Stage, cache: Path) -> None:
    start(stage, cache)
    assert served(stage) == ("Blocked", 1)


def test_entries_of_other_runners_give_way(stage: Stage, cache: Path) -> None:
    """FlashInfer looks its runners up in order: an older entry of the first would be served for ever."""
    offered = runners(stage)
    stage.start_again()
    stage.costs = {("Plain", 1): 0.1}
    with stage.module.autotune(True):
        assert served(stage, offered) == ("Plain", 1)
    stage.costs = dict(COSTS)
    start(stage, cache, offered, again=False)
    assert served(stage, offered) == ("Blocked", 1)
    assert served(stage) == ("Blocked", 1)


def test_winners_stay_when_flashinfer_enters_a_file_of_its_own(stage: Stage, cache: Path, tmp_path: Path) -> None:
    start(stage, cache)
    other = stage.module.AutoTuner()
    other._file_configs[f"('{OP}', 'Plain', ((16, 32), (32, 24)), ())"] = ("Plain", 1)
    other._file_configs["('demo::other', 'Plain', ((16, 32),), ())"] = ("Plain", 5)
    other.save_configs(str(tmp_path / "theirs.json"))
    for path in (tmp_path / "absent.json", tmp_path / "theirs.json"):
        with stage.module.autotune(False, cache=str(path)):
            assert served(stage) == ("Blocked", 1)
    assert served(stage) == ("Blocked", 1)
    assert stage.tuner._file_configs["('demo::other', 'Plain', ((16, 32),), ())"] == ("Plain", 5)


def test_flashinfers_own_tuning_takes_the_winner_for_tuned(stage: Stage, cache: Path) -> None:
    """It compares the measuring policy that is kept with a tactic; without it, it would measure again."""
    start(stage, cache)
    stage.sampled.clear()
    with stage.module.autotune(True):
        assert served(stage) == ("Blocked", 1)
    assert stage.sampled == []


def test_what_was_timed_under_another_policy_flashinfer_measures_itself(stage: Stage, cache: Path) -> None:
    if not hasattr(stage.module.AutoTuner, "_profiling_policy"):
        assert "0.6.18" in tb.flashinfer.Session().package.version
        return
    start(stage, cache)
    graph = stage.config((16,), use_cuda_graph=True)
    with stage.module.autotune(True):
        stage.choose(OP, runners(stage), graph, product_inputs())
    assert stage.sampled[-1][2:] == (10, 3)


def test_the_measuring_policy_stays_with_the_winner(
    stage: Stage, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a file is loaded that has the same key without a policy, and where no file can hold the winner."""
    monkeypatch.setattr(stage.module.AutoTuner, "_get_l2_cache_size_in_bytes", lambda *device: 1 << 12)
    stage.start_again()
    stage.costs = {**COSTS, ("Twin", 1): 0.8, ("Twin", 2): 0.3}
    cold, inputs = stage.config((16,), use_cold_l2_cache=True), product_inputs()
    twins = [stage.runner("Twin", (1,)), stage.runner("Twin", (2,))]
    with tb.flashinfer.autotune(cache=cache, seed=1):
        stage.choose(OP, runners(stage), cold, inputs)
        stage.choose("demo::twins", twins, cold, inputs)
    theirs = stage.module.AutoTuner()
    theirs._file_configs[f"('{OP}', 'Blocked', ((16, 32), (32, 24)), ())"] = ("Blocked", 0)
    theirs.save_configs(str(tmp_path / "theirs.json"))
    stage.sampled.clear()
    with stage.module.autotune(True, cache=str(tmp_path / "theirs.json")):
        assert stage.choose(OP, runners(stage), cold, inputs) == ("Blocked", 1)
        assert stage.choose("demo::twins", twins, cold, inputs) == ("Twin", 2)
    assert stage.sampled == []


def test_clearing_flashinfers_cache_forgets_the_winners(stage: Stage, cache: Path) -> None:
    start(stage, cache)
    stage.tuner.clear_cache()
    assert served(stage) == ("Plain", -1)
    with stage.module.autotune(False, cache=str(cache.with_name("absent.json"))):
        assert served(stage) == ("Plain", -1)


def test_what_is_forgotten_together_can_be_cleared_and_installed_again(stage: Stage, cache: Path) -> None:
    """As engines' ranks do where one of them cannot go on."""
    stage.start_again()
    forget = known(stage.tuner)
    start(stage, cache, again=False)
    forget()
    assert served(stage) == ("Plain", -1)
    stage.tuner.clear_cache()
    start(stage, cache, again=False)
    assert served(stage) == ("Blocked", 1)
    stage.tuner.clear_cache()
    assert served(stage) == ("Plain", -1)


def test_two_runners_of_one_class_are_told_apart_in_memory_alone(stage: Stage, cache: Path, tmp_path: Path) -> None:
    stage.costs = {("Plain", 1): 0.8, ("Plain", 2): 0.3}
    offered = [stage.runner("Plain", (1,)), stage.runner("Plain", (2,))]
    session, _ = start(stage, cache, offered, flashinfer_cache=tmp_path / "v1.json")
    assert [v.winner for v in session.outcome.verdicts.values()] == ["Plain:2[tactic=2]"]
    assert stage.tuner.choose_one(OP, offered, stage.config((16,)), product_inputs()) == (offered[1], 2)
    assert not (tmp_path / "v1.json").exists()
    assert any("not in files of FlashInfer's" in miss for miss in session.outcome.misses)


# ---------------------------------------------------------------- from start to start


def test_a_second_start_measures_nothing_and_serves_in_the_block_already(stage: Stage, cache: Path) -> None:
    first, answer = start(stage, cache)
    assert answer == ("Plain", -1)
    assert first.outcome.published
    second, answer = start(stage, cache)
    assert answer == ("Blocked", 1)
    assert (second.outcome.cached, second.outcome.fresh, second.run, stage.sampled) == (1, [], None, [])


def test_while_a_graph_is_recorded_nothing_is_made(stage: Stage, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(stage, cache)
    stage.start_again()
    offered = runners(stage)
    with tb.flashinfer.autotune(cache=cache, seed=1) as session, monkeypatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: True)
        patch.setattr("torch.cuda.is_current_stream_capturing", lambda: True)
        patch.setattr(stage.tuner, "_prepare_input_tensors", lambda *args: pytest.fail("a tensor was made"))
        assert served(stage, offered) == ("Plain", -1)
    assert served(stage, offered) == ("Blocked", 1)
    assert (session.outcome.cached, session.outcome.fresh) == (1, [])


def test_what_the_timings_depend_on_is_kept_with_them(stage: Stage, cache: Path) -> None:
    session, _ = start(stage, cache)
    kept = read_cache(cache, session.environment).environment
    assert kept is not None
    assert {name: kept.soft[name] for name in session.package.facts} == session.package.facts
    assert session.package.facts["flashinfer_version"] == session.package.version


def test_replay_serves_and_never_measures(stage: Stage, cache: Path) -> None:
    start(stage, cache)
    _, answer = start(stage, cache, tune_mode=False)
    assert answer == ("Blocked", 1)
    assert served(stage) == ("Blocked", 1)
    empty, answer = start(stage, cache.with_name("empty.json"), tune_mode=False)
    assert (answer, empty.run, stage.sampled) == (("Plain", -1), None, [])
    assert not cache.with_name("empty.json").exists()


def test_fresh_neither_reads_nor_writes_the_cache(stage: Stage, cache: Path) -> None:
    start(stage, cache)
    before = cache.read_bytes()
    stage.costs = {("Plain", 1): 0.1}
    session, answer = start(stage, cache, policy="fresh")
    assert answer == ("Plain", -1)
    assert served(stage) == ("Plain", 1)
    assert cache.read_bytes() == before
    assert session.run is not None
    assert len(read_run(session.run).verdicts) == 1


def test_the_switch_is_the_variable_as_everywhere(stage: Stage, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEBOOK_AUTOTUNE_CACHE", "0")
    session, _ = start(stage, cache)
    assert session.policy is tb.Policy.FRESH
    assert not cache.exists()


def test_a_new_runner_makes_a_race_in_which_a_tie_goes_to_what_was_chosen_before(stage: Stage, cache: Path) -> None:
    stage.noise = 0.001
    stage.costs = {("Plain", -1): 2.0, ("Plain", 1): 1.0, ("Blocked", 0): 1.0, ("Blocked", 1): 1.0, ("Ahead", 0): 1.0}
    first, _ = start(stage, cache, runners(stage)[:1])
    (before,) = first.outcome.verdicts.values()
    assert before.winner == "Plain[tactic=1]"
    second, answer = start(stage, cache, [*runners(stage), stage.runner("Ahead", (0,))])
    assert answer == ("Plain", 1), "it serves meanwhile"
    (after,) = second.outcome.verdicts.values()
    assert (after.winner, second.outcome.fresh) == (before.winner, [before.problem])
    assert set(after.offered) == {"default", "Plain", "Blocked", "Ahead"}
    assert any("Blocked is new" in miss for miss in second.outcome.misses)


def test_where_the_winners_runner_is_not_asked_for_the_best_of_the_others_serves(stage: Stage, cache: Path) -> None:
    start(stage, cache)
    session, answer = start(stage, cache, runners(stage)[:1])
    assert answer == ("Plain", 1)
    assert (session.outcome.cached, session.outcome.fresh, stage.sampled) == (1, [], [])
    assert any("there is no runner Blocked today" in miss for miss in session.outcome.misses)


def test_a_winner_that_its_runner_no_longer_offers_gives_way_and_is_tuned_again(stage: Stage, cache: Path) -> None:
    start(stage, cache)
    offered = [stage.runner("Plain", (1,)), stage.runner("Blocked", (0,))]
    session, answer = start(stage, cache, offered)
    assert answer == ("Plain", 1), "the best of the frontier that is offered today"
    assert any("Blocked[tactic=1]: its runner does not offer it today" in miss for miss in session.outcome.misses)
    assert served(stage, offered) == ("Blocked", 0)


@pytest.mark.parametrize("fault", [False, ValueError("no plan")])
def test_a_runners_own_hook_decides_where_it_has_one(stage: Stage, cache: Path, fault: Any) -> None:
    asked: list[tuple[Any, int]] = []

    def valid(inputs: Any, tactic: Any) -> bool:
        asked.append((tactic, inputs[0].shape[0]))
        if isinstance(fault, Exception):
            raise fault
        return tactic != 1

    start(stage, cache)
    session, answer = start(stage, cache, runners(stage, valid=valid), tune_mode=False)
    assert (1, 16) in asked
    assert answer == ("Plain", 1)
    assert any("Blocked[tactic=1]: its runner" in miss for miss in session.outcome.misses)


def test_the_blocklist_holds_for_what_was_kept(stage: Stage, cache: Path) -> None:
    start(stage, cache)
    stage.start_again()
    stage.tuner._blocklist._invalid = {f"{OP}::Blocked": {1}}
    session, answer = start(stage, cache, again=False, tune_mode=False)
    assert answer == ("Plain", 1)
    assert any("on FlashInfer's blocklist" in miss for miss in session.outcome.misses)


def test_another_flashinfer_or_library_makes_a_miss(stage: Stage, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tactic is often an index into a list that cuBLAS, cuDNN or CUTLASS makes."""
    start(stage, cache)
    facts = {**stage.module._collect_metadata(), "cublas_version": "13.2.1"}
    monkeypatch.setattr(stage.module, "_collect_metadata", lambda: facts)
    session, answer = start(stage, cache)
    assert answer == ("Plain", -1)
    assert len(session.outcome.fresh) == 1
    assert any("was tuned with FlashInfer" in miss for miss in session.outcome.misses)


def test_an_engines_several_blocks_are_one_session_with_one_run(stage: Stage, cache: Path) -> None:
    stage.start_again()
    stage.costs = dict(COSTS)
    session = tb.flashinfer.Session(cache=cache, seed=1)
    offered = runners(stage)
    for rows in (16, 16, 8):
        with session.autotune():
            stage.choose(OP, offered, stage.config((rows,)), product_inputs())
    assert len(session.outcome.fresh) == 2
    session.close()
    session.close()
    assert session.run is not None
    assert [path.name for path in cache.with_name("runs").iterdir()] == [Path(session.run).name]
    run = read_run(session.run)
    assert (len(run.verdicts), run.footer is not None and run.footer.problems) == (2, 2)
    assert len(read_cache(cache, session.environment).verdicts) == 2


def test_a_block_inside_a_block_of_one_session_loses_nothing_of_the_outer_one(stage: Stage, cache: Path) -> None:
    stage.start_again()
    stage.costs = dict(COSTS)
    session = tb.flashinfer.Session(cache=cache, seed=1)
    offered = runners(stage)
    with session.autotune():
        stage.choose(OP, offered, stage.config((16,)), product_inputs())
        with session.autotune():
            stage.choose(OP, offered, stage.config((8,)), product_inputs())
    assert (session.outcome.seen, len(session.outcome.fresh)) == (2, 2)


def test_blocks_that_overlap_leave_flashinfer_as_it_was(stage: Stage, cache: Path) -> None:
    """As blocks in two threads do: the one that began first ends first."""
    stage.start_again()
    stage.costs = dict(COSTS)
    offered, sessions = runners(stage), []
    blocks = []
    for name in ("first", "second"):
        sessions.append(tb.flashinfer.Session(cache=cache.with_name(f"{name}.json"), seed=1))
        blocks.append(sessions[-1].autotune())
        blocks[-1].__enter__()
    blocks[0].__exit__(None, None, None)
    stage.choose(OP, offered, stage.config((16,)), product_inputs())
    blocks[1].__exit__(None, None, None)
    stage.choose(OP, offered, stage.config((8,)), product_inputs())
    assert [session.outcome.seen for session in sessions] == [0, 1]
    assert not sessions[0]._problems.found, "a session that has ended holds nothing"


def test_an_interruption_keeps_what_was_tuned(stage: Stage, cache: Path) -> None:
    stage.start_again()
    stage.costs = dict(COSTS)

    def interrupt(inputs: Any) -> Any:
        raise KeyboardInterrupt

    last = stage.runner("Plain", (1,), broken={1: interrupt})
    session = tb.flashinfer.Session(cache=cache, seed=1)

    def block() -> None:
        with session.autotune():
            stage.choose(OP, runners(stage), stage.config((16,)), product_inputs())
            stage.choose("demo::last", [last], stage.config(), product_inputs(1))

    with pytest.raises(KeyboardInterrupt):
        block()
    assert list(read_cache(cache, session.environment).verdicts) == session.outcome.fresh
    assert len(session.outcome.fresh) == 1


# ---------------------------------------------------------------- FlashInfer's v1 file


def test_flashinfer_loads_and_serves_the_exported_file(stage: Stage, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "sglang" / "rank_tp0_pp0_dp0.json"
    start(stage, cache, flashinfer_cache=path)
    stage.start_again()
    assert served(stage) == ("Plain", -1)
    with stage.module.autotune(False, cache=str(path)):
        assert served(stage) == ("Blocked", 1)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_exported_file_keeps_other_entries_but_no_siblings(stage: Stage, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "v1.json"
    sibling, other = f"('{OP}', 'Plain', ((16, 32), (32, 24)), ())", "('demo::other', 'Plain', ((16, 32),), ())"
    theirs = stage.module.AutoTuner()
    theirs._file_configs |= {sibling: ("Plain", 1), other: ("Plain", 5)}
    theirs.publish_namespaced_records("product", {"kept": {"as": "it is"}})
    theirs.save_configs(str(path))
    start(stage, cache, flashinfer_cache=path)
    found = json.loads(path.read_text())
    assert sibling not in found
    assert found[other][:2] == ["Plain", 5]
    assert found["_records"] == {"product": {"kept": {"as": "it is"}}}
    winner = found[f"('{OP}', 'Blocked', ((16, 32), (32, 24)), ())"]
    assert winner[:2] == ["Blocked", 1]
    policy = getattr(stage.module.AutoTuner, "_profiling_policy", None)
    assert winner[2:] == ([] if policy is None else [list(policy(stage.config()))])


def test_what_is_tuned_afresh_goes_to_a_file_of_its_own(stage: Stage, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "v1.json"
    start(stage, cache, flashinfer_cache=path)
    before = path.read_bytes()
    stage.costs["Plain", 1] = 0.1
    for _ in range(2):
        start(stage, cache, flashinfer_cache=path, policy="fresh")
    assert path.read_bytes() == before
    fresh = sorted(tmp_path.glob("runs/v1.*.json"))
    assert len(fresh) == 2
    for file in fresh:
        stage.start_again()
        with stage.module.autotune(False, cache=str(file)):
            assert served(stage) == ("Plain", 1)


def test_nothing_is_written_for_replay(stage: Stage, cache: Path, tmp_path: Path) -> None:
    start(stage, cache)
    start(stage, cache, flashinfer_cache=tmp_path / "v1.json", policy="replay")
    assert served(stage) == ("Blocked", 1)
    assert not (tmp_path / "v1.json").exists()


def test_winners_out_of_the_cache_are_exported_too(stage: Stage, cache: Path, tmp_path: Path) -> None:
    start(stage, cache)
    start(stage, cache, flashinfer_cache=tmp_path / "v1.json")
    assert any("Blocked" in key for key in json.loads((tmp_path / "v1.json").read_text()))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not a cache of FlashInfer's"),
        ("[]", "not a cache of FlashInfer's"),
        ('{"key": 5}', "not a cache of FlashInfer's"),
        ('{"_metadata": {"gpu": "another"}}', "made in another environment"),
    ],
)
def test_a_file_that_is_not_ours_to_write_is_left_alone(
    stage: Stage, cache: Path, tmp_path: Path, text: str, why: str
) -> None:
    path = tmp_path / "v1.json"
    path.write_text(text)
    session, _ = start(stage, cache, flashinfer_cache=path)
    assert path.read_text() == text
    assert why in session.outcome.not_published
    assert served(stage) == ("Blocked", 1)
    assert len(read_cache(cache, session.environment).verdicts) == 1


def test_a_flashinfer_file_given_as_tunebooks_cache_is_left_alone(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "theirs.json"
    theirs = stage.module.AutoTuner()
    theirs._file_configs["('demo::other', 'Plain', ((16, 32),), ())"] = ("Plain", 5)
    theirs.save_configs(str(path))
    before = path.read_bytes()
    session, _ = start(stage, path)
    assert path.read_bytes() == before
    assert session.outcome.not_published
    assert served(stage) == ("Blocked", 1)
