"""The CUDA device on an NVIDIA GPU: what the stand-in of the other tests takes for granted. `make gpu-check` runs these."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.devices import CudaDevice, device_of
from tunebook.devices._cuda import DeviceLostError
from tunebook.dispatch import OPS, Binding
from tunebook.measure import Case, Finding, Passed, Reference, calibrate, race
from tunebook.ops import load_file
from tunebook.records import Tactic
from tunebook.tuner._isolation import FirstRuns, Isolate

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that this torch can use"),
]

SIZE = 2048


@pytest.fixture
def device() -> CudaDevice:
    found = device_of("cuda:0")
    assert isinstance(found, CudaDevice)
    return found


@pytest.fixture
def matrix() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(SIZE, SIZE, device="cuda:0", dtype=torch.float16)


def test_the_facts_are_those_of_torch_and_nvml_tells_clocks(device: CudaDevice) -> None:
    environment = device.environment()
    assert environment.hard["device"] == f"cuda {torch.cuda.get_device_name(0)}"
    assert int(environment.hard["l2"]) > 0
    assert environment.digest == CudaDevice(0).environment().digest
    assert "nvml" not in environment.soft, "why NVML tells nothing"
    assert environment.soft["driver"]
    assert (device.clocks().sm or 0) > 0
    assert 0 < device.free_memory() <= torch.cuda.get_device_properties(0).total_memory


def test_calls_return_before_they_have_ended(device: CudaDevice, matrix: torch.Tensor) -> None:
    matrix @ matrix
    device.synchronize()
    for _ in range(200):
        matrix @ matrix
    assert not torch.cuda.current_stream(0).query(), "200 products are still running"
    device.synchronize()
    assert torch.cuda.current_stream(0).query()


def test_events_tell_more_work_from_less(device: CudaDevice, matrix: torch.Tensor) -> None:
    flush = device.flush()

    def product() -> None:
        matrix @ matrix

    device.seconds([product] * 5, flush)
    few, many = (min(device.seconds([product] * count, flush) for _ in range(5)) for count in (4, 40))
    assert few * 4 < many < few * 40


def test_a_graph_gives_what_the_call_gave_for_what_the_input_is_now(device: CudaDevice, matrix: torch.Tensor) -> None:
    one = device.capture(lambda: matrix @ matrix + 1)
    other = device.capture(lambda: (matrix * 2).sum(dim=0))
    for _ in range(2):
        matrix.mul_(0.5)
        for replay, expected in ((other, (matrix * 2).sum(dim=0)), (one, matrix @ matrix + 1)):
            got = replay()
            device.synchronize()
            torch.testing.assert_close(got, expected)


def test_what_waits_cannot_be_captured_and_the_next_one_can(device: CudaDevice, matrix: torch.Tensor) -> None:
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        device.capture(lambda: matrix.sum().item())
    got = device.capture(lambda: matrix.sum())()
    device.synchronize()
    torch.testing.assert_close(got, matrix.sum())


def test_a_stream_of_its_own_is_ordered_with_the_current_one(device: CudaDevice, matrix: torch.Tensor) -> None:
    for _ in range(50):
        matrix @ matrix
    changed = matrix.clone()
    changed.zero_()
    with device.stream():
        inside = changed + 1
        changed.fill_(5)
    after = changed + inside
    assert float(after.min()) == float(after.max()) == 6.0


@dataclass(frozen=True)
class Racer:
    name: str
    calls: Sequence[Callable[[], Any]]
    flush: Callable[[], None] | None
    bytes: int = 0


@pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])
def test_a_race_finds_who_does_less(device: CudaDevice, matrix: torch.Tensor, captured: bool) -> None:
    def work(count: int) -> Callable[[], Any]:
        def call() -> None:
            for _ in range(count):
                matrix @ matrix

        return device.capture(call) if captured else call

    flush = device.flush()
    racers = [Racer("default", (work(3),), flush), Racer("less", (work(1),), flush), Racer("more", (work(9),), flush)]
    inner = calibrate(racers[0], device).inner
    result = race(racers, "default", device, inner=inner, rng=random.Random(0))
    assert [entry.name for entry in result.survivors] == ["less"]


FILE = """
import torch
import tunebook as tb

