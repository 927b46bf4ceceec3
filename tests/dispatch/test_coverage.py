"""Calls are counted while they are served: each once, by its problem and by what served it; and serving never suffers."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import nn

import tunebook as tb
from tunebook.book.coverage import ProblemCoverage
from tunebook.devices import device_of
from tunebook.dispatch import FREE, Scope
from tunebook.dispatch._counting import COUNTING, INTERVAL_S, Counting, Place
from tunebook.envs import envs
from tunebook.errors import EnvironmentVariableError, UsageError
from tunebook.records import DEFAULT, Tactic
from tunebook.records.coverage import MAX_DECODE, MAX_PREFILL, OUTCOMES, OUTSIDE
from tunebook.store import Location
from tunebook.store.coverage import MAX_PROBLEMS, coverage_path, read_coverage


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Calls are counted, and what was counted goes with the test."""
    monkeypatch.setenv("TUNEBOOK_COVERAGE", "1")
    COUNTING.clear()
    yield
    COUNTING.clear()


@pytest.fixture
def another() -> Iterator[Callable[..., Counting]]:
    """``another(clock, now)``: what counts beside the process's own; it writes nothing when the process ends."""
    made: list[Counting] = []

    def make(*arguments: Any) -> Counting:
        made.append(Counting(*arguments))
        return made[-1]

    yield make
    for counting in made:
        counting.clear()


