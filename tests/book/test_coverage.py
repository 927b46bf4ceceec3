"""What was counted, held against what a cache knows: who served, what it took, and what to tune."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tunebook as tb
from tunebook.book._known import estimated
from tunebook.book._suggestion import MOST_SIZES
from tunebook.book.coverage import Coverage, ProblemCoverage
from tunebook.envs import envs
from tunebook.errors import StoreError, UsageError
from tunebook.records import CoverageDocument, Environment, Plan, Profile, Served, Settings
from tunebook.records.coverage import MAX_PREFILL, OUTSIDE
from tunebook.store.coverage import encode_coverage

FAMILY = "linear|N=8,K=8|bf16"


def counts(
    folder: Path, unlisted: int = 0, outside: dict[str, Served] | None = None, **models: dict[str, Served]
) -> Path:
    """A file with these calls by model, and those made outside of any."""
    models |= {OUTSIDE: outside} if outside else {}
    path = folder / "coverage.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_coverage(CoverageDocument(since="a", until="b", models=models, unlisted=unlisted)))
    return path


def plan(made: Any, met: tuple[int, ...] = (4,), **changes: Any) -> Plan:
    calls = {made.key(size): 2 for size in met}
    profile = Profile(phase="decode 4", seconds=1.0, calls=calls, taken=dict.fromkeys(calls, 0.1))
    fields: dict[str, Any] = {"model": "a-model", "fingerprint": "f", "tactics": {}, "profile": (profile,)}
    return Plan(**{**fields, "modules": {"layer": (FAMILY,)}, **changes})


def row_of(found: Coverage, problem: str) -> ProblemCoverage:
    (row,) = [row for row in found.problems if row.problem == problem]
    return row


@pytest.fixture
def judged(made: Any) -> Coverage:
    """Of one family 4 and 64 are tuned, the default's 100 and 400 µs twice as fast; 4 is all that was met."""
    verdicts = [made.verdict(made.key(4), 2.0), made.verdict(made.key(64), 2.0, seconds=2e-4)]
    cache = made.cache(verdicts, [plan(made)])
    path = counts(
        made.folder,
        7,
        Model={
            made.key(4): Served(tuned=60, default=20, pinned=10),
            made.key(64): Served(tuned=1, prefill=60),
            made.key(2): Served(bucket=5, decode=2),
            made.key(256): Served(default=5, prefill=200),
            made.key(8, "other"): Served(default=1),
        },
    )
    return tb.coverage(path, cache=cache)


def test_time_is_calls_times_what_the_verdicts_say(judged: Coverage, made: Any) -> None:
    own = row_of(judged, made.key(4))
    assert (own.basis, own.covered, own.met) == ("verdict", True, True)
    assert own.seconds == pytest.approx(60 * 50e-6 + 10 * 100e-6 + 20 * 100e-6)
    assert own.untuned_seconds == pytest.approx(20 * 100e-6)
    assert not own.uncovered, "a verdict is there; a tuning would change nothing"


def test_what_has_no_verdict_is_estimated_from_the_nearest_buckets(judged: Coverage, made: Any) -> None:
    smaller, larger = row_of(judged, made.key(2)), row_of(judged, made.key(256))
    assert (smaller.basis, larger.basis) == ("nearest", "nearest")
    assert smaller.seconds == smaller.untuned_seconds == pytest.approx(5 * 100e-6), "as the bucket of 4"
    assert larger.seconds == pytest.approx(5 * 800e-6), "16 times the size took 4 times as long: 4 times twice"
    assert smaller.uncovered
    assert larger.uncovered
    assert (smaller.met, larger.met) == (False, False)


@given(
    st.dictionaries(st.integers(1, 10**6), st.floats(1e-7, 10.0), min_size=1, max_size=6),
    st.integers(1, 10**7),
)
def test_an_estimate_stays_between_its_neighbours(times: dict[int, float], size: int) -> None:
    seconds = estimated(times, size)
    known = sorted(times)
    if size in times:
        assert seconds == pytest.approx(times[size])
    elif size < known[0]:
        assert seconds == times[known[0]]
    elif size > known[-1]:
        assert times[known[-1]] <= seconds * 1.000001
        assert seconds <= times[known[-1]] * size / known[-1] * 1.000001
    else:
        pair = [times[max(k for k in known if k < size)], times[min(k for k in known if k > size)]]
        assert min(pair) * 0.999999 <= seconds <= max(pair) * 1.000001


def test_sizes_and_times_beyond_all_reason_are_borne(made: Any) -> None:
    huge = "o|||" + ",".join(f"d{i}≤{2**53}" for i in range(40))
    verdicts = [made.verdict("o|||d≤1", 2.0, seconds=5e-324), made.verdict("o|||d≤8", 1e300, seconds=1e10)]
    path = counts(made.folder, Model={key: Served(default=2**53) for key in (huge, "o|||d≤4", "o|||d≤8")})
    found = tb.coverage(path, cache=made.cache(verdicts))
    assert all(row.seconds is not None and math.isfinite(row.seconds) for row in found.problems)
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.suggestions[0].prefill == (MAX_PREFILL,)


