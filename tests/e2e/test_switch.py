"""The switch: what a start does with the cache, by argument, by variable and by default."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import tunebook as tb
from tunebook.devices import device_of
from tunebook.dispatch import collecting
from tunebook.store import Policy, read_run, resolve_policy
from tunebook.tuner import Collection, Session

VARIABLE = "TUNEBOOK_AUTOTUNE_CACHE"
ALIAS = "SGLANG_FLASHINFER_AUTOTUNE_CACHE"
RUN_NAME = re.compile(r"winners\.\d{8}_\d{6}(-\d+)?\.jsonl")


class OpenedFiles:
    """Every path that this process opens while `on`. An audit hook stays for good, so there is one."""

    def __init__(self) -> None:
        self.on = False
        self.paths: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and event == "open" and isinstance(args[0], str | bytes | Path):
            self.paths.append(str(Path(args[0].decode() if isinstance(args[0], bytes) else args[0])))


opened = OpenedFiles()


# Reuse, the default


def test_reuse_is_the_default_and_a_second_start_neither_tunes_nor_profiles(
    demo: Any, restart: Callable[[], None]
) -> None:
    scale = demo.op()
    first = scale.tune()
    assert first.policy.policy is Policy.REUSE
    assert first.outcome.tuned == 3  # M ≤ 1, 2, 4
    assert first.outcome.published
    assert scale.calls["quick"] > 0
    assert scale() == "quick"
    assert {v["winner"] for v in demo.verdicts().values()} == {demo.QUICK}
    before, runs = demo.snapshot(), demo.runs()

    restart()
    again = demo.op()
    second = again.tune()
    assert (second.outcome.seen, second.outcome.cached, second.outcome.tuned) == (3, 3, 0)
    assert second.run is None
    assert again.calls["quick"] == 0, "a tactic was profiled"
    assert again.calls["default"] == 0, "the default was profiled"
    assert again() == "quick"
    assert demo.snapshot() == before
    assert demo.runs() == runs


def test_the_default_wins_is_remembered_too(demo: Any, restart: Callable[[], None]) -> None:
    first = demo.op(winner="default")
    outcome = first.tune().outcome
    assert (outcome.tuned, outcome.kept_default) == (3, 3)
    assert {v["winner"] for v in demo.verdicts().values()} == {"default"}

    restart()
    second = demo.op(winner="default")
    outcome = second.tune().outcome
    assert (outcome.cached, outcome.tuned, outcome.kept_default) == (3, 0, 3)
    assert second.calls["quick"] == 0
    assert second() == "default"


def test_a_run_file_is_named_after_cache_and_time_and_holds_the_whole_session(demo: Any) -> None:
    block = demo.op().tune()
    (path,) = demo.runs()
    assert str(path) == block.run
    assert RUN_NAME.fullmatch(path.name)
    run = read_run(path)
    assert run.header.policy == "reuse"
    assert run.header.environment.hard == device_of("cpu").environment().hard
    assert run.footer is not None
    assert run.footer.problems == 3
    assert run.verdicts.keys() == {demo.key(1), demo.key(2), demo.key(4)}
    assert {line.trial.tactic for line in run.trials} == {"default", demo.QUICK}


def test_a_new_shape_alone_is_tuned_and_the_rest_stays(demo: Any, restart: Callable[[], None]) -> None:
    demo.op().tune(rows=4)
    before = demo.verdicts()
    restart()
    outcome = demo.op().tune(rows=8).outcome
    assert (outcome.cached, outcome.tuned) == (3, 1)
    after = demo.verdicts()
    assert after.keys() == before.keys() | {demo.key(8)}
    assert {k: after[k] for k in before} == before


# Fresh, the switch at 0


def test_off_neither_reads_nor_writes_the_cache(
    demo: Any, monkeypatch: pytest.MonkeyPatch, restart: Callable[[], None]
) -> None:
    demo.op().tune()
    demo.poison()
    before, others = demo.snapshot(), sorted(demo.cache().parent.iterdir())
    known = demo.runs()
    restart()
    assert demo.op().tune().outcome.tuned == 0
    assert demo.op()() == "default", "the poison does not work, so this test would prove nothing"

    restart()
    monkeypatch.setenv(VARIABLE, "0")
    scale = demo.op()
    opened.paths.clear()
    opened.on = True
    try:
        block = scale.tune()
    finally:
        opened.on = False
    assert block.policy.policy is Policy.FRESH
    assert block.outcome.tuned == 3
    assert scale() == "quick", "the fresh result serves, not the cache's"
    assert demo.snapshot() == before
    assert sorted(demo.cache().parent.iterdir()) == others
    assert str(demo.cache()) not in opened.paths
    assert block.run in opened.paths, "the files that were opened were not seen"
    (new,) = set(demo.runs()) - set(known)
    assert RUN_NAME.fullmatch(new.name)
    assert str(new) == block.run
    run = read_run(new)
    assert run.header.policy == "fresh"
    assert {v.winner for v in run.verdicts.values()} == {demo.QUICK}


def test_off_does_not_make_a_cache(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    demo.op().tune()
    assert not demo.cache().exists()
    assert len(demo.runs()) == 1


@pytest.mark.parametrize("content", [b"", b"{not JSON", b"\xff\xfe"])
def test_off_does_not_care_what_the_cache_holds(
    demo: Any, content: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    demo.cache().parent.mkdir(parents=True)
    demo.cache().write_bytes(content)
    with caplog.at_level(logging.INFO, "tunebook"):
        assert demo.op().tune().outcome.tuned == 3
    assert demo.cache().read_bytes() == content
    assert "miss" not in caplog.text


def test_two_fresh_tunings_within_one_second_get_two_files(demo: Any) -> None:
    scale, at = demo.op(), datetime(2025, 3, 4, 5, 6, 7)
    for _ in range(2):
        session = Session(resolve_policy(policy="fresh"), now=lambda: at)
        collection = Collection(session.device)
        with collecting(collection):
            scale()
        session.tune(collection, 30)
        session.finish()
    assert [path.name for path in demo.runs()] == ["winners.20250304_050607-1.jsonl", "winners.20250304_050607.jsonl"]
    for path in demo.runs():
        assert len(read_run(path).verdicts) == 3


def test_fresh_tunings_one_after_the_other_each_get_a_file(demo: Any) -> None:
    scale = demo.op()
    names = {scale.tune(policy="fresh").run for _ in range(3)}
    assert len(names) == 3
    assert names == set(map(str, demo.runs()))


def test_one_start_gets_one_file(demo: Any) -> None:
    scale = demo.op()
    with tb.autotune(policy="fresh", budget_s=30) as outer:
        for rows in (1, 2, 4):
            with tb.autotune():
                scale(rows)
        with tb.autotune(policy="fresh", budget_s=30), tb.autotune():
            scale(8)
    assert outer.outcome is not None
    assert outer.outcome.tuned == 4
    assert list(map(str, demo.runs())) == [outer.run]


def test_the_log_of_a_fresh_start_names_the_variable_the_place_and_the_cost(
    demo: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    with caplog.at_level(logging.INFO, "tunebook"):
        demo.op().tune()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    off = next(text for text in warnings if VARIABLE in text)
    assert "off" in off
    assert str(demo.cache().parent / "runs") in off
    assert any(re.search(r"\b\d+\.\d s\b", text) and "every start" in text for text in warnings), warnings
    assert re.search(r"autotune completed: 3 problems tuned in \d+\.\d s", caplog.text)


def test_the_log_of_a_reusing_start_names_the_cache(demo: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tunebook"):
        demo.op().tune()
    assert f"runs with the cache at {demo.cache()}" in caplog.text
    assert "autotune completed" in caplog.text
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], caplog.text


# Who decides


@pytest.mark.parametrize(
    ("own", "alias", "expected"),
    [
        (None, "0", Policy.FRESH),
        (None, "1", Policy.REUSE),
        ("1", "0", Policy.REUSE),
        ("0", "1", Policy.FRESH),
        ("0", None, Policy.FRESH),
        (" OFF ", None, Policy.FRESH),
        ("Yes", "no", Policy.REUSE),
    ],
)
def test_the_alias_works_and_the_explicit_name_goes_before_it(
    demo: Any, own: str | None, alias: str | None, expected: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ((VARIABLE, own), (ALIAS, alias)):
        if value is not None:
            monkeypatch.setenv(name, value)
    block = demo.op().tune()
    assert block.policy.policy is expected
    assert demo.cache().exists() is (expected is Policy.REUSE)


def test_a_fresh_start_by_the_alias_is_logged_under_the_alias(
    demo: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ALIAS, "0")
    with caplog.at_level(logging.WARNING, "tunebook"):
        demo.op().tune()
    assert ALIAS in caplog.text


def test_a_wrong_alias_of_another_project_is_a_warning_and_the_default(
    demo: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ALIAS, "perhaps")
    with caplog.at_level(logging.WARNING, "tunebook"):
        assert demo.op().tune().policy.policy is Policy.REUSE
    assert ALIAS in caplog.text
    assert "perhaps" in caplog.text


def test_a_wrong_value_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "perhaps")
    with pytest.raises(tb.TunebookError, match=rf"{VARIABLE}='perhaps'.*1/true/yes"):
        tb.autotune()


@pytest.mark.parametrize(("value", "policy"), [("0", "reuse"), ("1", "fresh"), ("0", "replay")])
def test_an_argument_goes_before_the_variable_and_what_lost_is_logged(
    demo: Any, value: str, policy: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with caplog.at_level(logging.INFO, "tunebook"):
        block = demo.op().tune(policy=policy)
    assert block.policy.policy is Policy(policy)
    assert demo.cache().exists() is (policy == "reuse")
    assert len(demo.runs()) == (policy != "replay")
    assert any("overruled" in r.getMessage() and f"{VARIABLE}={value}" in r.getMessage() for r in caplog.records)


def test_autotune_off_never_tunes_but_serves_what_is_known(
    demo: Any, monkeypatch: pytest.MonkeyPatch, restart: Callable[[], None]
) -> None:
    monkeypatch.setenv("TUNEBOOK_AUTOTUNE", "0")
    scale = demo.op()
    block = scale.tune()
    assert block.policy.policy is Policy.REPLAY
    assert (block.outcome.tuned, scale.calls["quick"], scale.calls["default"]) == (0, 0, 0)
    assert not demo.cache().parent.exists(), "something was written"
    assert scale() == "default"

    monkeypatch.delenv("TUNEBOOK_AUTOTUNE")
    restart()
    demo.op().tune()
    before, runs = demo.snapshot(), demo.runs()
    monkeypatch.setenv("TUNEBOOK_AUTOTUNE", "0")
    restart()
    scale = demo.op()
    assert scale.tune(rows=8).outcome.tuned == 0
    assert scale(4) == "quick"
    assert scale(8) == "default"
    assert demo.snapshot() == before
    assert demo.runs() == runs


def test_tune_mode_false_is_replay(demo: Any) -> None:
    scale = demo.op()
    block = scale.tune(tune_mode=False)
    assert block.policy.policy is Policy.REPLAY
    assert (block.outcome.tuned, scale.calls["quick"], scale.calls["default"]) == (0, 0, 0)
    assert block.run is None
    assert tb.autotune(False, policy="replay").policy.policy is Policy.REPLAY


def test_replay_serves_what_is_known_in_the_block_already(demo: Any, restart: Callable[[], None]) -> None:
    demo.op().tune()
    before, runs = demo.snapshot(), demo.runs()
    restart()
    scale = demo.op()
    with tb.autotune(False):
        assert scale(4) == "quick"
        assert scale(8) == "default"
    assert scale(4) == "quick"
    assert (demo.snapshot(), demo.runs()) == (before, runs)


@pytest.mark.parametrize("policy", [Policy.REUSE, "fresh"])
def test_tune_mode_false_with_a_policy_that_tunes_is_an_error(policy: Policy | str) -> None:
    with pytest.raises(ValueError, match="tune_mode=False"):
        tb.autotune(False, policy=policy)


def test_arguments_that_mean_nothing_are_errors() -> None:
    with pytest.raises(ValueError, match="policy='often'"):
        tb.autotune(policy="often")
    for budget in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="budget_s"):
            tb.autotune(budget_s=budget)


# Places


def test_directories_are_created(demo: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNEBOOK_CACHE_DIR", str(tmp_path / "not" / "there yet"))
    demo.op().tune()
    cache = demo.cache()
    assert cache.is_relative_to(tmp_path / "not" / "there yet" / "autotune")
    assert sorted(p.name for p in cache.parent.iterdir() if p.suffix != ".lock") == [
        "environment.json",
        "runs",
        "winners.json",
    ]
    described = json.loads((cache.parent / "environment.json").read_text())
    assert described["digest"] == cache.parent.name == device_of("cpu").environment().digest


def test_a_cache_of_ones_own_has_its_runs_beside_it(demo: Any, tmp_path: Path, restart: Callable[[], None]) -> None:
    cache = tmp_path / "somewhere" / "tuned.json"
    demo.op().tune(cache=cache)
    assert demo.verdicts(cache).keys() == {demo.key(1), demo.key(2), demo.key(4)}
    (run,) = demo.runs(cache)
    assert re.fullmatch(r"tuned\.\d{8}_\d{6}\.jsonl", run.name)
    assert not demo.cache().exists()
    restart()
    assert demo.op().tune(cache=str(cache)).outcome.tuned == 0
    restart()
    assert demo.op().tune(cache=run).outcome.tuned == 0, "whatever reads a cache reads a run"


def test_a_directory_as_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="directory"), tb.autotune(cache=tmp_path):
        pass
