"""A whole tuning on a CUDA device that is a stand-in: the book, the clocks, captured calls, and a device that is lost."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

import tunebook as tb
from tunebook.devices import CudaDevice, DeviceLostError
from tunebook.dispatch import Op, Scope
from tunebook.errors import UsageError
from tunebook.measure import failure

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.devices.cuda_driver import Driver, error_of  # noqa: E402 - found from the root

pytestmark = pytest.mark.usefixtures("clean_ops")


class Nvml:
    """Stands for ``pynvml``: tells one clock, which falls."""

    NVMLError = RuntimeError

    def __init__(self) -> None:
        self.mhz = 2000

    def nvmlDeviceGetClockInfo(self, device: Any, kind: int) -> int:  # noqa: N802 - NVML's name
        self.mhz -= 1
        return self.mhz

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml") or name.endswith("Reasons"):
            raise AttributeError(name)
        return lambda *args: {"nvmlDeviceGetMigMode": [0, 0], "nvmlSystemGetDriverVersion": "1"}.get(name, 1)


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def device(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> CudaDevice:
    """With the driver's time for a clock: nothing here depends on this machine's."""
    made = CudaDevice(0, driver, Nvml())
    monkeypatch.setattr(made, "clock", lambda: driver.host / 1e6)
    monkeypatch.setattr(made, "flush", lambda: SimpleNamespace(bytes=0))
    return made


@pytest.fixture
def op(driver: Driver) -> Op[Any, Any]:
    @tb.op("gpu", buckets={"x": {0: tb.pow2(max=1)}}, constants=("w",))
    def gpu(x: Any, w: Any) -> Any:
        driver.launch("default", us=300.0)
        return x * w

    for name, us in (("fast", 100.0), ("slow", 500.0)):

        def runner(x: Any, w: Any, name: str = name, us: float = us) -> Any:
            driver.launch(name, us=us)
            return x * w

        gpu.runner(name, version="1")(lambda x, w, run=runner: run(x, w))
    return gpu


def lines(run: str | None) -> list[dict[str, Any]]:
    assert run is not None
    return [msgspec.json.decode(line) for line in Path(run).read_bytes().splitlines()]


def tuned(op: Op[Any, Any], device: CudaDevice, tmp_path: Path, policy: str = "eager", *, seed: int = 0) -> tb.autotune:
    bound = op.bind(torch.ones(64), scope=Scope("model", measurement=policy))
    with tb.autotune(cache=tmp_path / "cache.json", seed=seed, device=device) as block:
        bound.caller()(torch.ones(1, 64))
    return block


def test_the_book_is_the_devices_and_each_round_has_a_clock(
    op: Op[Any, Any], device: CudaDevice, tmp_path: Path
) -> None:
    block = tuned(op, device, tmp_path)
    assert block.outcome is not None
    (verdict,) = block.outcome.verdicts.values()
    assert verdict.winner == "fast"
    header, *rest = lines(block.run)
    assert header["environment"]["hard"]["device"] == "cuda Fake GPU"
    samples = [line for line in rest if line["type"] == "sample"]
    rounds = {line["round"] for line in samples}
    clocks = [line["mhz"] for line in samples if "mhz" in line]
    assert len(clocks) == len(rounds) > 5
    assert clocks == sorted(clocks, reverse=True), "asked for anew each time"


def test_captured_calls_are_timed_by_the_device(op: Op[Any, Any], device: CudaDevice, tmp_path: Path) -> None:
    flushed = type("Flush", (), {"bytes": 1 << 30, "__call__": lambda self: device._cuda.launch("flush", us=1000.0)})()
    device.flush = lambda: flushed  # type: ignore[method-assign]
    block = tuned(op, device, tmp_path, "captured")
    assert block.outcome is not None
    (verdict,) = block.outcome.verdicts.values()
    assert verdict.winner == "fast"
    races = [line for line in lines(block.run) if line["type"] == "race"]
    names = races[-1]["tactics"]
    took = {names[line["tactic"]]: line["seconds"] for line in lines(block.run) if line["type"] == "sample"}
    assert took["fast"] == pytest.approx(100e-6), "no launch, no wait"
    assert took["default"] == pytest.approx(300e-6)


@pytest.mark.parametrize(
    ("seed", "fine", "where"), [(1, 0, "x.0=1"), (2, 4, "in the race"), (1, 20, "in the race"), (3, 20, "in the race")]
)
def test_who_spoils_the_device_is_rejected_and_nobody_else(
    seed: int, fine: int, where: str, op: Op[Any, Any], driver: Driver, device: CudaDevice, tmp_path: Path
) -> None:
    calls = iter(range(1000))

    def good(x: Any, w: Any) -> Any:
        driver.launch(us=100.0)
        return x * w

    for number in range(8):  # one of them comes after it in its round, but for one time in ten
        op.runner(f"innocent{number}", version="1")(good)

    @op.runner("late", version="1")
    def late(x: Any, w: Any) -> Any:
        driver.launch("late", us=100.0, illegal=next(calls) >= fine)
        return x * w

    with pytest.raises(DeviceLostError, match="illegal memory access") as caught:
        tuned(op, device, tmp_path, seed=seed)
    (run,) = tmp_path.rglob("*.jsonl")
    rejected = [line["trial"] for line in lines(str(run)) if line["type"] == "trial"]
    assert [(one["tactic"], one["reason"], one["harm"]) for one in rejected] == [("late", "crash", True)]
    assert rejected[0]["detail"].startswith(where)
    assert any(str(run.name) in note for note in caught.value.__notes__), "how to go on"


@pytest.mark.parametrize("fine", [3, 4, 5])
def test_nobody_is_blamed_for_what_one_does_late_while_many_are_halved(
    fine: int, op: Op[Any, Any], driver: Driver, device: CudaDevice, tmp_path: Path
) -> None:
    calls = iter(range(1000))

    def good(x: Any, w: Any) -> Any:
        driver.launch(us=100.0)
        return x * w

    for number in range(40):
        op.runner(f"innocent{number}", version="1")(good)

    @op.runner("late", version="1")
    def late(x: Any, w: Any) -> Any:
        driver.launch("late", us=50.0, illegal=next(calls) >= fine)
        return x * w

    with pytest.raises(DeviceLostError):
        tuned(op, device, tmp_path)
    (run,) = tmp_path.rglob("*.jsonl")
    rejected = [line["trial"]["tactic"] for line in lines(str(run)) if line["type"] == "trial"]
    assert rejected == ["late"]


def test_winners_of_a_gpu_do_not_serve_the_cpu(op: Op[Any, Any], device: CudaDevice, tmp_path: Path) -> None:
    scope = Scope("model")
    bound = op.bind(torch.ones(64), scope=scope)
    with tb.autotune(cache=tmp_path / "cache.json", device=device):
        bound.caller()(torch.ones(1, 64))
    assert (scope.device, len(scope.tactics)) == ("cuda", 1)
    bound.caller()(torch.ones(1, 64))
    assert scope.counts["default: not tuned on this device"] == 1
    scope.move("cpu")
    assert not scope.tactics


def test_calls_on_another_gpu_are_not_tuned(
    op: Op[Any, Any], device: CudaDevice, caplog: pytest.LogCaptureFixture
) -> None:
    with tb.autotune(device=device) as block:
        op(torch.ones(1, 64, device="meta"), torch.ones(64, device="meta"))
    assert "a tensor is on meta, and cuda:0 is measured" in caplog.text
    assert block.outcome is not None
    assert not block.outcome.verdicts


def test_calls_elsewhere_are_not_tuned_on_the_cpu(op: Op[Any, Any], caplog: pytest.LogCaptureFixture) -> None:
    with tb.autotune() as block:
        op(torch.ones(1, 64, device="meta"), torch.ones(64, device="meta"))
    assert "a tensor is on meta, and the CPU is measured; give autotune(device='meta')" in caplog.text
    assert block.outcome is not None
    assert not block.outcome.verdicts


def test_a_block_inside_one_of_another_device_is_refused(device: CudaDevice) -> None:
    with tb.autotune(), pytest.raises(UsageError, match="device=cuda:0 differs"), tb.autotune(device=device):
        pass


def test_an_error_that_stays_is_a_crash() -> None:
    found = failure(error_of(700), "M=16")
    assert (found.reason, found.harm) == ("crash", True)
    assert found.detail == "M=16: an illegal memory access was encountered"
    assert failure(error_of(900), "M=16").reason == "runtime"