class Time:
    """A clock that is put forward by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def key(size: int) -> str:
    return f"demo|N=3|float32|x.0≤{size}"


def rows(count: int) -> torch.Tensor:
    return torch.ones(count, 3)


def file() -> Path:
    return coverage_path(device_of("cpu").environment())


def covered() -> dict[str, ProblemCoverage]:
    return {row.problem: row for row in tb.coverage().problems}


def outcomes(problem: str) -> dict[str, int]:
    """The calls of a problem by what served them, those that there are."""
    row = covered()[problem]
    return {name: count for name in OUTCOMES if (count := getattr(row, name))}


def test_each_call_is_counted_by_what_served_it(declare: Any) -> None:
    demo = declare()
    demo.serve(4)
    demo.serve(16, tactic=DEFAULT)
    for size, times in ((4, 3), (3, 2), (100, 4), (16, 5)):
        for _ in range(times):
            demo.op(rows(size))
    assert outcomes(key(4)) == {"tuned": 5}, "every size of a bucket is served by its winner"
    assert outcomes(key(128)) == {"default": 4}
    assert outcomes(key(16)) == {"tuned": 5}, "the default that won its race is a winner"
    found = tb.coverage()
    assert found.calls == 14
    assert found.untuned_calls == 4
    assert found.path == ""
    assert {row.model for row in found.problems} == {OUTSIDE} == {FREE.name}


def test_nothing_is_counted_where_it_is_not_asked_for(declare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEBOOK_COVERAGE", "0")
    demo = declare()
    demo.op(rows(4))
    with pytest.raises(UsageError, match="TUNEBOOK_COVERAGE=1"):
        tb.coverage()
    monkeypatch.setenv("TUNEBOOK_COVERAGE", "1")
    demo.op(rows(4))
    assert tb.coverage().problems == (), "it is asked when an op is first called"
    COUNTING.write(0.0)
    assert not file().exists()


def test_a_wrong_value_is_an_error_that_names_the_variable(declare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEBOOK_COVERAGE", "perhaps")
    with pytest.raises(EnvironmentVariableError, match="TUNEBOOK_COVERAGE='perhaps'"):
        declare().op(rows(4))


def test_calls_that_want_gradients_are_served_by_the_default_and_counted(declare: Any) -> None:
    demo = declare()
    demo.serve(4)
    x = rows(4).requires_grad_()
    with torch.enable_grad():
        for _ in range(3):
            assert demo.op(x).requires_grad
    described = demo.described
    with torch.enable_grad():
        demo.op(x)
    assert demo.described == described, "a problem is found out once for a shape"
    demo.op(rows(4))
    assert outcomes(key(4)) == {"tuned": 1, "default": 4}


def test_calls_of_no_problem_are_counted_without_one(declare: Any) -> None:
    demo = declare(buckets={"x": {0: tb.pow2(max=8)}})
    for size in (8, 9, 9):
        demo.op(rows(size))
    found = tb.coverage()
    assert [row.problem for row in found.problems] == [key(8)]
    assert found.unlisted == 2


def test_a_pin_is_told_from_a_winner(declare: Any) -> None:
    pins = file().with_name("pins.toml")
    pins.parent.mkdir(parents=True)
    pins.write_text('[pins]\n"demo@x.0≤4" = "fast"\n"demo@x.0≤8" = "default"\n')
    demo = declare()
    demo.serve(4, 8, 16)
    for size in (4, 8, 16):
        demo.op(rows(size))
    assert outcomes(key(4)) == {"pinned": 1}
    assert outcomes(key(8)) == {"tuned": 1}, "what serves is not what is pinned"
    assert outcomes(key(16)) == {"tuned": 1}
    pins.write_text('[pins]\n"demo@x.0≤16" = "fast"\n')
    demo.serve(4, 8, 16)  # as a reload does
    for size in (4, 16):
        demo.op(rows(size))
    assert outcomes(key(4)) == {"pinned": 1, "tuned": 1}
    assert outcomes(key(16)) == {"tuned": 1, "pinned": 1}


def test_pins_are_those_beside_the_cache_wherever_calls_are_counted(declare: Any, tmp_path: Path) -> None:
    pins = file().with_name("pins.toml")
    pins.parent.mkdir(parents=True)
    pins.write_text('[pins]\n"demo@x.0≤4" = "fast"\n')
    with envs.TUNEBOOK_COVERAGE_FILE.override(tmp_path / "elsewhere.json"):
        demo = declare()
        demo.serve(4)
        demo.op(rows(4))
    assert outcomes(key(4)) == {"pinned": 1}


def test_another_buckets_tactic_is_told_from_a_winner() -> None:
    @tb.op("lent", buckets={"x": {0: tb.pow2()}}, constants=("w",))
    def lent(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w

    options: dict[str, Any] = {"prepare": lambda w: w.clone(), "restore": lambda prepared, *, last: (prepared,)}
    lent.runner("copy", **options)(lambda x, prepared: x @ prepared)
    scope = Scope("a model")
    weight = nn.Parameter(torch.ones(3, 5), requires_grad=False)
    binding = lent.bind(weight, scope=scope)
    binding.releasable = 60
    scope.install({"lent|x.1=3,w.0=3,w.1=5|fp32|x.0≤4": Tactic.parse("copy")})
    binding.release(Tactic.parse("copy"))
    call = binding.caller()
    for size in (4, 4, 100):
        call(rows(size))
    assert outcomes("lent|x.1=3,w.0=3,w.1=5|fp32|x.0≤4") == {"tuned": 2}
    assert outcomes("lent|x.1=3,w.0=3,w.1=5|fp32|x.0≤128") == {"bucket": 1}


def test_two_arguments_are_counted_and_passed_on() -> None:
    @tb.op("two", buckets={"x": {0: tb.pow2()}})
    def two(x: torch.Tensor, s: float) -> torch.Tensor:
        return x * s

    for _ in range(2):
        assert torch.equal(two(rows(2), 3.0), rows(2) * 3)
    assert outcomes("two|x.1=3,s=3.0|fp32|x.0≤2") == {"default": 2}


def test_threads_lose_no_call(declare: Any) -> None:
    demo = declare()
    demo.serve(4)
    x = rows(4)

    def work() -> None:
        with torch.no_grad():
            for _ in range(1000):
                demo.op(x)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        tb.coverage()  # looking loses none either
    for thread in threads:
        thread.join()
    assert outcomes(key(4)) == {"tuned": 4000}


@pytest.mark.parametrize(
    ("shape", "decode", "prefill"),
    [
        ((2, 1, 8), 2, 0),
        ((1, 1, 8), 1, 0),
        ((2, 5, 8), 0, 10),
        ((3, 8), 0, 0),
        ((8,), 0, 0),
        ((2, 4, 1, 8), 2, 0),
    ],
    ids=str,
)
def test_the_step_is_read_off_the_activations(shape: tuple[int, ...], decode: int, prefill: int) -> None:
    layer = nn.Sequential(nn.Linear(8, 4)).requires_grad_(False).eval()
    with tb.attach(layer, ops=("linear",)):
        layer(torch.ones(shape))
    (row,) = tb.coverage().problems
    assert (row.model, row.decode, row.prefill) == ("Sequential", decode, prefill)


def test_the_largest_step_of_a_bucket_is_kept() -> None:
    layer = nn.Sequential(nn.Linear(8, 4)).requires_grad_(False).eval()
    with tb.attach(layer, ops=("linear",)):
        for batch, tokens in ((5, 1), (7, 1), (6, 1), (1, 6), (2, 3), (1, 8)):
            layer(torch.ones(batch, tokens, 8))
    (row,) = tb.coverage().problems
    assert (row.calls, row.decode, row.prefill) == (6, 7, 8)


def test_calls_that_a_tuning_makes_are_not_served(declare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Time()
    monkeypatch.setattr(COUNTING, "_clock", clock)
    COUNTING.clear()
    demo = declare()
    demo.serve(4)

    def calls(times: int, size: int = 4) -> None:
        for _ in range(times):
            demo.op(rows(size))

    calls(2)
    with COUNTING.paused(FREE.name):
        for tuned in (False, True):
            FREE.switch(tuned)
            calls(300)
            clock.seconds += 2 * INTERVAL_S
        calls(3, size=8)
        assert outcomes(key(4)) == {"tuned": 2}
        COUNTING.write(0.0)
        assert not file().exists(), "nothing is written while it lasts"
    assert outcomes(key(4)) == {"tuned": 2}
    calls(3)
    FREE.switch(False)  # a plan that is slower than the default serves nothing
    calls(4)
    assert outcomes(key(4)) == {"tuned": 5, "default": 4}
    COUNTING.write(0.0)
    assert read_coverage(file()).calls == 9


def test_calls_are_counted_beside_the_cache_that_serves(declare: Any, tmp_path: Path) -> None:
    demo = declare()
    demo.serve(4)
    demo.op(rows(4))
    COUNTING.beside(FREE.name, Location.of(device_of("cpu").environment(), tmp_path / "mine.json"))
    demo.op(rows(4))
    COUNTING.write(0.0)
    assert read_coverage(tmp_path / "mine.coverage.json").calls == 2, "what was not written yet goes with it"
    assert not file().exists()
    COUNTING.beside(FREE.name, Location.of(device_of("cpu").environment()))
    demo.op(rows(4))
    COUNTING.write(0.0)
    assert read_coverage(file()).calls == 1
    with envs.TUNEBOOK_COVERAGE_FILE.override(tmp_path / "named.json"):
        COUNTING.beside(FREE.name, Location.of(device_of("cpu").environment(), tmp_path / "mine.json"))
        demo.op(rows(4))
        COUNTING.write(0.0)
    assert read_coverage(tmp_path / "named.json").calls == 1, "the variable goes before the cache's place"


def test_calls_that_are_collected_are_not_served(declare: Any) -> None:
    demo = declare()
    with tb.autotune(budget_s=5, only_runners=("fast",)):
        demo.op(rows(4))
    demo.op(rows(4))
    assert outcomes(key(4)) == {"tuned": 1}


# ------------------------------------------------------------------------------------------------------------ the file


def test_it_is_written_every_few_minutes_within_a_call(another: Callable[..., Counting]) -> None:
    clock = Time()
    counting = another(clock, lambda: datetime(2026, 1, 2, 3, 4, 5))
    tally = counting.tally(Place("m", key(4), "tuned"), (4, 1))
    for _ in range(10):
        tally.add()
    clock.seconds = INTERVAL_S - 1
    counting.tick()
    assert not file().exists()
    clock.seconds = INTERVAL_S
    counting.tick()
    assert read_coverage(file()).models["m"][key(4)].tuned == 10
    tally.add()
    counting.tick()
    assert read_coverage(file()).calls == 10, "not before the next interval has passed"
    clock.seconds = 2 * INTERVAL_S
    counting.tick()
    found = read_coverage(file())
    assert found.calls == 11
    assert (found.since, found.until) == ("2026-01-02T03:04:05", "2026-01-02T03:04:05")
    assert found.models["m"][key(4)].decode == 4


def test_calls_themselves_see_to_the_writing(declare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Time()
    monkeypatch.setattr(COUNTING, "_clock", clock)
    COUNTING.clear()
    demo = declare()
    demo.op(rows(4))
    clock.seconds = 2 * INTERVAL_S
    for _ in range(600):
        demo.op(rows(4))
    assert 1 < read_coverage(file()).calls <= 601
    COUNTING.write(0.0)
    assert read_coverage(file()).calls == 601, "what was written is not written again"


def test_a_failure_to_write_is_said_once_and_calls_go_on(declare: Any, caplog: pytest.LogCaptureFixture) -> None:
    file().mkdir(parents=True)
    demo = declare()
    for _ in range(3):
        demo.op(rows(4))
        with caplog.at_level(logging.WARNING):
            COUNTING.write(0.0)
    (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert str(file()) in said
    assert "not a file" in said
    assert "\n" not in said
    file().rmdir()
    COUNTING.write(0.0)
    assert read_coverage(file()).calls == 3, "what could not be written is written when it can"


def test_a_place_that_is_no_place_harms_nobody(declare: Any, caplog: pytest.LogCaptureFixture) -> None:
    with envs.TUNEBOOK_COVERAGE_FILE.override(Path("/dev/null/c.json")):
        demo = declare()
        demo.serve(4)
        assert demo.who(rows(4)) == "fast"
        COUNTING.write(0.0)
    assert "TUNEBOOK_COVERAGE_FILE" in caplog.text
    assert outcomes(key(4)) == {"tuned": 1}


def test_a_lock_that_others_hold_postpones_the_writing(declare: Any, caplog: pytest.LogCaptureFixture) -> None:
    demo = declare()
    demo.op(rows(4))
    file().parent.mkdir(parents=True)
    with FileLock(file().with_name(f"{file().name}.lock")):
        COUNTING.write(0.0)
        assert not file().exists()
    assert caplog.text == ""
    COUNTING.write(0.0)
    assert read_coverage(file()).calls == 1


def test_more_problems_than_a_file_keeps_are_counted_together(another: Callable[..., Counting]) -> None:
    counting = another()
    for i in range(MAX_PROBLEMS * len(OUTCOMES) + 5):
        counting.tally(Place("m", f"o|||M={i}", "default"), (MAX_DECODE * 9, 1)).add()
    found = counting.counts()
    assert found.calls == MAX_PROBLEMS * len(OUTCOMES) + 5
    assert found.unlisted == 5
    assert found.models["m"]["o|||M=0"].decode == MAX_DECODE


def test_sizes_beyond_all_reason_are_cut(another: Callable[..., Counting]) -> None:
    counting = another()
    counting.tally(Place("m" * 1000, "o|||", "default"), (MAX_PREFILL, MAX_PREFILL)).add()
    ((_, problems),) = counting.counts().models.items()
    assert problems["o|||"].prefill == MAX_PREFILL


KILLED = """
import time, torch, tunebook as tb
from tunebook.dispatch._counting import COUNTING

