"""What a run or a cache tells of one tactic, and which problem, tactic and sizes are meant by what was typed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.book.repro import Recordings, choices, find_tactic, problems_named
from tunebook.errors import StoreError, UsageError
from tunebook.records import DEFAULT, Problem, Rejected, Tactic, Timed

NATIVE = Tactic.parse("native[tile=1]")


def timed(tactic: str, seconds: list[float], first: int = 0, **fields: Any) -> Timed:
    rounds = tuple(range(first, first + len(seconds))) if first >= 0 else tuple(range(first, first - len(seconds), -1))
    return Timed(tactic=tactic, samples=tuple(seconds), rounds=rounds, **fields)


def test_a_run_tells_the_last_race_the_error_and_the_default(made: Any) -> None:
    key = made.key(4)
    trials = [
        timed("native[tile=1]", [9.0, 9.0], error=0.25),
        timed("native[tile=1]", [1.0, 2.0, 3.0], first=2, error=0.25),
        timed("native[tile=2]", [5.0]),
        timed("default", [4.0] * 3, first=2),
    ]
    path = made.run([made.verdict(key)], trials={key: trials, made.key(8): [timed("native[tile=1]", [7.0])]})
    recordings = Recordings(path)
    assert recordings.keys == {key, made.key(8)}
    assert recordings.environment == made.environment
    told = recordings.of(key, NATIVE)
    assert (told.path, told.model, told.how, told.samples) == (path, "a-model", "race", 3)
    assert told.seconds == (2.0, 1.0, 3.0)
    assert told.default == (4.0, 4.0, 4.0)
    assert (told.error, told.rejected, told.version) == (0.25, None, "7")
    assert recordings.of(key, DEFAULT).error is None
    assert recordings.of(key, Tactic.parse("native[tile=3]")).empty
    assert recordings.of("linear|N=9,K=9|bf16|M≤1", NATIVE).empty


def test_a_problem_that_was_left_out_has_its_verdict_alone(made: Any) -> None:
    key = made.key(4)
    run = made.run([made.verdict(key, 1.0, rounds=0)], trials={})
    made.cache([made.verdict(key, 1.0, run=run.name)])
    for path in (run, made.cache_path):
        told = Recordings(path).of(key, DEFAULT)
        assert (told.path, told.model, told.how, told.samples) == (run, "a-model", "verdict", 0)
        assert told.seconds == pytest.approx((1e-4,) * 3)
        assert Recordings(path).of(key, NATIVE).empty


def test_looks_count_where_there_was_no_race_and_rejections_are_told(made: Any) -> None:
    key = made.key(4)
    refused = Rejected(tactic="native[tile=2]", reason="correctness", detail="row 3 is off", ran=True)
    path = made.run([], trials={key: [timed("native[tile=1]", [2.0, 1.0], first=-1), refused]})
    told = Recordings(path).of(key, NATIVE)
    assert (told.how, told.samples, told.default, told.version) == ("looks", 2, None, None)
    assert told.seconds == (1.5, 1.0, 2.0)
    told = Recordings(path).of(key, Tactic.parse("native[tile=2]"))
    assert (told.rejected, told.seconds, told.how) == (refused, None, "")
    assert not told.empty


def test_a_cache_tells_what_the_run_behind_its_verdict_does(made: Any) -> None:
    key = made.key(4)
    run = made.run([made.verdict(key)], trials={key: [timed("native[tile=1]", [2.0])]})
    made.cache([made.verdict(key, run=run.name)])
    told = Recordings(made.cache_path).of(key, NATIVE)
    assert (told.path, told.how, told.seconds) == (run, "race", (2.0, 2.0, 2.0))


@pytest.mark.parametrize("name", ["gone.jsonl", "../runs/winners.20260101_000000.jsonl", ""])
def test_without_that_run_the_verdict_tells(made: Any, name: str) -> None:
    """A name that leads elsewhere is no run beside the cache."""
    key = made.key(4)
    made.run([made.verdict(key)], trials={key: [timed("native[tile=1]", [2.0])]})
    refused = Rejected(tactic="native[tile=9]", reason="crash", detail="signal 11")
    made.cache([made.verdict(key, 2.0, run=name, rejected=(refused,))])
    recordings = Recordings(made.cache_path)
    told = recordings.of(key, NATIVE)
    assert (told.path, told.how, told.samples, told.error) == (made.cache_path, "verdict", 0, None)
    assert told.seconds == pytest.approx((5e-5,) * 3)
    assert told.default == pytest.approx((1e-4,) * 3)
    assert recordings.of(key, Tactic.parse("native[tile=9]")).rejected == refused
    assert recordings.of(made.key(16), NATIVE).empty


def test_what_is_no_book_is_refused(made: Any, tmp_path: Any) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(StoreError, match=r"notes\.txt"):
        Recordings(tmp_path / "notes.txt")


def test_a_whole_key_is_meant_though_others_contain_it() -> None:
    keys = ["linear|N=8,K=8|bf16|M≤1", "linear|N=8,K=8|bf16|M≤16", "experts|E=8|bf16|M≤1"]
    assert problems_named(keys[0], keys) == keys[:1]
    assert problems_named("M≤16", keys) == keys[1:2]
    assert problems_named("linear", reversed(keys)) == keys[:2]
    assert problems_named("conv", keys) == []


@pytest.fixture
def op(clean_ops: None) -> Any:
    def example(
        problem: Problem, sizes: Any, seed: int, *, keys: int = 5, wide: bool = False, scale: float = 1.0
    ) -> Any:
        return (torch.zeros(sizes["M"], 3),)

    @tb.op("demo::pick", buckets={"x": {0: tb.pow2(max=64, name="M")}}, example=example)
    def pick(x: torch.Tensor) -> torch.Tensor:
        return x

    def fits(problem: Problem, *, block: int) -> str | None:
        return "too few rows" if block > problem.dims[0].size else None

    pick.runner("quick", {"block": (1, 2, 64)}, version="1", supports=fits)(lambda x, *, block: x)
    pick.runner("absent", version="1", available=lambda: "no such hardware")(lambda x: x)
    return pick


PROBLEM = Problem.parse("demo::pick|x.1=3|fp32|M≤16")


def test_a_tactic_is_found_by_its_name(op: Any) -> None:
    assert find_tactic("default", op, PROBLEM) == DEFAULT
    assert find_tactic("quick[block=2]", op, PROBLEM).kwargs == {"block": 2}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("quick[block=3]", ("offers no tactic quick[block=3]", "near are quick[block=2], quick[block=1], default")),
        ("quack", ("offers no tactic quack", "quick[block=1]")),
        ("quick", ("offers no tactic quick;",)),
        ("quick[block=64]", ("does not fit demo::pick|x.1=3|fp32|M≤16: too few rows", "near are")),
        ("absent", ("runner absent of op demo::pick cannot run here: no such hardware",)),
        ("quick[block", ("'quick[block' is not runner[parameter=value,…]", "near are quick[block=")),
        ("", ("near are",)),
    ],
)
def test_one_that_cannot_be_had_is_an_error_that_names_it_and_what_is_near(
    op: Any, text: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as caught:
        find_tactic(text, op, PROBLEM)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "block=64" not in str(caught.value).partition("near are")[2], "what would be refused is not offered"


def test_sizes_and_options_can_be_set(op: Any) -> None:
    assert choices((), op, PROBLEM) == ({"M": 16}, {})
    given = ("M=9", "keys=7", "wide=true", "scale=0.5")
    assert choices(given, op, PROBLEM) == ({"M": 9}, {"keys": 7, "wide": True, "scale": 0.5})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("M", ("--set M", "NAME=VALUE", "M, keys, wide, scale")),
        ("rows=3", ("--set rows=3", "M, keys, wide, scale")),
        ("M=8", ("--set M=8", "'8' is no size of the bucket M≤16", "16")),
        ("M=17", ("'17'",)),
        ("M=0", ("'0'",)),
        ("M=many", ("'many'",)),
        ("M=" + "9" * 5000, ("M≤16",)),
        ("keys=few", ("'few' is not such a value as 5",)),
        ("wide=1", ("'1' is not such a value as False",)),
    ],
)
def test_what_cannot_be_set_is_an_error_that_says_what_can(op: Any, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        choices((text,), op, PROBLEM)
    assert all(word in str(caught.value) for word in words), str(caught.value)
