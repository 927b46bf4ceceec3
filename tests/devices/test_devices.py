"""Devices: the facts that timings depend on, flushes, graphs, and the order in which streams wait for each other."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tunebook.devices import CpuDevice, CudaDevice, Device, Flush, device_of
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


@pytest.mark.parametrize(("begun", "index"), [(True, 2), (False, 0)])
def test_cuda_without_an_index_is_the_current_device(begun: bool, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda is not there on this machine: two of its answers are made up."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: begun)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert device_of("cuda").name == f"cuda:{index}"
    assert device_of("cuda:0").name == "cuda:0"


@pytest.mark.parametrize("name", ["tpu", "mps", "", "gpu:0", "CUDA", None, 0], ids=repr)
def test_a_device_of_another_kind_is_an_error_that_names_it(name: Any) -> None:
    with pytest.raises(UsageError, match="cpu nor cuda") as caught:
        device_of(name)
    assert str(name) in str(caught.value)


@pytest.mark.parametrize("name", ["cuda:x", "cuda:-1", "cuda:0:1"])
def test_an_index_that_is_none_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(UsageError, match="cuda"):
        device_of(name)


class Reads(TorchDispatchMode):
    """Notes the bytes of the tensors that operators are given, and of those that they return."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.read: list[int] = []
        self.made: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.read += [value.nbytes for value in args if isinstance(value, torch.Tensor)]
        self.made += [result.nbytes]
        return result


def test_a_flush_reads_all_of_its_memory_at_every_call_and_takes_it_once() -> None:
    flush = Flush(1001)
    for call in range(3):
        with Reads() as seen:
            flush()
        assert max(seen.read) >= 1001
        assert (max(seen.made) >= 1001) == (call == 0)


def test_a_flush_is_shared_while_somebody_holds_it() -> None:
    one, other = Flush.shared(64), Flush.shared(64)
    assert one is other
    assert Flush.shared(128) is not one
    assert Flush.shared(64, "cuda:0") is not one
    held = weakref.ref(one)
    del one, other
    assert held() is None, "its memory goes with its last holder"
    assert Flush.shared(64).bytes == 64


@pytest.mark.parametrize(
    ("caches", "bytes_"), [(0, 64 << 20), (6 << 20, 6 << 20), (64 << 20, 64 << 20), (480 << 20, 64 << 20)]
)
def test_the_flush_of_a_cpu_is_its_last_cache_within_bounds(
    caches: int, bytes_: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = CpuDevice()
    monkeypatch.setattr(device, "cache_bytes", lambda: caches)
    assert device.flush().bytes == bytes_


def test_a_cpu_refuses_to_capture_and_says_what_to_do() -> None:
    device: Device = CpuDevice()
    assert device.no_capture()
    with pytest.raises(UsageError, match=r"'captured'.*CPU.*'eager'"):
        device.capture(lambda: None)


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda = cuda
        self.name = name

    def wait_stream(self, other: FakeStream) -> None:
        self.cuda.log.append(f"{self.name} waits for {other.name}")


class FakeGraph:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def replay(self) -> None:
        self.cuda.log.append(f"replay on {self.cuda.current.name}")


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

    def CUDAGraph(self) -> FakeGraph:  # noqa: N802 - torch's name
        return FakeGraph(self)

    @contextmanager
    def graph(self, graph: FakeGraph, stream: FakeStream) -> Iterator[None]:
        self.log.append(f"capture on {stream.name}")
        try:
            yield
        finally:
            self.log.append("captured")

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


CAPTURE = [
    "current of 2",
    "new on 2",
    "own waits for current",
    "enter own",
    *["work on own"] * 3,
    "synchronize 2",
    "capture on own",
    "work on own",
    "captured",
    "leave own",
    "current waits for own",
]


def test_calls_are_captured_after_a_warm_up_on_the_same_side_stream() -> None:
    cuda = FakeCuda()
    runs = iter(range(10))

    def work() -> int:
        cuda.log.append(f"work on {cuda.current.name}")
        return next(runs)

    device = CudaDevice(2, cuda)
    assert device.no_capture() is None
    replay = device.capture(work)
    assert cuda.log == CAPTURE
    cuda.log.clear()
    assert [replay(), replay()] == [3, 3], "the result of the captured call, which the graph writes anew"
    assert cuda.log == ["replay on current"] * 2, "the call itself is not made again"


def test_what_cannot_be_captured_raises_and_the_streams_are_left_in_order() -> None:
    cuda = FakeCuda()

    def work() -> None:
        cuda.log.append(f"work on {cuda.current.name}")
        if "capture on own" in cuda.log:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        CudaDevice(2, cuda).capture(work)
    assert cuda.log == CAPTURE
    assert cuda.current.name == "current"


def test_the_flush_of_a_cuda_device_is_more_than_its_l2() -> None:
    assert CudaDevice(2, FakeCuda()).flush().bytes == 100


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
