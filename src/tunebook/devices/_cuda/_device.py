"""A CUDA device behind the interface of all devices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from typing import Any

from tunebook.devices._cuda._events import seconds_between
from tunebook.devices._cuda._facts import environment_of
from tunebook.devices._cuda._graphs import Graphs
from tunebook.devices._cuda._lost import DeviceLostError, sticky
from tunebook.devices._cuda._nvml import Clocks, Nvml
from tunebook.devices._flush import Flush
from tunebook.errors import UsageError
from tunebook.records import Environment

#: A flush reads this many times the L2: it is not emptied strictly in order.
FLUSH_RATIO = 2


class CudaDevice:
    """One CUDA device, the current one where `index` is None.

    `torch_cuda` stands for ``torch.cuda``, `pynvml` for that module: fakes take their places in tests.

    Calls on a device return before they have ended. An error of one of them may so be raised by a later one; an error that
    leaves the device of no use to this process is raised as DeviceLostError by what waits here.
    """

    def __init__(self, index: int | None = 0, torch_cuda: Any = None, pynvml: Any = None) -> None:
        if torch_cuda is None:
            import torch

            torch_cuda = torch.cuda
        if index is None:  # before CUDA is begun with, the current one is the first
            index = int(torch_cuda.current_device()) if torch_cuda.is_initialized() else 0
        self.index = index
        self._cuda = torch_cuda
        self._pynvml = pynvml
        self._graphs = Graphs(torch_cuda)
        self._capturing: Any = None  #: the stream of all captures, as graphs that share memory want it

    @property
    def name(self) -> str:
        return f"cuda:{self.index}"

    def clock(self) -> float:
        return time.perf_counter()

    def synchronize(self) -> None:
        """Raises DeviceLostError where a call spoilt the device for this process, and what torch raises else."""
        with self._told():
            self._cuda.synchronize(self.index)

    def seconds(self, calls: Sequence[Callable[[], Any]], before: Callable[[], Any] | None = None) -> float:
        """Seconds that the device takes for `calls`, one after the other, by its own events; `before` them is not timed.

        Starting the calls from Python counts only as far as the device has to wait for it, which it does not while it is busy
        with `before`. So captured calls are timed; what calls cost that Python launches, `clock` tells.
        """
        self.synchronize()
        with self._told():
            return seconds_between(self._cuda, self._cuda.current_stream(self.index), calls, before)

    def stream(self) -> AbstractContextManager[Any]:
        return self._on()

    @contextmanager
    def _on(self, own: Any = None) -> Iterator[Any]:
        """On a side stream ordered after the current one, which in turn is ordered after it (also when the block raises)."""
        current = self._cuda.current_stream(self.index)
        own = self._cuda.Stream(device=self.index) if own is None else own
        own.wait_stream(current)
        try:
            with self._cuda.stream(own):
                yield own
        except BaseException:
            with suppress(RuntimeError):  # on a device that is lost nothing can be ordered: what was raised says more
                current.wait_stream(own)
            raise
        current.wait_stream(own)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            words = sticky(error)
            if words is None:
                raise
            raise DeviceLostError(
                f"{self.name} is of no use to this process any more: {words}; start it again, without what caused it"
            ) from error

    def environment(self) -> Environment:
        """Raises UsageError where torch has no such device."""
        return environment_of(self._facts, self._nvml, _cuda_version())

    def clocks(self) -> Clocks:
        """How fast the device runs now, as far as NVML tells: nothing is waited for, nothing is started on the device."""
        return self._nvml.clocks()

    def mhz(self) -> int | None:
        """The clock of its multiprocessors now, in MHz: what is recorded of each round; None where NVML does not tell."""
        return self._nvml.sm_clock()

    @cached_property
    def _facts(self) -> Any:
        try:
            return self._cuda.get_device_properties(self.index)
        except (AssertionError, RuntimeError) as error:  # torch asserts that it was built for CUDA, and the index
            raise UsageError(f"{self.name} cannot be used here: {str(error).strip().splitlines()[0]}") from error

    @cached_property
    def _nvml(self) -> Nvml:
        facts = self._facts
        parts = [getattr(facts, f"pci_{part}_id", 0) for part in ("domain", "bus", "device")]
        bus = "{:08x}:{:02x}:{:02x}.0".format(*parts)
        return Nvml(str(getattr(facts, "uuid", "")), bus, self._pynvml)

    def free_memory(self) -> int:
        """What the driver has left, and what torch's allocator took from it and can give to somebody else at once."""
        free = int(self._cuda.mem_get_info(self.index)[0])
        with suppress(AttributeError, RuntimeError):  # an allocator that took the place of torch's has no such figures
            free += int(self._cuda.memory_reserved(self.index)) - int(self._cuda.memory_allocated(self.index))
        return free

    def cache_bytes(self) -> int:
        return int(getattr(self._facts, "L2_cache_size", 0))

    def flush(self) -> Flush:
        return Flush.shared(FLUSH_RATIO * self.cache_bytes(), self.name)

    def no_capture(self) -> str | None:
        return None

    def capture(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """A CUDA graph of `call`, warmed up and captured on one side stream, as PyTorch asks for.

        The result lies in the graph's own memory: every replay writes it anew. Graphs of one device are not to be replayed at
        the same time, in two streams, and a result is to be read before another one is replayed: they share memory.
        """
        with self._told(), self._on(self._capturing) as self._capturing:
            return self._graphs.capture(call, self._capturing, self.synchronize)


def _cuda_version() -> str | None:
    import torch

    return torch.version.cuda
