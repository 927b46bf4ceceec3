"""A CUDA device behind the same interface. Written against PyTorch's documentation; not yet run on hardware by this project."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tunebook.devices._cpu import CpuDevice
from tunebook.records import Environment


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
