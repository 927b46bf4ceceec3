"""What of a cache may serve: whatever somebody wrote into it, only what the op offers for a problem that it can have."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.dispatch import FREE
from tunebook.store import resolve_policy
from tunebook.tuner import Session

pytestmark = pytest.mark.usefixtures("clean_ops")

KEY = "o|x.1=3|fp32|M≤8"


def declare() -> Any:
    @tb.op("o", buckets={"x": {0: tb.pow2(name="M")}}, constants=("w",))
    def op(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x * 2

    def supports(problem: Any, *, p: int) -> str | None:
        return "only for even sizes" if p == 2 and problem.dims[0].size % 2 else None

    op.runner("one", {"p": (1, 2)}, version="1", supports=supports)(lambda x, w, *, p: x * 2)
    packed = op.runner("packed", {"p": (1,)}, version="1", prepare=lambda w, **_: w, layout=lambda **_: "blocks")
    packed(lambda x, w, *, p: x * 2)
    return op


@pytest.fixture
def served(tmp_path: Path) -> Callable[..., tuple[list[str], list[str]]]:
    """``served(frontier, key=…, **fields)``: the tactics of a verdict that may serve, and what is said of the rest."""
    op = declare()
    offered = {name: {"version": runner.version, "space": runner.offered.space} for name, runner in op.runners.items()}

    def ask(
        *members: str | Mapping[str, Any], key: str = KEY, more: str = "", **fields: Any
    ) -> tuple[list[str], list[str]]:
        session = Session(resolve_policy(), cache=str(tmp_path / "c.json"))
        frontier = [{"ratio": 1, "low": 1, "high": 1, **({"tactic": m} if isinstance(m, str) else m)} for m in members]
        verdict = {"problem": key, "winner": frontier[0]["tactic"], "status": "proven", "speedup": 2, "low": 1, "high": 3,
                   "seconds": 1e-3, "frontier": frontier,
                   "offered": {**offered, "default": {"version": op.default_version, "space": ""}, "no": offered["one"]},
                   **fields}  # fmt: skip
        verdicts = {key: verdict, **({more: {**verdict, "problem": more}} if more else {})}
        document = {"schema": 1, "environment": {"hard": session.environment.hard}, "verdicts": verdicts}
        (tmp_path / "c.json").write_text(json.dumps(document))
        session = Session(resolve_policy(), cache=str(tmp_path / "c.json"))
        found, misses = session.recall.serving({"o": (op, op.default_version)})
        assert session.recall.misses == ()
        return [member.tactic for member in found.get(more or key, ())], misses

    return ask


Served = Callable[..., tuple[list[str], list[str]]]
PACKED = {"tactic": "packed[p=1]", "layout": "packed:blocks"}


def test_what_is_offered_serves(served: Served) -> None:
    assert served("one[p=1]", "one[p=2]", PACKED, "default") == (["one[p=1]", "one[p=2]", "packed[p=1]", "default"], [])


@pytest.mark.parametrize(
    ("member", "says"),
    [
        ("one[p=3]", "does not offer"),
        ("one[p=true]", "does not offer"),
        ("one[p=1.0]", "does not offer"),
        ("one[p='1']", "does not offer"),
        ("one[p=1,q=1]", "does not offer"),
        ("one", "does not offer"),
        ("one[p=1,]", "name is one[p=1]"),
        ("default[]", "name is default"),
        ("no[p=1]", "runner no is not offered"),
        ("packed[p=1]", "layout is packed:blocks"),
        ({"tactic": "packed[p=1]", "layout": "packed:other"}, "layout is packed:blocks"),
        ({"tactic": "one[p=1]", "layout": "packed:blocks"}, "layout is the original"),
        ({"tactic": "default", "layout": "x"}, "layout is the original"),
    ],
)
def test_what_is_not_offered_does_not_serve(served: Served, member: Any, says: str) -> None:
    serves, misses = served(member, "one[p=2]")
    assert serves == ["one[p=2]"]
    (miss,) = misses
    assert says in miss


def test_what_the_runner_refuses_for_the_problem_does_not_serve(served: Served) -> None:
    odd = KEY.replace("8", "1")
    serves, misses = served("one[p=2]", "one[p=1]", key=odd)
    assert serves == ["one[p=1]"]
    assert "only for even sizes" in misses[0]


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (KEY.replace("M≤", "Q≤"), "no dimension Q"),
        (KEY + ",Q≤4", "no dimension Q"),
        (KEY.replace("≤", "="), "rounded up by pow2"),
        (KEY + "@odd", "rounded up by pow2"),
        (KEY.replace("o|", "other|"), "not declared"),
    ],
)
def test_a_problem_that_the_op_cannot_have_is_not_served(served: Served, key: str, says: str) -> None:
    serves, misses = served("one[p=1]", key=key)
    assert serves == []
    assert says in misses[0]


def test_problems_of_one_family_have_the_same_dimensions(served: Served) -> None:
    serves, misses = served("one[p=1]", more=KEY.partition("M≤")[0])
    assert serves == []
    assert "dimensions" in misses[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"speedup": 1e300, "high": 1e301},
        {"low": 1e-300},
        {"seconds": 1e9},
        {"speedup": 1e12, "high": 1e13, "low": 1e-12},
    ],
    ids=str,
)
def test_numbers_that_nobody_measured_are_not_reckoned_with(served: Served, fields: dict[str, float]) -> None:
    assert served("one[p=1]", **fields)[0] == []


@pytest.mark.parametrize("member", [{"high": 1e300}, {"low": 1e-300}, {"bytes": 1 << 60}, {"bytes": 10**300}], ids=str)
def test_nor_are_those_of_a_member(served: Served, member: dict[str, Any]) -> None:
    assert served("one[p=1]", {"tactic": "default", **member})[0] == []


def test_a_member_that_is_repeated_counts_once(served: Served) -> None:
    assert served("one[p=1]", *["one[p=2]"] * 500, "one[p=1]")[0] == ["one[p=1]", "one[p=2]"]


def test_what_a_file_says_is_logged_in_one_line(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tunebook.tuner")
    served("one[p=1]", offered={"one": {"version": "2\n\x1b[2J" + "x" * 10_000, "space": ""}})
    lines = [record.getMessage() for record in caplog.records]
    assert lines
    assert all(line.isprintable() and len(line) < 1000 for line in lines)


def test_nothing_of_this_reaches_dispatch(served: Served, tmp_path: Path) -> None:
    served({"tactic": "one[p=true]"}, "no[p=1]")
    with tb.autotune(tune_mode=False, cache=tmp_path / "c.json"):
        assert dict(FREE.tactics) == {}
