"""Devices: the facts that timings depend on, and the order in which streams wait for each other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tunebook.devices import CpuDevice, CudaDevice, device_of
from tunebook.errors import UsageError


def test_the_facts_of_the_cpu_are_words_and_do_not_change_between_calls() -> None:
    one, other = CpuDevice().environment(), CpuDevice().environment()
    assert one.hard == other.hard
    assert one.digest == other.digest
    for facts in (one.hard, one.soft):
        assert facts
        assert all(
            isinstance(name, str) and isinstance(value, str) and value for name, value in facts.items() if name != "isa"
        )
    assert {"device", "cores", "threads", "isa", "l2", "l3"} <= set(one.hard)
    assert {"torch", "python", "load"} <= set(one.soft)
    assert int(one.hard["cores"]) >= 1
    assert int(one.hard["l3"]) >= 0


def test_another_number_of_threads_is_another_environment() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = CpuDevice().environment()
        torch.set_num_threads(2)
        two = CpuDevice().environment()
    finally:
        torch.set_num_threads(before)
    assert one.differences(two) == ["threads: 1 ≠ 2"]
    assert one.digest != two.digest


def test_soft_facts_do_not_choose_the_book() -> None:
    """The load of the machine changes all the time; timings are not lost with it."""
    found = CpuDevice().environment()
    assert "load" not in found.hard
    assert "torch" not in found.hard


def test_the_clock_of_the_cpu_goes_on_and_its_memory_is_there() -> None:
    device = CpuDevice()
    start = device.clock()
    time.sleep(0.002)
    assert device.clock() - start >= 0.002
    device.synchronize()
    with device.stream():
        assert torch.ones(2).sum() == 2
    assert device.free_memory() > 0
    assert device.cache_bytes() >= 0


@pytest.mark.parametrize("name", ["cpu", "cpu:0", torch.device("cpu")], ids=str)
def test_the_cpu_is_known_by_all_its_names(name: Any) -> None:
    device = device_of(name)
    assert isinstance(device, CpuDevice)
    assert device.name == "cpu"


@pytest.mark.parametrize(
    ("name", "index"), [("cuda", 0), ("cuda:0", 0), ("cuda:3", 3), (torch.device("cuda", 1), 1)], ids=str
)
def test_a_cuda_device_is_known_by_its_index(name: Any, index: int) -> None:
    device = device_of(name)
    assert isinstance(device, CudaDevice)
    assert (device.index, device.name) == (index, f"cuda:{index}")


@pytest.mark.parametrize("name", ["tpu", "mps", "", "gpu:0", "CUDA", None, 0], ids=repr)
def test_a_device_of_another_kind_is_an_error_that_names_it(name: Any) -> None:
    with pytest.raises(UsageError, match="cpu nor cuda") as caught:
        device_of(name)
    assert str(name) in str(caught.value)


@pytest.mark.parametrize("name", ["cuda:x", "cuda:-1", "cuda:0:1"])
def test_an_index_that_is_none_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(UsageError, match="cuda"):
        device_of(name)


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda = cuda
        self.name = name

    def wait_stream(self, other: FakeStream) -> None:
        self.cuda.log.append(f"{self.name} waits for {other.name}")


class FakeCuda:
    """Stands for ``torch.cuda``: notes what is called, and with which device."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.current = FakeStream(self, "current")

    def current_stream(self, device: int) -> FakeStream:
        self.log.append(f"current of {device}")
        return self.current

    def Stream(self, device: int) -> FakeStream:  # noqa: N802 - torch's name
        self.log.append(f"new on {device}")
        return FakeStream(self, "own")

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        self.log.append(f"enter {stream.name}")
        try:
            yield
        finally:
            self.current = before
            self.log.append(f"leave {stream.name}")

    def synchronize(self, device: int) -> None:
        self.log.append(f"synchronize {device}")

    def mem_get_info(self, device: int) -> tuple[int, int]:
        return 1000 + device, 5000

    def get_device_properties(self, device: int) -> SimpleNamespace:
        return SimpleNamespace(
            name=f"Test GPU {device}", major=9, minor=0, multi_processor_count=132, L2_cache_size=50, total_memory=80
        )


ORDER = [
    "current of 2",
    "new on 2",
    "own waits for current",
    "enter own",
    "work on own",
    "leave own",
    "current waits for own",
]


def test_a_stream_of_its_own_waits_for_the_current_one_and_is_waited_for() -> None:
    cuda = FakeCuda()
    with CudaDevice(2, cuda).stream():
        cuda.log.append(f"work on {cuda.current.name}")
    assert cuda.log == ORDER
    assert cuda.current.name == "current"


def test_it_is_waited_for_also_when_the_work_raises() -> None:
    cuda = FakeCuda()
    with pytest.raises(RuntimeError, match="bad kernel"), CudaDevice(2, cuda).stream():  # noqa: PT012 - the block is the point
        cuda.log.append(f"work on {cuda.current.name}")
        raise RuntimeError("bad kernel")
    assert cuda.log == ORDER


def test_a_cuda_device_waits_and_counts_on_its_own_index() -> None:
    cuda = FakeCuda()
    device = CudaDevice(2, cuda)
    device.synchronize()
    assert cuda.log == ["synchronize 2"]
    assert device.free_memory() == 1002
    assert device.cache_bytes() == 50
    assert device.clock() <= device.clock()


def test_the_facts_of_a_cuda_device_are_words_and_its_own() -> None:
    one = CudaDevice(0, FakeCuda()).environment()
    assert one.hard["device"] == "cuda Test GPU 0"
    assert one.hard["capability"] == "9.0"
    assert all(isinstance(value, str) for value in one.hard.values())
    assert one.digest == CudaDevice(0, FakeCuda()).environment().digest
    assert one.digest != CpuDevice().environment().digest
