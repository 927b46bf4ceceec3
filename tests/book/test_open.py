"""Runs and caches from Python."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import tunebook as tb
from tunebook.errors import StoreError, UsageError
from tunebook.records import Rejected, Timed


@pytest.fixture
def run(made: Any) -> Path:
    key = made.key(4)
    trials = [
        Timed(tactic="default", samples=(3e-4, 2e-4), rounds=(0, 1)),
        Timed(tactic="native[tile=1]", samples=(1e-4,), rounds=(1,)),
        Rejected(tactic="native[tile=2]", reason="memory", detail="9 GB"),
    ]
    path: Path = made.run([made.verdict(key, rejected=(trials[2],))], trials={key: trials})
    return path


def test_a_run_is_typed_records(run: Path, made: Any) -> None:
    book = tb.open_run(run)
    assert book.path == run
    assert book.header.model == "a-model"
    assert book.environment == made.environment
    assert book.verdicts[made.key(4)].winner == "native[tile=1]"
    assert [line.trial.tactic for line in book.trials] == ["default", "native[tile=1]", "native[tile=2]"]
    assert book.footer is not None
    assert book.misses == ()


def test_a_cache_is_typed_records(made: Any) -> None:
    path = made.cache([made.verdict(made.key(4))])
    book = tb.open_cache(path)
    assert (book.path, book.environment, book.misses) == (path, made.environment, ())
    assert book.verdicts[made.key(4)].speedup == 1.5


def test_the_cache_of_this_machine_is_the_default() -> None:
    with pytest.raises(StoreError, match="nothing was tuned"):
        tb.open_cache()


def test_bad_entries_are_misses(made: Any) -> None:
    path = made.cache([made.verdict(made.key(4)), made.verdict(made.key(8))])
    path.write_bytes(path.read_bytes().replace(b'"proven"', b'"perhaps"', 1))
    book = tb.open_cache(path)
    assert len(book.verdicts) == len(book.misses) == 1


def test_the_one_is_not_the_other(run: Path, made: Any) -> None:
    with pytest.raises(StoreError, match=r"a run file, not a cache; open it with tunebook\.open_run"):
        tb.open_cache(run)
    with pytest.raises(StoreError, match=r"a cache, not a run file; open it with tunebook\.open_cache"):
        tb.open_run(made.cache([]))
    with pytest.raises(StoreError, match="no such file"):
        tb.open_run(run.with_name("absent.jsonl"))


def test_tables_of_pandas(run: Path, made: Any) -> None:
    pytest.importorskip("pandas", reason="pandas is an extra: pip install pandas")
    book = tb.open_run(run)
    verdicts = book.to_pandas()
    assert verdicts[["problem", "op", "dim M", "winner", "speedup"]].to_dict("records") == [
        {"problem": made.key(4), "op": "linear", "dim M": 4, "winner": "native[tile=1]", "speedup": 1.5}
    ]
    samples = book.to_pandas("samples")
    assert list(samples["tactic"]) == ["default", "default", "native[tile=1]"]
    assert list(samples["round"]) == [0, 1, 1]
    assert samples["seconds"].sum() == pytest.approx(6e-4)
    rejected = [{"problem": made.key(4), "tactic": "native[tile=2]", "reason": "memory", "detail": "9 GB"}]
    assert book.to_pandas("rejected").to_dict("records") == rejected
    cache = tb.open_cache(made.cache(list(book.verdicts.values())))
    assert cache.to_pandas().equals(verdicts)
    assert cache.to_pandas("rejected").to_dict("records") == rejected


def test_a_table_that_there_is_not(run: Path, made: Any) -> None:
    with pytest.raises(UsageError, match="'trials' is none of verdicts, samples, rejected"):
        tb.open_run(run).to_pandas("trials")
    with pytest.raises(UsageError, match="'samples' is none of verdicts, rejected"):
        tb.open_cache(made.cache([])).to_pandas("samples")


def test_without_pandas_it_says_how_to_get_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)  # what makes an import fail as where it is not installed
    with pytest.raises(UsageError, match="pip install pandas"):
        tb.open_run(run).to_pandas()
