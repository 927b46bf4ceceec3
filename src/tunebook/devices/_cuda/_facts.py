"""What a CUDA device is, as an environment: hard facts from PyTorch alone, soft ones from NVML as far as it tells."""

from __future__ import annotations

import re
from typing import Any

from tunebook.devices._cpu import CpuDevice
from tunebook.devices._cuda._nvml import Clocks, Nvml
from tunebook.records import Environment


def environment_of(facts: Any, nvml: Nvml, cuda_version: str | None) -> Environment:
    """`facts` is what ``torch.cuda.get_device_properties`` gives.

    Hard facts choose the book. They must not change with what is installed beside PyTorch, nor with the driver: a slice of a
    divided device (MIG) is known by its name, and the memory, of which drivers keep more or less for themselves, is soft.
    """
    host = CpuDevice().environment()
    hard = {
        "device": f"cuda {facts.name}",
        "capability": f"{facts.major}.{facts.minor}",
        "sms": str(facts.multi_processor_count),
        "l2": str(getattr(facts, "L2_cache_size", 0)),
        "mig": mig_profile(facts.name),
    }
    mig, limit = nvml.mig(), nvml.power_limit()
    soft = {
        "memory": f"{facts.total_memory / (1 << 30):.1f} GiB",
        "cuda": cuda_version,
        "driver": nvml.driver(),
        "power_limit": None if limit is None else f"{limit:.0f} W",
        "mig_mode": None if mig is None else "enabled" if mig else "disabled",
        "clocks": clocks_text(nvml.clocks(), nvml.most()),
        "nvml": nvml.missing,
        "host": f"{host.hard['device']}, {host.hard['cores']} cores",
    }
    return Environment(hard=hard, soft=host.soft | {name: text for name, text in soft.items() if text})


def mig_profile(name: str) -> str:
    """``1g.10gb`` of the name ``NVIDIA H100 80GB HBM3 MIG 1g.10gb``; ``none`` for a whole device."""
    found = re.search(r"\bMIG ([0-9][\w.+-]*)", name)
    return found[1] if found else "none"


def clocks_text(now: Clocks, most: Clocks) -> str:
    """``SM 1410 of 1980 MHz, memory 2619 of 2619 MHz, held by power cap``; empty where nothing is told."""
    parts = [
        f"{what} {clock} of {highest} MHz" if highest is not None else f"{what} {clock} MHz"
        for what, clock, highest in (("SM", now.sm, most.sm), ("memory", now.memory, most.memory))
        if clock is not None
    ]
    if now.held:
        parts.append(f"held by {' and '.join(now.held)}")
    return ", ".join(parts)
