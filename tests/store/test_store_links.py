"""A link that somebody planted beside the cache: nothing is written through it, and the tuning is told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from tunebook.errors import StoreError
from tunebook.records import Environment, Header, Verdict
from tunebook.store import Location, RunWriter, publish, read_cache

ENVIRONMENT = Environment(hard={"device": "test"})


def header() -> Header:
    return Header(session="s", started="2026-11-23T00:00:00", policy="fresh", environment=ENVIRONMENT, version="0")


def test_a_run_is_not_written_through_a_linked_directory(tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    runs = tmp_path / "cache" / "runs"
    runs.parent.mkdir()
    runs.symlink_to(elsewhere)
    writer = RunWriter.create(runs, "winners", header(), datetime(2026, 11, 23))
    assert writer.path is None
    assert "symbolic link" in (writer.problem or "")
    assert "--cache" in (writer.problem or "")
    assert not list(elsewhere.iterdir())


def test_a_run_is_not_continued_through_a_link(tmp_path: Path):
    real = tmp_path / "real.jsonl"
    with RunWriter.create(tmp_path / "runs", "winners", header(), datetime(2026, 11, 23)) as writer:
        assert writer.path is not None
        real.write_bytes(writer.path.read_bytes())
    link = tmp_path / "link.jsonl"
    link.symlink_to(real)
    before = real.read_bytes()
    with pytest.raises(StoreError, match=r"link\.jsonl"):
        RunWriter.reopen(link)
    assert real.read_bytes() == before


def test_results_go_to_the_cache_and_not_through_linked_shards(tmp_path: Path, make_verdict: Callable[..., Verdict]):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    cache = tmp_path / "tuned.json"
    cache.with_name("tuned.json.d").symlink_to(elsewhere)
    location = Location.of(ENVIRONMENT, cache)
    verdict = make_verdict()
    published = publish(location, ENVIRONMENT, {verdict.problem: verdict}, {})
    assert published.problem is None
    assert dict(read_cache(cache, ENVIRONMENT).verdicts) == {verdict.problem: verdict}
    assert not list(elsewhere.iterdir())
