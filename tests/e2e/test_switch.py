"""The switch: what a start does with the cache, by argument, by variable and by default; and what then serves."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.devices import device_of
from tunebook.dispatch import FREE, collecting
from tunebook.records import SCHEMA, Rejected
from tunebook.store import Location, Policy, Run, read_run, resolve_policy
from tunebook.tuner import Collection, Session

pytestmark = pytest.mark.usefixtures("clean_ops")

OP = "demo::scale"
VARIABLE = "TUNEBOOK_AUTOTUNE_CACHE"
ALIAS = "SGLANG_FLASHINFER_AUTOTUNE_CACHE"
RUN_NAME = re.compile(r"winners\.\d{8}_\d{6}(-\d+)?\.jsonl")
QUICK = "quick[block=1]"


def pause() -> None:
    """Slower than anything else here by orders of magnitude, so that who wins is certain."""
    time.sleep(0.002)


class Scale:
    """An op of two tactics that count their calls. `winner` does not pause."""

    def __init__(self, winner: str = "quick", version: str = "1", block: int = 1) -> None:
        self.calls: Counter[str] = Counter()

        def scale(x: torch.Tensor, s: float) -> torch.Tensor:
            self.calls["default"] += 1
            if winner != "default":
                pause()
            return x * s

        def quick(x: torch.Tensor, s: float, *, block: int) -> torch.Tensor:
            self.calls["quick"] += 1
            if winner != "quick":
                pause()
            return x * s

        self.op = tb.op(OP, buckets={"x": {0: tb.pow2(max=64, name="M")}})(scale)
        self.op.runner("quick", {"block": (block,)}, version=version)(quick)

    def __call__(self, rows: int = 4, *, dtype: torch.dtype = torch.float32, grad: bool = False) -> str:
        """Call the op on `rows` rows, check the result, and say who computed it."""
        x = torch.arange(rows * 3, dtype=dtype).reshape(rows, 3).requires_grad_(grad)
        before = Counter(self.calls)
        result = self.op(x, 2.0)
        assert torch.equal(result, x * 2.0)
        (served,) = self.calls - before
        return served

    def tune(self, rows: int = 4, **options: Any) -> tb.engine.autotune:  # type: ignore[name-defined]
        """An autotune block around one call, and how often each tactic ran in it, apart from that call."""
        self.calls.clear()
        with tb.autotune(budget_s=30, **options) as block:
            self(rows)
        self.calls["default"] -= 1
        return block


def default_cache() -> Path:
    return Location.of(device_of("cpu").environment()).cache


def run_files(cache: Path | None = None) -> list[Path]:
    return sorted((cache or default_cache()).parent.glob("runs/*.jsonl"))


def snapshot(path: Path) -> tuple[bytes, int, int]:
    status = path.stat()
    return path.read_bytes(), status.st_mtime_ns, status.st_ino


def key(rows: int = 4) -> str:
    return f"{OP}|x.1=3,s=2.0|fp32|M≤{rows}"


def verdicts(cache: Path | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((cache or default_cache()).read_text())["verdicts"]
    return found


def poison(cache: Path) -> None:
    """Make every verdict of a cache claim that the default won."""
    document = json.loads(cache.read_text())
    for verdict in document["verdicts"].values():
        verdict["winner"] = "default"
        verdict["frontier"] = [{"tactic": "default", "ratio": 1.0, "low": 1.0, "high": 1.0}]
    cache.write_text(json.dumps(document))


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


def test_reuse_is_the_default_and_a_second_start_neither_tunes_nor_profiles(restart: Callable[[], None]) -> None:
    scale = Scale()
    first = scale.tune()
    assert first.policy.policy is Policy.REUSE
    assert first.outcome.tuned == 3  # M ≤ 1, 2, 4
    assert first.outcome.published
    assert scale.calls["quick"] > 0
    assert scale() == "quick"
    assert {v["winner"] for v in verdicts().values()} == {QUICK}
    before, runs = snapshot(default_cache()), run_files()

    restart()
    again = Scale()
    second = again.tune()
    assert (second.outcome.seen, second.outcome.cached, second.outcome.tuned) == (3, 3, 0)
    assert second.run is None
    assert again.calls["quick"] == 0, "a tactic was profiled"
    assert again.calls["default"] == 0, "the default was profiled"
    assert again() == "quick"
    assert snapshot(default_cache()) == before
    assert run_files() == runs


def test_the_default_wins_is_remembered_too(restart: Callable[[], None]) -> None:
    first = Scale(winner="default")
    outcome = first.tune().outcome
    assert (outcome.tuned, outcome.kept_default) == (3, 3)
    assert {v["winner"] for v in verdicts().values()} == {"default"}

    restart()
    second = Scale(winner="default")
    outcome = second.tune().outcome
    assert (outcome.cached, outcome.tuned, outcome.kept_default) == (3, 0, 3)
    assert second.calls["quick"] == 0
    assert second() == "default"


def test_a_run_file_is_named_after_cache_and_time_and_holds_the_whole_session() -> None:
    block = Scale().tune()
    (path,) = run_files()
    assert str(path) == block.run
    assert RUN_NAME.fullmatch(path.name)
    run = read_run(path)
    assert run.header.policy == "reuse"
    assert run.header.environment.hard == device_of("cpu").environment().hard
    assert run.footer is not None
    assert run.footer.problems == 3
    assert run.verdicts.keys() == {key(1), key(2), key(4)}
    assert {line.trial.tactic for line in run.trials} == {"default", QUICK}


def test_a_new_shape_alone_is_tuned_and_the_rest_stays(restart: Callable[[], None]) -> None:
    Scale().tune(rows=4)
    before = verdicts()
    restart()
    outcome = Scale().tune(rows=8).outcome
    assert (outcome.cached, outcome.tuned) == (3, 1)
    after = verdicts()
    assert after.keys() == before.keys() | {key(8)}
    assert {k: after[k] for k in before} == before


# Fresh, the switch at 0


def test_off_neither_reads_nor_writes_the_cache(monkeypatch: pytest.MonkeyPatch, restart: Callable[[], None]) -> None:
    Scale().tune()
    poison(default_cache())
    before, others = snapshot(default_cache()), sorted(default_cache().parent.iterdir())
    known = run_files()
    restart()
    assert Scale().tune().outcome.tuned == 0
    assert Scale()() == "default", "the poison does not work, so this test would prove nothing"

    restart()
    monkeypatch.setenv(VARIABLE, "0")
    scale = Scale()
    opened.paths.clear()
    opened.on = True
    try:
        block = scale.tune()
    finally:
        opened.on = False
    assert block.policy.policy is Policy.FRESH
    assert block.outcome.tuned == 3
    assert scale() == "quick", "the fresh result serves, not the cache's"
    assert snapshot(default_cache()) == before
    assert sorted(default_cache().parent.iterdir()) == others
    assert str(default_cache()) not in opened.paths
    assert block.run in opened.paths, "the files that were opened were not seen"
    (new,) = set(run_files()) - set(known)
    assert RUN_NAME.fullmatch(new.name)
    assert str(new) == block.run
    run = read_run(new)
    assert run.header.policy == "fresh"
    assert {v.winner for v in run.verdicts.values()} == {QUICK}


def test_off_does_not_make_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    Scale().tune()
    assert not default_cache().exists()
    assert len(run_files()) == 1


@pytest.mark.parametrize("content", [b"", b"{not JSON", b"\xff\xfe"])
def test_off_does_not_care_what_the_cache_holds(
    content: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    default_cache().parent.mkdir(parents=True)
    default_cache().write_bytes(content)
    with caplog.at_level(logging.INFO, "tunebook"):
        assert Scale().tune().outcome.tuned == 3
    assert default_cache().read_bytes() == content
    assert "miss" not in caplog.text


def test_two_fresh_tunings_within_one_second_get_two_files() -> None:
    scale, at = Scale(), datetime(2025, 3, 4, 5, 6, 7)
    for _ in range(2):
        session = Session(resolve_policy(policy="fresh"), now=lambda: at)
        collection = Collection(session.device)
        with collecting(collection):
            scale()
        session.tune(collection, 30)
        session.finish()
    assert [path.name for path in run_files()] == ["winners.20250304_050607-1.jsonl", "winners.20250304_050607.jsonl"]
    for path in run_files():
        assert len(read_run(path).verdicts) == 3


def test_fresh_tunings_one_after_the_other_each_get_a_file() -> None:
    scale = Scale()
    names = {scale.tune(policy="fresh").run for _ in range(3)}
    assert len(names) == 3
    assert names == set(map(str, run_files()))


def test_one_start_gets_one_file() -> None:
    scale = Scale()
    with tb.autotune(policy="fresh", budget_s=30) as outer:
        for rows in (1, 2, 4):
            with tb.autotune():
                scale(rows)
        with tb.autotune(policy="fresh", budget_s=30), tb.autotune():
            scale(8)
    assert outer.outcome is not None
    assert outer.outcome.tuned == 4
    assert list(map(str, run_files())) == [outer.run]


def test_the_log_of_a_fresh_start_names_the_variable_the_place_and_the_cost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    with caplog.at_level(logging.INFO, "tunebook"):
        Scale().tune()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    off = next(text for text in warnings if VARIABLE in text)
    assert "off" in off
    assert str(default_cache().parent / "runs") in off
    assert any(re.search(r"\b\d+\.\d s\b", text) and "every start" in text for text in warnings), warnings
    assert re.search(r"autotune completed: 3 problems tuned in \d+\.\d s", caplog.text)


def test_the_log_of_a_reusing_start_names_the_cache(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tunebook"):
        Scale().tune()
    assert f"runs with the cache at {default_cache()}" in caplog.text
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
    own: str | None, alias: str | None, expected: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ((VARIABLE, own), (ALIAS, alias)):
        if value is not None:
            monkeypatch.setenv(name, value)
    block = Scale().tune()
    assert block.policy.policy is expected
    assert default_cache().exists() is (expected is Policy.REUSE)


def test_a_fresh_start_by_the_alias_is_logged_under_the_alias(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ALIAS, "0")
    with caplog.at_level(logging.WARNING, "tunebook"):
        Scale().tune()
    assert ALIAS in caplog.text


def test_a_wrong_alias_of_another_project_is_a_warning_and_the_default(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ALIAS, "perhaps")
    with caplog.at_level(logging.WARNING, "tunebook"):
        assert Scale().tune().policy.policy is Policy.REUSE
    assert ALIAS in caplog.text
    assert "perhaps" in caplog.text


def test_a_wrong_value_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "perhaps")
    with pytest.raises(tb.TunebookError, match=rf"{VARIABLE}='perhaps'.*1/true/yes"):
        tb.autotune()


@pytest.mark.parametrize(("value", "policy"), [("0", "reuse"), ("1", "fresh"), ("0", "replay")])
def test_an_argument_goes_before_the_variable_and_what_lost_is_logged(
    value: str, policy: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with caplog.at_level(logging.INFO, "tunebook"):
        block = Scale().tune(policy=policy)
    assert block.policy.policy is Policy(policy)
    assert default_cache().exists() is (policy == "reuse")
    assert len(run_files()) == (policy != "replay")
    assert any("overruled" in r.getMessage() and f"{VARIABLE}={value}" in r.getMessage() for r in caplog.records)


def test_autotune_off_never_tunes_but_serves_what_is_known(
    monkeypatch: pytest.MonkeyPatch, restart: Callable[[], None]
) -> None:
    monkeypatch.setenv("TUNEBOOK_AUTOTUNE", "0")
    scale = Scale()
    block = scale.tune()
    assert block.policy.policy is Policy.REPLAY
    assert (block.outcome.tuned, scale.calls["quick"], scale.calls["default"]) == (0, 0, 0)
    assert not default_cache().parent.exists(), "something was written"
    assert scale() == "default"

    monkeypatch.delenv("TUNEBOOK_AUTOTUNE")
    restart()
    Scale().tune()
    before, runs = snapshot(default_cache()), run_files()
    monkeypatch.setenv("TUNEBOOK_AUTOTUNE", "0")
    restart()
    scale = Scale()
    assert scale.tune(rows=8).outcome.tuned == 0
    assert scale(4) == "quick"
    assert scale(8) == "default"
    assert snapshot(default_cache()) == before
    assert run_files() == runs


def test_tune_mode_false_is_replay() -> None:
    scale = Scale()
    block = scale.tune(tune_mode=False)
    assert block.policy.policy is Policy.REPLAY
    assert (block.outcome.tuned, scale.calls["quick"], scale.calls["default"]) == (0, 0, 0)
    assert block.run is None
    assert tb.autotune(False, policy="replay").policy.policy is Policy.REPLAY


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


def test_directories_are_created(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNEBOOK_CACHE_DIR", str(tmp_path / "not" / "there yet"))
    Scale().tune()
    cache = default_cache()
    assert cache.is_relative_to(tmp_path / "not" / "there yet" / "autotune")
    assert sorted(p.name for p in cache.parent.iterdir() if p.suffix != ".lock") == [
        "environment.json",
        "runs",
        "winners.json",
    ]
    described = json.loads((cache.parent / "environment.json").read_text())
    assert described["digest"] == cache.parent.name == device_of("cpu").environment().digest


def test_a_cache_of_ones_own_has_its_runs_beside_it(tmp_path: Path, restart: Callable[[], None]) -> None:
    cache = tmp_path / "somewhere" / "tuned.json"
    Scale().tune(cache=cache)
    assert verdicts(cache).keys() == {key(1), key(2), key(4)}
    (run,) = run_files(cache)
    assert re.fullmatch(r"tuned\.\d{8}_\d{6}\.jsonl", run.name)
    assert not default_cache().exists()
    restart()
    assert Scale().tune(cache=str(cache)).outcome.tuned == 0
    restart()
    assert Scale().tune(cache=run).outcome.tuned == 0, "whatever reads a cache reads a run"


def test_a_directory_as_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="directory"), tb.autotune(cache=tmp_path):
        pass


# Caches that cannot be served


def _absent(cache: Path) -> None:
    cache.unlink()


def _empty(cache: Path) -> None:
    cache.write_bytes(b"")


def _not_json(cache: Path) -> None:
    cache.write_text("winners: 3\n")


def _schema(cache: Path) -> None:
    cache.write_text(json.dumps({**json.loads(cache.read_text()), "schema": SCHEMA + 1}))


def _environment(cache: Path) -> None:
    document = json.loads(cache.read_text())
    document["environment"]["hard"]["isa"] = "sse2"
    cache.write_text(json.dumps(document))


def _entry(cache: Path) -> None:
    document = json.loads(cache.read_text())
    for verdict in document["verdicts"].values():
        del verdict["winner"]
    cache.write_text(json.dumps(document))


@pytest.mark.parametrize("policy", ["reuse", "replay"])
@pytest.mark.parametrize(
    ("spoil", "words", "kept"),
    [
        (_absent, ("absent",), False),
        (_empty, ("empty",), False),
        (_not_json, ("not JSON",), False),
        (_schema, ("schema", str(SCHEMA + 1)), True),
        (_environment, ("environment", "isa", "sse2"), True),
        (_entry, ("entry", "winner", key(4)), False),
    ],
)
def test_a_cache_that_cannot_be_served_is_a_named_miss_and_a_working_start(
    spoil: Callable[[Path], None],
    words: tuple[str, ...],
    kept: bool,
    policy: str,
    restart: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    Scale().tune()
    cache = default_cache()
    spoil(cache)
    before = snapshot(cache) if cache.exists() else None
    restart()
    scale = Scale()
    with caplog.at_level(logging.INFO, "tunebook"):
        outcome = scale.tune(policy=policy).outcome
    misses = [r.getMessage() for r in caplog.records if "cache miss" in r.getMessage()]
    assert any(all(word in text for word in (str(cache), *words)) for text in misses), misses
    if policy == "replay":
        assert outcome.tuned == 0
        assert scale() == "default"
        assert (snapshot(cache) if cache.exists() else None) == before
    else:
        assert outcome.tuned == 3
        assert scale() == "quick"
        if kept:  # it may be somebody's: never overwritten, and said so
            assert snapshot(cache) == before
            assert "is left as it is" in outcome.not_published
        else:
            assert {v["winner"] for v in verdicts().values()} == {QUICK}


def test_an_unknown_tactic_is_a_named_miss_and_what_stands_behind_it_serves(
    restart: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    Scale().tune()
    cache = default_cache()
    cache.write_text(cache.read_text().replace(QUICK, "quick[block=77]"))
    restart()
    scale = Scale()
    with caplog.at_level(logging.INFO, "tunebook"):
        outcome = scale.tune().outcome
    assert any("cache miss" in r.getMessage() and "quick[block=77]" in r.getMessage() for r in caplog.records)
    assert any("quick[block=77]" in miss and key(4) in miss for miss in outcome.misses)
    assert scale() == "default"


@pytest.mark.parametrize(
    ("offer", "words"),
    [
        ({"version": "2"}, ("quick", "v:2", "v:1")),
        ({"block": 2}, ("quick", "other tactics")),
    ],
)
def test_a_changed_runner_is_a_named_miss_and_races_again(
    offer: dict[str, Any], words: tuple[str, ...], restart: Callable[[], None]
) -> None:
    Scale().tune()
    restart()
    scale = Scale(**offer)
    replayed = scale.tune(policy="replay").outcome
    assert replayed.tuned == 0
    assert any(all(word in miss for word in words) for miss in replayed.misses), replayed.misses
    if "version" in offer:
        assert scale() == "default", "a tactic of another version was served unchecked"

    restart()
    scale = Scale(**offer)
    outcome = scale.tune().outcome
    assert outcome.tuned == 3
    assert any(all(word in miss for word in words) for miss in outcome.misses), outcome.misses
    assert scale() == "quick"
    assert {v["winner"] for v in verdicts().values()} == {f"quick[block={offer.get('block', 1)}]"}
    restart()
    assert Scale(**offer).tune().outcome.tuned == 0


def test_a_runner_that_is_gone_is_a_named_miss(restart: Callable[[], None]) -> None:
    Scale().tune()
    restart()
    scale = Scale()
    scale.op.remove_runner("quick")
    outcome = scale.tune().outcome
    assert any("runner quick is not offered" in miss for miss in outcome.misses)
    assert scale() == "default"


# The block


def test_an_exception_inside_the_block_tunes_nothing_and_what_was_known_stays() -> None:
    scale = Scale()
    scale.tune()
    before, runs = snapshot(default_cache()), run_files()
    scale.calls.clear()
    with pytest.raises(ZeroDivisionError), tb.autotune(policy="fresh"):  # noqa: PT012 - the call belongs to the block
        scale(32)
        raise ZeroDivisionError
    assert scale.calls == {"default": 1}
    assert snapshot(default_cache()) == before
    assert run_files() == runs
    assert scale(4) == "quick"
    assert scale(32) == "default"
    assert scale.tune(rows=8).outcome.tuned == 1, "the block that failed is still open"


@pytest.mark.parametrize(
    "inner",
    [
        {"policy": "fresh"},
        {"tune_mode": False},
        {"budget_s": 5},
        {"cache": "other.json"},
        {"skip_ops": (OP,)},
        {"only_ops": ("linear",)},
        {"only_runners": ("quick",)},
    ],
    ids=str,
)
def test_a_nested_block_that_differs_is_an_error(inner: dict[str, Any]) -> None:
    scale = Scale()
    with tb.autotune(budget_s=30) as outer:
        scale()
        with pytest.raises(ValueError, match="autotune inside autotune"), tb.autotune(**inner):
            pass
    assert outer.outcome is not None
    assert outer.outcome.tuned == 3, "the outer block goes on"


def test_an_exception_in_an_inner_block_that_is_caught_leaves_the_outer_one_tuning() -> None:
    scale = Scale()
    with tb.autotune(budget_s=30) as outer:
        scale(2)
        with pytest.raises(KeyError), tb.autotune():
            raise KeyError
        scale(4)
    assert outer.outcome is not None
    assert outer.outcome.tuned == 3


def test_a_block_without_a_call_leaves_nothing_behind() -> None:
    with tb.autotune() as block:
        pass
    assert block.outcome is not None
    assert block.outcome.seen == 0
    assert not default_cache().parent.exists()


def test_every_bucket_up_to_the_largest_size_is_tuned() -> None:
    scale = Scale()
    assert scale.tune(rows=33).outcome.tuned == 7
    assert verdicts().keys() == {key(size) for size in (1, 2, 4, 8, 16, 32, 64)}
    assert all(v["winner"] == QUICK for v in verdicts().values())


# Dispatch


def test_an_exact_shape_a_shape_of_its_bucket_and_a_shape_never_seen() -> None:
    scale = Scale()
    scale.tune(rows=8)
    FREE.counts.clear()
    assert scale(8) == "quick"
    assert not FREE.counts
    assert scale(5) == "quick"
    assert scale(5) == "quick"
    assert FREE.counts == {"bucket": 2}
    assert scale(9) == "default"
    assert scale(9) == "default"
    assert FREE.counts == {"bucket": 2, "default: not tuned": 2}
    assert scale(8, dtype=torch.float64) == "default"
    assert FREE.counts["default: not tuned"] == 3
    assert scale(65) == "default"
    assert FREE.counts["default: no bucket for this size"] == 1


def test_gradients_run_the_default() -> None:
    scale = Scale()
    scale.tune(rows=8)
    FREE.counts.clear()
    assert scale(8) == "quick"
    assert scale(8, grad=True) == "default"
    assert sum(count for what, count in FREE.counts.items() if "gradients" in what) == 1
    with torch.no_grad():
        assert scale(8, grad=True) == "quick"


def test_strides_that_differ_are_another_problem() -> None:
    scale = Scale()
    scale.tune(rows=8)
    x = torch.arange(24.0).reshape(3, 8).t()
    scale.calls.clear()
    assert torch.equal(scale.op(x, 2.0), x * 2.0)
    assert scale.calls == {"default": 1}


# Rejections


class Trouble:
    """An op whose runners are each wrong in a way of their own, but one."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

        def trouble(x: torch.Tensor) -> torch.Tensor:
            pause()
            return x + 1

        self.op = tb.op("demo::trouble", buckets={"x": {0: tb.pow2(name="M")}})(trouble)
        for name in ("good", "raises", "wrong", "nan", "unwritten", "mutates", "shape", "dtype", "nothing", "oom"):
            self._add(name)
        self._add("hungry", workspace=lambda x: 1 << 50)
        self._add("frugal", workspace=lambda x: 1 << 10)
        self._add("absent", available=lambda: "needs a machine that nobody has")
        self._add("unfit", supports=lambda problem: "rows of three do not fit")

    def _add(self, name: str, **options: Any) -> None:
        def run(x: torch.Tensor) -> torch.Tensor | None:
            self.calls[name] += 1
            return self.results(name, x)

        self.op.runner(name, version="1", **options)(run)

    def results(self, name: str, x: torch.Tensor) -> torch.Tensor | None:
        match name:
            case "raises":
                raise RuntimeError("no such instruction")
            case "wrong":
                return x + 1.1
            case "nan":
                return torch.full_like(x, float("nan"))
            case "unwritten":
                out = torch.empty_like(x)
                out[:-1] = x[:-1] + 1
                return out
            case "mutates":
                result = x + 1
                x.zero_()
                return result
            case "shape":
                return (x + 1)[:1, :1]
            case "dtype":
                return x.double() + 1
            case "nothing":
                return None
            case "oom":
                raise MemoryError
            case "frugal":
                pause()
        return x + 1


