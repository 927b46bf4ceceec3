"""The history of runs, and their pruning."""

from __future__ import annotations

import fcntl
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tunebook.book import history, place_of, plan_pruning, prune
from tunebook.errors import StoreError, UsageError
from tunebook.records import Overall, Plan, Rejected

NOW = datetime(2026, 1, 11)


def plan(key: str, run: str = "", **changes: Any) -> Plan:
    overall = Overall(speedup=1.4, speedup_low=1.3, speedup_high=1.5)
    fields: dict[str, Any] = {"model": "a-model", "fingerprint": "f", "tactics": {key: "default"}, "run": run}
    return Plan(**{**fields, "verified": True, "overall": overall, **changes})


def test_a_run_is_told_by_its_header_its_plan_and_its_footer(made: Any) -> None:
    key = made.key(1)
    path = made.run(
        [made.verdict(key), made.verdict(made.key(2))], plan=plan(key), note="tiles", commit="c" * 40, dirty=True
    )
    (entry,) = history(place_of(made.cache([])))
    assert entry.path == str(path)
    assert (entry.started, entry.model, entry.policy, entry.problems) == ("2026-01-01T00:00:00", "a-model", "fresh", 2)
    assert (entry.seconds, entry.finished, entry.note) == (12.5, True, "tiles")
    assert (entry.commit, entry.dirty, entry.session) == ("c" * 40, True, "s0")
    assert entry.overall == Overall(speedup=1.4, speedup_low=1.3, speedup_high=1.5)


def test_the_newest_comes_first_and_models_and_ops_narrow(made: Any) -> None:
    first = made.run([made.verdict(made.key(1))])
    second = made.run([made.verdict(made.key(1, "experts"))], model="another")
    third = made.run([made.verdict(made.key(1)), made.verdict(made.key(1, "experts"))])
    place = place_of(made.cache([]))

    def paths(**narrowed: str) -> list[str]:
        return [entry.path for entry in history(place, **narrowed)]

    assert paths() == [str(third), str(second), str(first)]
    assert paths(model="another") == [str(second)]
    assert paths(op="experts") == [str(third), str(second)]
    assert paths(model="a-model", op="experts") == [str(third)]
    assert paths(op="attention") == []


def test_a_session_that_did_not_end_is_told_as_far_as_it_came(made: Any) -> None:
    path = made.run([made.verdict(made.key(1)), made.verdict(made.key(1)), made.verdict(made.key(2))], footer=False)
    path.write_bytes(path.read_bytes() + b'{"type":"verdict","verd')
    (entry,) = history(place_of(made.cache([])))
    assert (entry.problems, entry.seconds, entry.finished) == (2, None, False)


@pytest.mark.parametrize("block", [1, 7, 100, 1000, 1 << 20])
def test_verdicts_are_found_wherever_a_block_of_the_file_ends(
    made: Any, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunebook.book._light._BLOCK", block)
    keys = [made.key(size) for size in range(1, 12)]
    trials = {key: [Rejected(tactic="verdict", reason="memory", detail='says "verdict"')] for key in keys}
    made.run([made.verdict(key) for key in keys], trials=trials, footer=False)
    (head,) = place_of(made.cache_path).heads()
    assert head.problems() == tuple(keys)


def test_a_plan_that_was_not_verified_tells_no_gain(made: Any) -> None:
    made.run([made.verdict(made.key(1))], plan=plan(made.key(1), verified=False))
    (entry,) = history(place_of(made.cache([])))
    assert entry.overall is None


def test_a_plan_line_longer_than_a_block_is_read(made: Any) -> None:
    tactics = {made.key(size): "native[tile=1]" for size in range(1, 6000)}
    path = made.run([made.verdict(made.key(1))], plan=plan(made.key(1), tactics=tactics))
    assert path.stat().st_size > 1 << 17
    (entry,) = history(place_of(made.cache([])))
    assert entry.overall is not None


def test_other_files_and_other_caches_runs_are_left_out(made: Any) -> None:
    path = made.run([made.verdict(made.key(1))])
    made.run([made.verdict(made.key(1))], name="tuned.20260101_000000.jsonl")
    (made.runs / "winners.broken.jsonl").write_bytes(b"{")
    (made.runs / "winners.newer.jsonl").write_bytes(path.read_bytes().replace(b'"schema":1', b'"schema":99'))
    (made.runs / "winners.directory.jsonl").mkdir()
    os.mkfifo(made.runs / "winners.pipe.jsonl")
    assert [entry.path for entry in history(place_of(made.cache([])))] == [str(path)]


def test_no_runs_at_all(made: Any) -> None:
    assert history(place_of(made.cache_path)) == []


# Pruning


def pruned(made: Any, **options: Any) -> list[str]:
    plan = plan_pruning(place_of(made.cache_path), now=NOW, **options)
    return sorted(head.path.name for head in plan.removed)


@pytest.fixture
def aged(made: Any) -> list[str]:
    """Runs that began on each of the first ten days of the year, ten days to one day ago."""
    days = [f"2026-01-{day:02d}T00:00:00" for day in range(1, 11)]
    return [made.run([made.verdict(made.key(1))], started=started).name for started in days]


def test_the_newest_stay_and_the_young_stay(made: Any, aged: list[str]) -> None:
    assert pruned(made, keep=3) == aged[:7]
    assert pruned(made, keep=0) == aged
    assert pruned(made, keep=99) == []
    assert pruned(made, older_than_days=6.5) == aged[:4]
    assert pruned(made, keep=8, older_than_days=3) == aged[:2], "what is both old and not among the newest"
    assert pruned(made, keep=3, model="nobody") == []
    assert len(list(made.runs.iterdir())) == 10, "nothing was removed"


def test_what_the_cache_names_stays_unless_told(made: Any, aged: list[str]) -> None:
    made.cache([made.verdict(made.key(1), run=aged[0])], [plan(made.key(1), run=aged[1])])
    found = plan_pruning(place_of(made.cache_path), keep=5, now=NOW)
    assert sorted(head.path.name for head in found.removed) == aged[2:5]
    assert {(head.path.name, "the cache names it" in why) for head, why in found.spared} == {
        (aged[0], True),
        (aged[1], True),
    }
    assert pruned(made, keep=5, also_named=True) == aged[:5]


def test_a_run_that_may_be_going_on_stays(made: Any) -> None:
    path = made.run([made.verdict(made.key(1))], footer=False)
    assert pruned(made, keep=0, also_named=True) == []
    long_ago = time.time() - 7200
    os.utime(path, (long_ago, long_ago))
    assert pruned(made, keep=0) == [path.name]
    with path.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert pruned(made, keep=0) == []


def test_removing_removes_just_these(made: Any, aged: list[str]) -> None:
    found = plan_pruning(place_of(made.cache_path), keep=4, now=NOW)
    assert found.bytes == sum((made.runs / name).stat().st_size for name in aged[:6])
    prune(found.removed)
    assert sorted(path.name for path in made.runs.iterdir()) == aged[6:]
    prune(found.removed)  # what is gone is gone


def test_what_cannot_be_removed_is_named(made: Any, aged: list[str]) -> None:
    found = plan_pruning(place_of(made.cache_path), keep=9, now=NOW)
    path: Path = found.removed[0].path
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match=aged[0]):
        prune(found.removed)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "--keep N, or --older-than"),
        ({"keep": -1}, "--keep -1"),
        ({"older_than_days": -2.0}, "--older-than -2"),
        ({"older_than_days": float("nan")}, "--older-than nan"),
    ],
    ids=str,
)
def test_wrong_numbers(made: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_pruning(place_of(made.cache_path), **options)
