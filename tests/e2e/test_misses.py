"""Caches of which nothing, or not everything, can be served: each a named miss and a working start."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunebook.records import SCHEMA


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
        (_entry, ("entry", "winner", "M≤4"), False),
    ],
)
def test_a_cache_that_cannot_be_served_is_a_named_miss_and_a_working_start(
    demo: Any,
    spoil: Callable[[Path], None],
    words: tuple[str, ...],
    kept: bool,
    policy: str,
    restart: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    demo.op().tune()
    cache = demo.cache()
    spoil(cache)
    before = demo.snapshot()
    restart()
    scale = demo.op()
    with caplog.at_level(logging.INFO, "tunebook"):
        outcome = scale.tune(policy=policy).outcome
    misses = [r.getMessage() for r in caplog.records if "cache miss" in r.getMessage()]
    assert any(all(word in text for word in (str(cache), *words)) for text in misses), misses
    if policy == "replay":
        assert outcome.tuned == 0
        assert scale() == "default"
        assert demo.snapshot() == before
    else:
        assert outcome.tuned == 3
        assert scale() == "quick"
        if kept:  # it may be somebody's: never overwritten, and said so
            assert demo.snapshot() == before
            assert "is left as it is" in outcome.not_published
        else:
            assert {v["winner"] for v in demo.verdicts().values()} == {demo.QUICK}


def test_an_unknown_tactic_is_a_named_miss_and_what_stands_behind_it_serves(
    demo: Any, restart: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    demo.op().tune()
    cache = demo.cache()
    cache.write_text(cache.read_text().replace(demo.QUICK, "quick[block=77]"))
    restart()
    scale = demo.op()
    with caplog.at_level(logging.INFO, "tunebook"):
        outcome = scale.tune().outcome
    assert any("cache miss" in r.getMessage() and "quick[block=77]" in r.getMessage() for r in caplog.records)
    assert any("quick[block=77]" in miss and demo.key(4) in miss for miss in outcome.misses)
    assert scale() == "default"


@pytest.mark.parametrize(
    ("offer", "words"),
    [
        ({"version": "2"}, ("quick", "v:2", "v:1")),
        ({"block": 2}, ("quick", "other tactics")),
    ],
)
def test_a_changed_runner_is_a_named_miss_and_races_again(
    demo: Any,
    offer: dict[str, Any],
    words: tuple[str, ...],
    restart: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def missed() -> list[str]:
        misses = [r.getMessage() for r in caplog.records if "cache miss" in r.getMessage()]
        caplog.clear()
        return [text for text in misses if all(word in text for word in (*words, demo.key(4)))]

    demo.op().tune()
    caplog.clear()
    caplog.set_level(logging.INFO, "tunebook")
    restart()
    scale = demo.op(**offer)
    assert scale.tune(policy="replay").outcome.tuned == 0
    assert scale() == "default", "a tactic of another version was served unchecked"
    assert missed(), "a replaying start passes over it in silence"

    restart()
    scale = demo.op(**offer)
    assert scale.tune().outcome.tuned == 3
    assert missed()
    assert scale() == "quick"
    assert {v["winner"] for v in demo.verdicts().values()} == {f"quick[block={offer.get('block', 1)}]"}
    restart()
    assert demo.op(**offer).tune().outcome.tuned == 0
    assert not missed()


def test_a_runner_that_is_gone_is_a_named_miss(demo: Any, restart: Callable[[], None]) -> None:
    demo.op().tune()
    restart()
    scale = demo.op()
    scale.op.remove_runner("quick")
    outcome = scale.tune().outcome
    assert any("runner quick is not offered" in miss for miss in outcome.misses)
    assert scale() == "default"