@tb.op("killed", buckets={"x": {0: tb.pow2()}})
def killed(x):
    return x

killed(torch.ones(4))
COUNTING.write(0.0)  # what is done every few minutes
killed(torch.ones(4))
print("served", flush=True)
time.sleep(120)
"""


def test_a_killed_process_loses_what_it_had_not_written(
    cli_environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    named = tmp_path / "c.json"
    environment = cli_environment(tmp_path / "home", TUNEBOOK_COVERAGE="1", TUNEBOOK_COVERAGE_FILE=str(named))
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "served\n"
        process.kill()
    assert read_coverage(named).calls == 1


FORKING = """
import os, sys, torch, tunebook as tb
from tunebook.dispatch._counting import COUNTING
torch.set_num_threads(1)

@tb.op("forked", buckets={"x": {0: tb.pow2()}})
def forked(x):
    return x

with torch.no_grad():
    for _ in range(3):
        forked(torch.ones(4))
    child = os.fork()
    for _ in range(10 if child else 100):
        forked(torch.ones(4))
if not child:
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_fork_counts_its_own_calls_and_both_write_at_exit(
    cli_environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    named = tmp_path / "c.json"
    environment = cli_environment(tmp_path / "home", TUNEBOOK_COVERAGE="1", TUNEBOOK_COVERAGE_FILE=str(named))
    subprocess.run([sys.executable, "-c", FORKING], env=environment, check=True, timeout=120)
    assert list(read_coverage(named).models[OUTSIDE]) == ["forked||fp32|x.0≤4"]
    assert read_coverage(named).calls == 113
