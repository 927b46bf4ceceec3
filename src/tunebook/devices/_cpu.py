"""The CPU as a device: its stream is a no-op, its clock is the process's."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tunebook.devices._flush import Flush
from tunebook.devices._isa import cache_sizes, cpu_isa, cpu_model, usable_cores
from tunebook.errors import UsageError
from tunebook.records import Environment

#: A flush reads at most this much (1 to 3 ms): larger last-level caches are shared by many cores and never one layer's own.
FLUSH_BYTES = 64 << 20
_MEMINFO = Path("/proc/meminfo")
_CGROUP = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


class CpuDevice:
    """The host's processor, with the threads that torch is set to."""

    name = "cpu"

    def clock(self) -> float:
        return time.perf_counter()

    def synchronize(self) -> None:
        """Nothing to wait for: calls on the CPU return when they are done."""

    def stream(self) -> AbstractContextManager[None]:
        return nullcontext()

    def environment(self) -> Environment:
        import torch

        caches = cache_sizes()
        hard = {
            "device": f"cpu {cpu_model()}",
            "machine": platform.machine(),
            "isa": " ".join(cpu_isa()),
            "cores": str(usable_cores()),
            "threads": str(torch.get_num_threads()),
            "l2": str(caches.get("l2", 0)),
            "l3": str(caches.get("l3", 0)),
        }
        soft = {
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "onednn": _onednn(),
            "load": _load(),
        }
        for distribution in ("transformers", "tunebook"):
            try:
                soft[distribution] = version(distribution)
            except PackageNotFoundError:
                continue
        return Environment(hard=hard, soft=soft)

    def free_memory(self) -> int:
        free = [value for value in (_meminfo_available(), _cgroup_free()) if value is not None]
        return min(free) if free else 1 << 62

    def cache_bytes(self) -> int:
        caches = cache_sizes()
        return caches.get("l3", 0) or caches.get("l2", 0)

    def flush(self) -> Flush:
        return Flush.shared(min(self.cache_bytes() or FLUSH_BYTES, FLUSH_BYTES))

    def no_capture(self) -> str | None:
        return "a CPU has no graphs to capture calls in"

    def capture(self, call: Callable[[], Any]) -> Callable[[], Any]:
        raise UsageError(f"measurement policy 'captured': {self.no_capture()}; measure with 'eager' there")


def _onednn() -> str:
    import torch

    for line in torch.__config__.show().splitlines():
        if "DNN" in line and "(Git" in line:
            return line.split("DNN")[-1].split("(")[0].strip(" v-")
    return "none"


def _load() -> str:
    try:
        return f"{os.getloadavg()[0]:.2f}"
    except OSError:
        return "unknown"


def _meminfo_available() -> int | None:
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def _cgroup_free() -> int | None:
    for limit, used in _CGROUP:
        try:
            ceiling = limit.read_text().strip()
            if ceiling != "max" and int(ceiling) < 1 << 60:
                return max(0, int(ceiling) - int(used.read_text()))
        except (OSError, ValueError):
            continue
    return None
