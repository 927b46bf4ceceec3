"""A stand-in for hardware that is not here: ``torch.cuda`` over a CUDA driver that behaves as the documentation says.

It computes nothing. Time is counted in microseconds, by the host's clock and by each stream's:
- starting a kernel costs the host `LAUNCH` and returns; the kernel runs when the stream is free and what it waits for ended;
- an event is passed when its stream comes to it; before that it is not ready, and asking for its time is an error;
- waiting moves the host's clock on;
- a kernel that accesses memory illegally is found out by whatever is called after it ended, and by all that comes later;
- a stream that is captured runs nothing; what waits or asks while it is captured invalidates the capture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

LAUNCH = 5.0
#: What waiting costs the host beyond the wait.
WAKE = 10.0

ILLEGAL = 700
CAPTURING, INVALIDATED, NOT_READY = 900, 901, 600
WORDS = {
    ILLEGAL: "an illegal memory access was encountered",
    CAPTURING: "operation not permitted when stream is capturing",
    INVALIDATED: "operation failed due to a previous error during capture",
    NOT_READY: "device not ready",
    226: "Invalid access of peer GPU memory over nvlink or a hardware error",
    721: "tensor memory not completely freed",
    810: "the MPS client has been terminated by the server",
}


def error_of(code: int) -> Exception:
    error = torch.AcceleratorError(f"CUDA error: {WORDS[code]}\nCUDA kernel errors might be asynchronously reported")
    error.error_code = code  # type: ignore[attr-defined]  # which the types do not show
    return error


class FakeStream:
    def __init__(self, driver: Driver, name: str) -> None:
        self.driver = driver
        self.name = name
        self.free = 0.0

    def wait_stream(self, other: FakeStream) -> None:
        self.driver.check()
        self.free = max(self.free, other.free)

    def __repr__(self) -> str:
        return self.name


@dataclass
class FakeEvent:
    driver: Driver
    enable_timing: bool = False
    passed: float | None = None

    def record(self, stream: FakeStream) -> None:
        self.driver.check()
        self.passed = max(stream.free, self.driver.host)

    def query(self) -> bool:
        self.driver.refuse_in_capture()
        self.driver.check()
        return self.passed is None or self.passed <= self.driver.host

    def synchronize(self) -> None:
        self.driver.refuse_in_capture()
        self.driver.wait(self.passed or 0.0)

    def elapsed_time(self, end: FakeEvent) -> float:
        """In milliseconds."""
        if not (self.enable_timing and end.enable_timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self.passed is None or end.passed is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        self.driver.check()
        if not (self.query() and end.query()):
            raise error_of(NOT_READY)
        return (end.passed - self.passed) / 1e3


@dataclass
class FakeGraph:
    driver: Driver
    kernels: list[Kernel] = field(default_factory=list)
    own_pool: object = None
    valid: bool = True

    def pool(self) -> object:
        return self.own_pool

    def replay(self) -> None:
        assert self.valid, "a graph whose capture failed cannot be replayed"
        self.driver.start(self.kernels)


@dataclass
class Kernel:
    name: str
    us: float
    illegal: bool = False


class Driver:
    """Stands for ``torch.cuda``; `launch` stands for an operator that starts a kernel on the current stream."""

    def __init__(self, **facts: Any) -> None:
        self.host = 0.0
        self.default = FakeStream(self, "default")
        self.current = self.default
        self.streams: list[FakeStream] = []
        self.capturing: tuple[FakeGraph, FakeStream] | None = None
        self.invalid = False
        self.ran: list[str] = []
        self.launches = 0
        self.pools: list[object] = []
        self.reserved, self.allocated = 30, 10
        self._fault: float | None = None
        self.facts = {
            "name": "Fake GPU",
            "major": 9,
            "minor": 0,
            "multi_processor_count": 132,
            "L2_cache_size": 50 << 20,
            "total_memory": 80 << 30,
            "uuid": "1234",
            "pci_domain_id": 0,
            "pci_bus_id": 0x1A,
            "pci_device_id": 0,
            **facts,
        }

    # what a test or an operator does

    def launch(self, name: str = "kernel", us: float = 20.0, *, illegal: bool = False) -> None:
        kernel = Kernel(name, us, illegal)
        if self.capturing is not None:
            graph, stream = self.capturing
            assert self.current is stream, "a kernel on a stream that is not the captured one"
            self.check()
            self.host += LAUNCH
            graph.kernels.append(kernel)
            return
        self.start([kernel])

    def start(self, kernels: Sequence[Kernel]) -> None:
        """Start kernels at once, on the current stream."""
        self.check()
        self.host += LAUNCH
        self.launches += 1
        for kernel in kernels:
            self.run(kernel, self.current)

    def run(self, kernel: Kernel, stream: FakeStream) -> None:
        stream.free = max(stream.free, self.host) + kernel.us
        self.ran.append(f"{kernel.name} on {stream.name}")
        if kernel.illegal and self._fault is None:
            self._fault = stream.free

    def check(self) -> None:
        """Any call tells of an error of what has ended by now."""
        if self._fault is not None and self._fault <= self.host:
            raise error_of(ILLEGAL)

    def wait(self, until: float) -> None:
        self.host = max(self.host, until) + WAKE
        self.check()

    def refuse_in_capture(self) -> None:
        if self.capturing is not None:
            self.invalid = True
            raise error_of(CAPTURING)

    # torch.cuda

    def synchronize(self, device: int) -> None:
        self.refuse_in_capture()
        self.wait(max(stream.free for stream in (self.default, *self.streams)))

    def current_stream(self, device: int) -> FakeStream:
        return self.current

    def Stream(self, device: int) -> FakeStream:  # noqa: N802 - torch's name
        self.streams.append(FakeStream(self, f"side {len(self.streams) + 1}"))
        return self.streams[-1]

    def Event(self, enable_timing: bool = False) -> FakeEvent:  # noqa: N802 - torch's name
        return FakeEvent(self, enable_timing)

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def CUDAGraph(self) -> FakeGraph:  # noqa: N802 - torch's name
        return FakeGraph(self)

    @contextmanager
    def graph(self, graph: FakeGraph, pool: object = None, stream: FakeStream | None = None) -> Iterator[None]:
        """As torch's: it waits and begins on entry; on exit a failed capture raises, and leaves the stream as it is."""
        self.synchronize(0)
        assert stream is not None
        assert stream is not self.default, "the default stream cannot be captured"
        before, self.current = self.current, stream
        graph.own_pool = object() if pool is None else pool
        self.pools.append(graph.own_pool)
        self.capturing, self.invalid = (graph, stream), False
        try:
            yield
        finally:
            self.capturing = None
            if self.invalid:
                graph.valid = False
                raise error_of(INVALIDATED)
            self.current = before

    def mem_get_info(self, device: int) -> tuple[int, int]:
        return 1000, 5000

    def memory_reserved(self, device: int) -> int:
        return self.reserved

    def memory_allocated(self, device: int) -> int:
        return self.allocated

    def get_device_properties(self, device: int) -> SimpleNamespace:
        return SimpleNamespace(**self.facts)
