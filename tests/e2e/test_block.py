"""The autotune block: what it collects and tunes, what then serves which call, and which tactics are refused."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.dispatch import FREE
from tunebook.records import Rejected
from tunebook.store import Run, read_run

pytestmark = pytest.mark.usefixtures("clean_ops")


def test_an_exception_inside_the_block_tunes_nothing_and_what_was_known_stays(demo: Any) -> None:
    scale = demo.op()
    scale.tune()
    before, runs = demo.snapshot(), demo.runs()
    scale.calls.clear()
    with pytest.raises(ZeroDivisionError), tb.autotune(policy="fresh"):  # noqa: PT012 - the call belongs to the block
        scale(32)
        raise ZeroDivisionError
    assert scale.calls == {"default": 1}
    assert demo.snapshot() == before
    assert demo.runs() == runs
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
        {"skip_ops": ("demo::scale",)},
        {"only_ops": ("linear",)},
        {"only_runners": ("quick",)},
    ],
    ids=str,
)
def test_a_nested_block_that_differs_is_an_error(demo: Any, inner: dict[str, Any]) -> None:
    scale = demo.op()
    with tb.autotune(budget_s=30) as outer:
        scale()
        with pytest.raises(ValueError, match="autotune inside autotune"), tb.autotune(**inner):
            pass
    assert outer.outcome is not None
    assert outer.outcome.tuned == 3, "the outer block goes on"


def test_an_exception_in_an_inner_block_that_is_caught_leaves_the_outer_one_tuning(demo: Any) -> None:
    scale = demo.op()
    with tb.autotune(budget_s=30) as outer:
        scale(2)
        with pytest.raises(KeyError), tb.autotune():
            raise KeyError
        scale(4)
    assert outer.outcome is not None
    assert outer.outcome.tuned == 3


def test_a_block_without_a_call_leaves_nothing_behind(demo: Any) -> None:
    with tb.autotune() as block:
        pass
    assert block.outcome is not None
    assert block.outcome.seen == 0
    assert not demo.cache().parent.exists()


def test_an_interruption_keeps_what_was_tuned_and_the_next_start_goes_on(
    demo: Any, restart: Callable[[], None]
) -> None:
    def progress(done: int, total: int, what: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.op().tune(rows=8, progress=progress)
    assert len(demo.verdicts()) == 2
    (run,) = demo.runs()
    assert read_run(run).verdicts.keys() == demo.verdicts().keys()
    restart()
    scale = demo.op()
    outcome = scale.tune(rows=8).outcome
    assert (outcome.cached, outcome.tuned) == (2, 2)
    assert scale(8) == "quick"


def test_every_bucket_up_to_the_largest_size_is_tuned(demo: Any) -> None:
    scale = demo.op()
    assert scale.tune(rows=33).outcome.tuned == 7
    assert demo.verdicts().keys() == {demo.key(size) for size in (1, 2, 4, 8, 16, 32, 64)}
    assert all(v["winner"] == demo.QUICK for v in demo.verdicts().values())


# Dispatch


def test_an_exact_shape_a_shape_of_its_bucket_and_a_shape_never_seen(demo: Any) -> None:
    scale = demo.op()
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


def test_gradients_run_the_default(demo: Any) -> None:
    scale = demo.op()
    scale.tune(rows=8)
    FREE.counts.clear()
    assert scale(8) == "quick"
    assert scale(8, grad=True) == "default"
    assert sum(count for what, count in FREE.counts.items() if "gradients" in what) == 1
    with torch.no_grad():
        assert scale(8, grad=True) == "quick"


def test_a_kernel_that_ignores_strides_is_given_contiguous_arguments() -> None:
    @tb.op("demo::dense", buckets={"x": {0: tb.pow2(name="M")}})
    def dense(x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.002)
        return x + 1

    @dense.runner("raw", version="1")
    def raw(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.stride())
        rows, columns = x.shape
        return torch.as_strided(x, (rows, columns), (columns, 1)) + 1  # as a C kernel reads memory

    calls: list[tuple[int, ...]] = []
    square = torch.arange(64.0).reshape(8, 8)
    with tb.autotune(budget_s=20):
        dense(square)
    assert torch.equal(dense(square), square + 1)
    calls.clear()
    for view in (square.t(), torch.arange(128.0).reshape(8, 16)[:, ::2]):
        assert torch.equal(dense(view), view + 1)
    assert calls == [(8, 1), (8, 1)], "the tuned kernel served both, on copies"


# Rejections


class Trouble:
    """An op whose runners are each wrong in a way of their own, but one."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.buffer = torch.empty(8, 3)

        def trouble(x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.002)
            return x + 1

        self.op = tb.op("demo::trouble", buckets={"x": {0: tb.pow2(name="M")}})(trouble)
        for name in (
            "good",
            "raises",
            "wrong",
            "nan",
            "unwritten",
            "mutates",
            "shape",
            "dtype",
            "nothing",
            "oom",
            "buffer",
            "dict",
        ):
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
            case "buffer":
                self.buffer[: len(x)] = x + 1
                return self.buffer[: len(x)]
            case "dict":
                return {"out": x + 1}  # type: ignore[return-value]  # wrong on purpose
            case "frugal":
                time.sleep(0.002)
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
        "buffer": ("correctness", "same memory at each call"),
        "dict": ("correctness", "not a tensor"),
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
        assert set(verdict.rejected) == {r for r in rejected.values() if r.reason != "unavailable"}
    for name in ("hungry", "absent", "unfit"):
        assert trouble.calls[name] == 0, f"{name} was refused, and run all the same"
    assert "frugal" in {line.trial.tactic for line in run.trials if not isinstance(line.trial, Rejected)}
    before = trouble.calls["good"]
    assert torch.equal(trouble.op(torch.ones(8, 3)), torch.full((8, 3), 2.0))
    assert trouble.calls["good"] == before + 1


def rejections(run: Run, problem: str) -> list[Rejected]:
    return [line.trial for line in run.trials if line.problem == problem and isinstance(line.trial, Rejected)]


def test_the_memory_limit_is_the_users(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = demo.op()
    scale.op.runner("greedy", version="1", workspace=lambda x, s: 2_000_000)(lambda x, s: x * s)
    scale.op.runner("modest", version="1", workspace=lambda x, s: 500_000)(lambda x, s: x * s)
    monkeypatch.setenv("TUNEBOOK_MEMORY_LIMIT_GB", "0.001")
    block = scale.tune()
    assert block.run is not None
    run = read_run(block.run)
    assert {(r.trial.tactic, r.trial.reason) for r in run.trials if isinstance(r.trial, Rejected)} == {
        ("greedy", "memory")
    }


def test_a_failing_default_is_an_error_of_the_model_and_is_raised(demo: Any) -> None:
    @tb.op("demo::broken")
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the model itself is broken")

    with pytest.raises(RuntimeError, match="the model itself"), tb.autotune():
        broken(torch.ones(2, 2))
    assert not demo.cache().exists()