def test_what_no_bucket_is_near_is_unknown_and_named(judged: Coverage, made: Any) -> None:
    row = row_of(judged, made.key(8, "other"))
    assert (row.basis, row.seconds, row.untuned_seconds, row.met) == ("unknown", None, None, None)
    assert judged.unknown == (row,)


def test_totals_and_ops_add_up(judged: Coverage, made: Any) -> None:
    seconds = 60 * 50e-6 + 30 * 100e-6 + 200e-6 + 5 * 100e-6 + 5 * 800e-6
    untuned = 20 * 100e-6 + 5 * 100e-6 + 5 * 800e-6
    assert judged.calls == 102
    assert judged.untuned_calls == 31
    assert judged.unlisted == 7
    assert judged.seconds == pytest.approx(seconds)
    assert judged.untuned_share == pytest.approx(untuned / seconds)
    first, second = judged.ops
    assert (first.op, first.calls, first.pinned, first.tuned, first.bucket, first.default) == (
        "linear", 101, 10, 61, 5, 25
    )  # fmt: skip
    assert first.share == pytest.approx(1.0)
    assert first.untuned_share == pytest.approx(untuned / seconds)
    assert (second.op, second.calls, second.share) == ("other", 1, 0.0)
    assert [row.problem for row in judged.problems][:2] == [made.key(256), made.key(4)], "the costliest untuned first"
    assert {row.problem for row in judged.unmet} == {made.key(2), made.key(64), made.key(256)}


def test_the_suggestion_asks_for_the_sizes_that_lack_a_tuning(judged: Coverage, made: Any) -> None:
    (one,) = judged.suggestions
    assert (one.model, one.tuned_as, one.problems) == ("Model", "a-model", 3)
    assert (one.decode, one.prefill) == ((2,), (200,))
    assert one.command("--threads", "2") == (
        *("tunebook", "tune", "MODEL", "--decode", "2", "--prefill", "200"),
        *("--threads", "2"),
    )
    assert judged.suggestion_for("Model", "a-model") == one
    assert judged.suggestion_for("Another", "a-model") is None


def test_the_newest_run_of_a_model_tells_what_loads_it(made: Any) -> None:
    cache = made.cache([made.verdict(made.key(4))], [plan(made)])
    made.run([], settings=Settings(source="/old"))
    made.run([], settings=Settings(source="/models/a model", files=("/my.py",)))
    made.run([], settings=Settings(source="--help"))
    made.run([], settings=Settings(source="/other"), model="another")
    path = counts(made.folder, Model={made.key(8): Served(default=1, decode=7)})
    (one,) = tb.coverage(path, cache=cache).suggestions
    assert one.command() == (
        *("tunebook", "tune", "/models/a model", "--with", "/my.py", "--decode", "7", "--prefill", ""),
    )


@pytest.mark.parametrize(
    ("rows", "decode", "prefill"),
    [
        ({16: Served(default=1)}, (), (16,)),
        ({1: Served(default=1)}, (1,), ()),
        ({16: Served(default=1), 8: Served(default=1, decode=9)}, (9,), ()),
        ({16: Served(default=1), 4: Served(default=1, decode=4)}, (4,), (16,)),
        ({16: Served(default=1, decode=9, prefill=12)}, (9,), (12,)),
        ({2**i: Served(default=100 - i, decode=2**i) for i in range(9)}, (1, 2, 4, 256), ()),
    ],
    ids=["flat rows", "one flat row", "reached by others", "not reached", "both phases", "many"],
)
def test_sizes_of_the_suggestion(
    made: Any, rows: dict[int, Served], decode: tuple[int, ...], prefill: tuple[int, ...]
) -> None:
    path = counts(made.folder, Model={made.key(size): served for size, served in rows.items()})
    (one,) = tb.coverage(path, cache=made.cache([])).suggestions
    assert (one.decode, one.prefill) == (decode, prefill)
    assert len(one.decode) <= MOST_SIZES


def test_what_the_budget_did_not_reach_was_served_by_the_default(made: Any) -> None:
    left = made.verdict(made.key(4), 1.0, rounds=0, note="left out: the budget was spent", seconds=3e-4)
    path = counts(made.folder, Model={made.key(4): Served(tuned=10, decode=4)})
    found = tb.coverage(path, cache=made.cache([left]))
    (row,) = found.problems
    assert (row.tuned, row.default, row.left_out, row.covered) == (0, 10, True, False)
    assert row.seconds == row.untuned_seconds == pytest.approx(10 * 3e-4)
    (one,) = found.suggestions
    assert one.command()[-1] == "--continue"


def test_sizes_that_a_plan_for_equal_bits_lends_a_tactic_to_are_not_tuned(made: Any) -> None:
    path = counts(made.folder, Model={made.key(size): Served(tuned=10) for size in (4, 8)})
    for invariant in (True, False):
        cache = made.cache([made.verdict(made.key(4))], [plan(made, batch_invariant=invariant)])
        found = tb.coverage(path, cache=cache)
        assert row_of(found, made.key(4)).tuned == 10
        lent = row_of(found, made.key(8))
        assert (lent.tuned, lent.bucket) == ((0, 10) if invariant else (10, 0))


