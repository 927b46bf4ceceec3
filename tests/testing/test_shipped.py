"""What ships keeps its promises: every op, every runner that can run here, the CPU device, and every format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tunebook.kernels  # noqa: F401 - declares the ops
from tunebook.devices import CpuDevice, CudaDevice
from tunebook.dispatch import OPS
from tunebook.interop import FORMATS, format_of
from tunebook.testing import Case, UnavailableError, cases_of, check_device, check_format

FIXTURES = Path(__file__).parents[1] / "interop" / "fixtures"

#: Small problems of each op, which all runners take together.
PROBLEMS = {
    "add_rms_norm": ("add_rms_norm|H=64|bf16|M≤256", "add_rms_norm|H=24|fp32|M≤256"),
    "attend": ("attend|Hq=4,Hk=2,D=16|fp32|M≤4",),
    "experts": ("experts|E=4,K=2,H=32,I=64|bf16,scores:fp32|M≤8",),
    "linear": ("linear|N=64,K=32,bias=yes|bf16|M≤8", "linear|N=64,K=32|bf16|M≤4"),
    "qkv": ("qkv|N=32,KV=16,K=32,D=8,norm=head|bf16|M≤8",),
    "residual_add": ("residual_add|H=64|fp32|M≤256", "residual_add|H=64|bf16|M≤256"),
    "rms_norm": ("rms_norm|H=64|fp32|M≤256", "rms_norm|H=40|bf16|M≤256"),
    "router": ("router|E=8,K=2,H=64,scoring=softmax_top_k|bf16|M≤64",),
}
CASES = [case for name, problems in PROBLEMS.items() for case in cases_of(OPS[name], problems)]


def test_every_shipped_op_is_tried() -> None:
    assert {op.name for op in OPS.values() if op.function.__module__.startswith("tunebook.kernels")} == {*PROBLEMS}


@pytest.mark.usefixtures("clean_ops")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_ops_and_runners(case: Case) -> None:
    try:
        case.check()
    except UnavailableError as reason:
        pytest.skip(str(reason))


def test_the_cpu() -> None:
    check_device(CpuDevice())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_the_gpu() -> None:
    check_device(CudaDevice(0))


def _books(format_name: str) -> list[Path]:
    found, waiting = [], sorted(path for path in FIXTURES.iterdir() if path.is_dir())
    while waiting:
        path = waiting.pop(0)
        kind = format_of(path)
        if kind is not None and kind.name == format_name:
            found.append(path)
        elif kind is None and path.is_dir():
            waiting += sorted(path.iterdir())
    return found


@pytest.mark.parametrize("place", range(len(FORMATS)), ids=lambda place: FORMATS[place].name)
def test_formats(place: int) -> None:
    check_format(FORMATS[place], _books(FORMATS[place].name), before=FORMATS[:place], damaged=16)
