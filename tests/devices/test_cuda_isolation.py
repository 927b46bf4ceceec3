"""A worker on a lost device: rejected is who spoilt it, and nobody after. torch.cuda is a stand-in, in the worker too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tunebook.devices import CudaDevice, device_of
from tunebook.dispatch import OPS, Binding
from tunebook.measure import Case, Finding, Passed, Reference
from tunebook.ops import load_file
from tunebook.records import Tactic
from tunebook.tuner._isolation import FirstRuns, Isolate

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="workers are stopped and counted by /proc"),
    pytest.mark.usefixtures("clean_ops"),
]

#: What of torch.cuda the stand-in takes the place of.
NAMES = ("current_stream", "synchronize", "Stream", "Event", "stream", "mem_get_info", "get_device_properties")

FILE = f"""
import sys
import torch
import tunebook as tb

sys.path.append({str(ROOT)!r})
from tests.devices.cuda_driver import Driver

DRIVER = Driver()
for name in {NAMES!r}:
    setattr(torch.cuda, name, getattr(DRIVER, name))

@tb.op("user::gpu", buckets={{"x": {{0: tb.pow2(max=1)}}}}, constants=("w",))
def gpu(x, w):
    DRIVER.launch()
    return x * w

@gpu.runner("good", version="1", space={{"n": (1, 2)}})
def good(x, w, *, n):
    DRIVER.launch()
    return x * w

@gpu.runner("illegal", version="1")
def illegal(x, w):
    DRIVER.launch(us=1e6, illegal=True)
    return x * w
"""


@pytest.fixture
def first_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FirstRuns]:
    for name in NAMES:
        monkeypatch.setattr(torch.cuda, name, getattr(torch.cuda, name))  # put back after the test
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "gpu_ops.py"
    file.write_text(FILE)
    load_file(file)
    device = device_of("cuda:0")
    assert isinstance(device, CudaDevice)
    runs = FirstRuns(Isolate.UNPROVEN, device, memory=1 << 30)
    yield runs
    runs.close()


def test_an_illegal_access_costs_a_worker_and_nobody_else(first_runs: FirstRuns) -> None:
    spec = OPS["user::gpu"]
    x, w = torch.randn(1, 64), torch.randn(64)
    layer = Binding(spec, (w,))
    reference = Reference.of([Case((x,), x * w, "x.0=1", seconds=1.0)], layer.constants)

    def run(tactic: str) -> Finding | Passed | None:
        return first_runs.run("user::gpu|w.0=64|fp32|x.0≤1", layer, reference, Tactic.parse(tactic), proven=False)

    assert isinstance(run("good[n=1]"), Passed)
    found = run("illegal")
    assert isinstance(found, Finding)
    assert found.detail.startswith("x.0=1: ")
    assert "cuda:0 is of no use to this process any more: an illegal memory access was encountered" in found.detail
    assert isinstance(run("good[n=2]"), Passed), "it has a worker of its own"
    first_runs.device.synchronize()  # this process has its device
    first_runs.close()
    tally = first_runs.tally
    assert (tally.runs, tally.refused, tally.here) == (3, 1, 0)
    assert tally.workers == 3, "the one that was spoilt is judged again alone, and what it spoilt is replaced"
