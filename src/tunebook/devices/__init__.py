"""Devices: clock, synchronise, streams, flushes, graphs and environment facts behind one interface."""

from typing import Any

from tunebook.devices._base import Device
from tunebook.devices._cpu import CpuDevice
from tunebook.devices._cuda import CudaDevice, DeviceLostError, sticky
from tunebook.devices._flush import Flush
from tunebook.devices._heap import give_back
from tunebook.devices._isa import cache_sizes, cpu_isa, cpu_model, usable_cores
from tunebook.errors import UsageError


def device_of(name: Any = "cpu") -> Device:
    """The device that torch calls `name` (a string or a ``torch.device``); plain ``cuda`` is this process's current GPU.

    Raises UsageError for a kind not known here.
    """
    kind, _, index = str(name).partition(":")
    if kind == "cpu":
        return CpuDevice()
    if kind == "cuda" and (index or "0").isdecimal():
        return CudaDevice(int(index) if index else None)
    raise UsageError(f"device {name!s} is neither cpu nor cuda; tunebook measures on these two")


__all__ = [
    "CpuDevice",
    "CudaDevice",
    "Device",
    "DeviceLostError",
    "Flush",
    "cache_sizes",
    "cpu_isa",
    "cpu_model",
    "device_of",
    "give_back",
    "sticky",
    "usable_cores",
]