def test_models_are_told_apart(made: Any) -> None:
    cache = made.cache([made.verdict(made.key(4))], [plan(made)])
    other = "linear|N=9,K=9|bf16|M≤4"
    path = counts(
        made.folder,
        Model={made.key(8): Served(default=1, decode=8), other: Served(default=1, decode=3)},
        Second={other: Served(default=1, decode=2)},
        outside={made.key(16): Served(default=1)},
    )
    found = tb.coverage(path, cache=cache)
    first, second = found.suggestions
    assert (first.tuned_as, first.decode) == ("a-model", (3, 8)), "a layer that no plan has is the model's"
    assert (second.model, second.tuned_as, second.decode) == ("Second", "", (2,))
    for name in ("Model", "a-model"):
        assert made.key(8) in {row.problem for row in found.of_model(name).problems}
    assert [row.model for row in found.of_model("Second").problems] == ["Second"]
    with pytest.raises(UsageError, match=r"'Third' was counted; there are Model, Second, a-model, free"):
        found.of_model("Third")


def test_a_model_that_shares_a_class_with_another_is_not_given_its_sizes(made: Any) -> None:
    cache = made.cache([], [plan(made), plan(made, fingerprint="g", model="b", modules={"l": ("linear|N=9|bf16",)})])
    path = counts(
        made.folder,
        Model={made.key(8): Served(default=1, decode=8), "linear|N=9|bf16|M≤4": Served(default=1, decode=3)},
    )
    found = tb.coverage(path, cache=cache)
    assert [(one.tuned_as, one.decode) for one in found.suggestions] == [("a-model", (8,)), ("b", (3,))]
    mine = found.suggestion_for("Model", "b")
    assert mine is not None
    assert mine.decode == (3,)


def test_nothing_is_known_where_nothing_was_tuned(made: Any) -> None:
    path = counts(made.folder, Model={made.key(8): Served(default=3, decode=8)})
    for cache in (None, made.folder / "absent.json"):
        found = tb.coverage(path, cache=cache)
        assert found.untuned_share is None
        assert found.unknown == found.problems
        assert found.misses == ()
        assert found.suggestions[0].decode == (8,)


def test_bad_entries_of_the_cache_are_named(made: Any) -> None:
    cache = made.cache([made.verdict(made.key(4)), made.verdict(made.key(8))])
    cache.write_bytes(cache.read_bytes().replace(b'"proven"', b'"perhaps"', 1))
    path = counts(made.folder, Model={made.key(4): Served(default=3)})
    (miss,) = tb.coverage(path, cache=cache).misses
    assert made.key(4) in miss


def test_a_run_says_what_is_tuned_as_well(made: Any) -> None:
    run = made.run([made.verdict(made.key(4), 2.0)])
    path = counts(made.folder, Model={made.key(4): Served(tuned=3)})
    (row,) = tb.coverage(path, cache=run).problems
    assert (row.covered, row.seconds) == (True, pytest.approx(3 * 50e-6))


def test_what_was_shipped_counts(made: Any, tmp_path: Path) -> None:
    shipped = made.cache([made.verdict(made.key(4), 2.0)]).rename(tmp_path / "shipped.json")
    path = counts(made.folder, Model={made.key(4): Served(tuned=3)})
    own = made.cache([made.verdict(made.key(8))])
    with envs.TUNEBOOK_CACHE_PATH.override((shipped,)):
        (row,) = tb.coverage(path, cache=own).problems
    assert row.covered
    (row,) = tb.coverage(path, cache=own).problems
    assert not row.covered


def test_a_file_that_is_none_is_one_line(made: Any) -> None:
    with pytest.raises(StoreError, match="no such file"):
        tb.coverage(made.folder / "absent.json")
    with pytest.raises(StoreError, match="no file of coverage"):
        tb.coverage(made.cache([]))
    with pytest.raises(StoreError, match="null"):
        tb.coverage("a\0b")


def test_documents_and_tables(judged: Coverage, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    document = json.loads(json.dumps(judged.to_dict()))
    assert document["calls"] == 102
    assert document["unknown"] == [made.key(8, "other")]
    assert {row["problem"] for row in document["problems"]} == {row.problem for row in judged.problems}
    assert document["suggestions"][0]["command"][:3] == ["tunebook", "tune", "MODEL"]
    pytest.importorskip("pandas", reason="pandas is an extra: pip install pandas")
    table = judged.to_pandas()
    assert table["tuned"].sum() == 61
    assert list(table["problem"]) == [row.problem for row in judged.problems]
    monkeypatch.setitem(sys.modules, "pandas", None)  # what makes an import fail as where it is not installed
    with pytest.raises(UsageError, match="pip install pandas"):
        judged.to_pandas()


def test_a_cache_of_another_environment_is_held_against_all_the_same(made: Any) -> None:
    assert made.environment != Environment(hard={"device": "cpu"})
    path = counts(made.folder, Model={made.key(4): Served(tuned=1)})
    assert tb.coverage(path, cache=made.cache([made.verdict(made.key(4))])).problems[0].covered