@tb.op("user::gpu", buckets={"x": {0: tb.pow2(max=1)}}, constants=("w",))
def gpu(x, w):
    return x * w

@gpu.runner("good", version="1", space={"n": (1, 2)})
def good(x, w, *, n):
    return x * w

@gpu.runner("outside", version="1")
def outside(x, w):
    return (x * w)[:, torch.full((64,), 1 << 30, device=x.device)]
"""


@pytest.fixture
def first_runs(tmp_path: Path, clean_ops: None, device: CudaDevice) -> Iterator[FirstRuns]:
    file = tmp_path / "gpu_ops.py"
    file.write_text(FILE)
    load_file(file)
    runs = FirstRuns(Isolate.UNPROVEN, device, memory=1 << 30)
    yield runs
    runs.close()


@pytest.mark.skipif(sys.platform != "linux", reason="workers are stopped and counted by /proc")
def test_an_access_outside_costs_a_worker_and_not_this_process(first_runs: FirstRuns) -> None:
    x, w = torch.randn(1, 64, device="cuda:0"), torch.randn(64, device="cuda:0")
    layer = Binding(OPS["user::gpu"], (w,))
    reference = Reference.of([Case((x,), x * w, "x.0=1", seconds=1.0)], layer.constants)

    def run(tactic: str) -> Finding | Passed | None:
        return first_runs.run("user::gpu|w.0=64|fp32|x.0≤1", layer, reference, Tactic.parse(tactic), proven=False)

    assert isinstance(run("good[n=1]"), Passed), "None: no worker could run it, and the log says why"
    found = run("outside")
    assert isinstance(found, Finding)
    assert DeviceLostError.__name__ in found.detail or "device-side assert" in found.detail
    assert isinstance(run("good[n=2]"), Passed)
    first_runs.device.synchronize()
    assert bool(torch.equal(x * w, reference.cases[0].expected))


def test_a_whole_tuning_is_kept_in_the_gpus_own_book_and_served(tmp_path: Path, clean_ops: None) -> None:
    file, cache = tmp_path / "gpu_ops.py", tmp_path / "winners.json"
    file.write_text(FILE)
    load_file(file)
    x, w = torch.randn(1, 64, device="cuda:0"), torch.randn(64, device="cuda:0")
    with tb.autotune(device="cuda:0", cache=cache, budget_s=120) as tuning:
        OPS["user::gpu"](x, w)
    assert tuning.outcome is not None
    (verdict,) = tuning.outcome.verdicts.values()
    assert "outside" not in verdict.winner
    kept = json.loads(cache.read_text())
    assert kept["environment"]["hard"] == dict(device_of("cuda:0").environment().hard)
    assert len(kept["verdicts"]) == 1
    assert bool(torch.equal(OPS["user::gpu"](x, w), x * w))


TRITON_FILE = """
import torch
import triton
import triton.language as tl

import tunebook.integrations.triton


@tunebook.integrations.triton.op(outputs=["out_ptr"])
@triton.autotune(configs=[triton.Config({"BLOCK": 128}), triton.Config({"BLOCK": 1024}, num_warps=8)], key=["n"])
@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(x_ptr + at, mask=at < n) + tl.load(y_ptr + at, mask=at < n)
    tl.store(out_ptr + at, total, mask=at < n)


def add(x, y):
    out = torch.empty_like(x)
    add_kernel[lambda meta: (triton.cdiv(x.numel(), meta["BLOCK"]),)](x, y, out, x.numel())
    return out
"""


def test_a_triton_kernel_is_tuned_and_served(tmp_path: Path, clean_ops: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    (tmp_path / "gpu_kernels.py").write_text(TRITON_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    add: Callable[..., torch.Tensor] = importlib.import_module("gpu_kernels").add
    x, y = (torch.randn(1 << 20, device="cuda:0") for _ in range(2))
    with tb.autotune(device="cuda:0", cache=tmp_path / "winners.json", budget_s=120) as tuning:
        add(x, y)
    assert tuning.outcome is not None
    assert [verdict.winner.partition("[")[0] for verdict in tuning.outcome.verdicts.values()] in (
        ["triton"],
        ["default"],
    )
    assert bool(torch.equal(add(x, y), x + y))
