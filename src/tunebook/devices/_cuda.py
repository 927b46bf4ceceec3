"""A CUDA device behind the same interface. Written against PyTorch's documentation; not yet run on hardware by this project."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tunebook.devices._cpu import CpuDevice
from tunebook.devices._flush import Flush
from tunebook.records import Environment

#: Calls before a capture: libraries allocate, choose algorithms and load kernels in their first ones, which no graph may hold.
CAPTURE_WARM_UP = 3
#: A flush reads this many times the L2: it is not emptied strictly in order.
FLUSH_RATIO = 2


class CudaDevice:
    """One CUDA device; `torch_cuda` stands for ``torch.cuda`` and is replaced by a fake in tests."""

    def __init__(self, index: int = 0, torch_cuda: Any = None) -> None:
        if torch_cuda is None:
            import torch

            torch_cuda = torch.cuda
        self.index = index
        self._cuda = torch_cuda

    @property
    def name(self) -> str:
        return f"cuda:{self.index}"

    def clock(self) -> float:
        return time.perf_counter()

    def synchronize(self) -> None:
        self._cuda.synchronize(self.index)

    def stream(self) -> AbstractContextManager[Any]:
        return self._stream()

    @contextmanager
    def _stream(self) -> Iterator[Any]:
        """A side stream ordered after the current one, which in turn is ordered after it (also when the block raises)."""
        current = self._cuda.current_stream(self.index)
        own = self._cuda.Stream(device=self.index)
        own.wait_stream(current)
        try:
            with self._cuda.stream(own):
                yield own
        finally:
            current.wait_stream(own)

    def environment(self) -> Environment:
        facts = self._cuda.get_device_properties(self.index)
        host = CpuDevice().environment()
        hard = {
            "device": f"cuda {facts.name}",
            "capability": f"{facts.major}.{facts.minor}",
            "sms": str(facts.multi_processor_count),
            "l2": str(getattr(facts, "L2_cache_size", 0)),
            "memory": str(facts.total_memory),
        }
        return Environment(hard=hard, soft=host.soft)

    def free_memory(self) -> int:
        return int(self._cuda.mem_get_info(self.index)[0])

    def cache_bytes(self) -> int:
        return int(getattr(self._cuda.get_device_properties(self.index), "L2_cache_size", 0))

    def flush(self) -> Flush:
        return Flush.shared(FLUSH_RATIO * self.cache_bytes(), self.name)

    def no_capture(self) -> str | None:
        return None

    def capture(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """A CUDA graph of `call`, warmed up and captured on one side stream, as PyTorch asks for.

        The result lies in the graph's own memory: every replay writes it anew.
        """
        graph = self._cuda.CUDAGraph()
        with self._stream() as own:
            for _ in range(CAPTURE_WARM_UP):
                call()
            self.synchronize()
            with self._cuda.graph(graph, stream=own):
                result = call()

        def replay() -> Any:
            graph.replay()
            return result

        return replay