def test_a_tactic_that_cannot_be_trusted_is_rejected_with_its_reason_and_the_right_one_serves() -> None:
    trouble = Trouble()
    with tb.autotune(budget_s=30) as block:
        trouble.op(torch.arange(24.0).reshape(8, 3) + 1)
    assert block.run is not None
    run = read_run(block.run)
    assert len(run.verdicts) == 4
    expected = {
        "raises": ("runtime", "no such instruction"),
        "wrong": ("correctness", "off by"),
        "nan": ("correctness", "NaN"),
        "unwritten": ("correctness", "NaN"),
        "mutates": ("correctness", "argument 0 was changed"),
        "shape": ("correctness", "shape"),
        "dtype": ("correctness", "dtype"),
        "nothing": ("correctness", "nothing"),
        "oom": ("memory", "out of memory"),
        "hungry": ("memory", "limit"),
        "absent": ("unavailable", "needs a machine that nobody has"),
        "unfit": ("constraints", "rows of three do not fit"),
    }
    for problem, verdict in run.verdicts.items():
        assert verdict.winner == "good"
        rejected = {r.tactic: r for r in rejections(run, problem)}
        assert {name: r.reason for name, r in rejected.items()} == {name: e[0] for name, e in expected.items()}
        for name, (_, words) in expected.items():
            assert words in rejected[name].detail
        assert set(verdict.rejected) == set(rejected.values())
    for name in ("hungry", "absent", "unfit"):
        assert trouble.calls[name] == 0, f"{name} was refused, and run all the same"
    assert "frugal" in {line.trial.tactic for line in run.trials if not isinstance(line.trial, Rejected)}
    before = trouble.calls["good"]
    assert torch.equal(trouble.op(torch.ones(8, 3)), torch.full((8, 3), 2.0))
    assert trouble.calls["good"] == before + 1


def rejections(run: Run, problem: str) -> list[Rejected]:
    return [line.trial for line in run.trials if line.problem == problem and isinstance(line.trial, Rejected)]


def test_the_memory_limit_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    scale = Scale()
    scale.op.runner("greedy", version="1", workspace=lambda x, s: 2_000_000)(lambda x, s: x * s)
    scale.op.runner("modest", version="1", workspace=lambda x, s: 500_000)(lambda x, s: x * s)
    monkeypatch.setenv("TUNEBOOK_MEMORY_LIMIT_GB", "0.001")
    block = scale.tune()
    assert block.run is not None
    run = read_run(block.run)
    assert {(r.trial.tactic, r.trial.reason) for r in run.trials if isinstance(r.trial, Rejected)} == {
        ("greedy", "memory")
    }


def test_a_failing_default_is_an_error_of_the_model_and_is_raised() -> None:
    @tb.op("demo::broken")
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the model itself is broken")

    with pytest.raises(RuntimeError, match="the model itself"), tb.autotune():
        broken(torch.ones(2, 2))
    assert not default_cache().exists()
