"""A tuning over a search path: what was shipped is not measured again, is not copied, and FRESH does not read it."""

from __future__ import annotations

import json
import logging
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tunebook.store import read_cache


def key(op: str, size: int = 1) -> str:
    return f"{op}|x.1=3|fp32|M≤{size}"


def declare(lab: Any) -> None:
    for name in ("one", "two"):
        lab.op(name, 1e-2)
        lab.runner(name, "fast", {"p": (1, 2)}, lambda size, p: 1e-3 * p)


@pytest.fixture
def ship(lab: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that knows the op `one`, on the search path; the lab's own is another, not there yet."""
    declare(lab)
    lab.tune({"one": [4]}, 30.0)
    shipped = lab.cache.with_name("shipped.json")
    lab.cache.rename(shipped)
    monkeypatch.setenv("TUNEBOOK_CACHE_PATH", str(shipped))
    assert isinstance(shipped, Path)
    return shipped


def called(lab: Any) -> set[str]:
    return {op for op, _ in lab.calls}


def test_what_was_shipped_is_not_measured_again_nor_copied(lab: Any, ship: Path) -> None:
    before = ship.read_bytes(), ship.stat().st_mtime_ns
    outcome = lab.tune({"one": [4]}, 30.0)
    assert (outcome.seen, outcome.cached, outcome.tuned) == (3, 3, 0)
    assert not lab.calls
    assert {tactic.name for tactic in outcome.tactics.values()} == {"fast[p=1]"}
    assert not lab.cache.exists()
    assert lab.session.recall.origins(outcome.verdicts) == dict.fromkeys(outcome.verdicts, ship)

    outcome = lab.tune({"one": [4], "two": [1]}, 30.0)
    assert (outcome.cached, outcome.tuned) == (3, 1)
    assert called(lab) == {"two"}
    assert set(read_cache(lab.cache, None).verdicts) == {key("two")}
    assert set(lab.session.recall.origins(outcome.verdicts)) == {key("one", size) for size in (1, 2, 4)}
    assert (ship.read_bytes(), ship.stat().st_mtime_ns) == before


def test_a_runner_that_has_changed_races_what_was_shipped_and_the_result_is_the_users_own(lab: Any, ship: Path) -> None:
    before = ship.read_bytes()
    lab.op("one", 1e-2)
    lab.runner("one", "fast", {"p": (1, 2)}, lambda size, p: 1e-3 * (3 - p), version="2")
    outcome = lab.tune({"one": [1]}, 30.0)
    assert (outcome.tuned, outcome.tactics[key("one")].name) == (1, "fast[p=2]")
    assert ship.read_bytes() == before
    assert read_cache(lab.cache, None).verdicts[key("one")].winner == "fast[p=2]"
    outcome = lab.tune({"one": [1]}, 30.0)  # the user's own goes before what was shipped
    assert (outcome.tuned, outcome.tactics[key("one")].name) == (0, "fast[p=2]")


def test_what_a_budget_left_out_is_served_from_what_was_shipped(
    lab: Any, ship: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads(ship.read_bytes())
    left = {"winner": "default", "status": "unresolved", "speedup": 1.0, "low": 1.0, "high": 1.0, "rounds": 0}
    left |= {"frontier": [{"tactic": "default", "ratio": 1.0, "low": 1.0, "high": 1.0}]}
    document["verdicts"][key("one")] |= {**left, "note": "left out: the budget was spent"}
    document["plans"] = {}
    lab.cache.write_text(json.dumps(document))
    with monkeypatch.context() as patch:
        patch.delenv("TUNEBOOK_CACHE_PATH")
        assert lab.tune({"one": [1]}, 30.0, policy="replay").tactics[key("one")].name == "default"
    outcome = lab.tune({"one": [1]}, 30.0)
    assert (outcome.tuned, outcome.tactics[key("one")].name) == (0, "fast[p=1]")
    assert not lab.calls


def test_fresh_does_not_read_it_and_replay_does(lab: Any, ship: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = lab.tune({"one": [1]}, 30.0, policy="fresh")
    assert (outcome.cached, outcome.tuned) == (0, 1)
    assert lab.session.recall.misses == ()
    monkeypatch.setenv("TUNEBOOK_CACHE_PATH", f"{ship.with_name('absent')}:{ship}")
    outcome = lab.tune({"one": [1], "two": [1]}, 30.0, policy="replay")
    assert (outcome.cached, outcome.tuned) == (1, 0)
    assert not lab.calls


def test_a_tuning_that_is_resumed_reads_it(lab: Any, ship: Path) -> None:
    class Killed(BaseException):
        """Ends the tuning as kill -9 does."""

    real, asked = lab.machine.work, {"one": [4], "two": [1]}
    done: list[float] = []

    def work(seconds: float, sigma: float | None = None) -> None:
        real(seconds, sigma)
        done.append(seconds)
        if not lab.machine.quiet and len(done) == 12:
            raise Killed

    lab.machine.work = work
    with suppress(Killed):
        lab.tune(asked, 30.0)
    lab.machine.work = real
    path = lab.session.run_path
    lab.session.record.writer().close()
    assert called(lab) == {"two"}
    before = Counter(lab.calls)
    outcome = lab.tune(asked, 30.0, resume=path)
    assert (outcome.cached, outcome.tuned) == (3, 1)
    assert called(lab) == {"two"}
    assert before.total()
    assert set(read_cache(lab.cache, None).verdicts) == {key("two")}


def test_bad_entries_are_one_warning_each_and_no_more(
    lab: Any, ship: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torn, foreign = ship.with_name("torn.json"), ship.with_name("foreign.json")
    torn.write_bytes(ship.read_bytes()[:-50])
    document = json.loads(ship.read_bytes())
    document["environment"]["hard"]["device"] = "another one"
    foreign.write_text(json.dumps(document))
    monkeypatch.setenv("TUNEBOOK_CACHE_PATH", f"{ship.with_name('absent.json')}:{torn}:{foreign}:{ship}")
    with caplog.at_level(logging.INFO, "tunebook"):
        outcome = lab.tune({"one": [4]}, 30.0)
        lab.session.announce()
    assert (outcome.cached, outcome.tuned) == (3, 0)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 3
    for name, says in (
        ("absent.json", "no such file"),
        ("torn.json", "not JSON"),
        ("foreign.json", "device: made up ≠ another"),
    ):
        (line,) = (text for text in warnings if f"TUNEBOOK_CACHE_PATH, {ship.with_name(name)}: " in text)
        assert says in line
    caplog.clear()

    # A bad entry in a good file: one line when it is asked for, and the rest serves.
    document["environment"]["hard"]["device"] = "made up"
    document["verdicts"][key("one", 2)]["status"] = "certain"
    foreign.write_text(json.dumps(document))
    monkeypatch.setenv("TUNEBOOK_CACHE_PATH", str(foreign))
    with caplog.at_level(logging.WARNING, "tunebook"):
        outcome = lab.tune({"one": [4]}, 30.0, policy="replay")
    assert outcome.cached == 2
    (line,) = (record.getMessage() for record in caplog.records)
    assert f"{foreign}, verdict {key('one', 2)}: entry" in line
