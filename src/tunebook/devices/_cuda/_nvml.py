"""What NVIDIA's management library (NVML) knows of a device: driver, power limit, clocks and why they are held down."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: ``NVML_CLOCK_SM``, ``NVML_CLOCK_MEM`` and ``NVML_TEMPERATURE_GPU``.
_SM, _MEMORY, _GPU = 1, 2, 0
#: Why clocks are lower than they could be, by the bits of ``nvmlClocksEventReason*``. Idleness is no reason to worry.
REASONS: dict[int, str] = {
    0x02: "application clocks",
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
    0x100: "display clocks",
}


@dataclass(frozen=True, kw_only=True)
class Clocks:
    """How fast a device runs at a moment: MHz of its multiprocessors and of its memory, degrees Celsius, watts.

    None where the device or the driver does not tell. `held` are the reasons for which clocks are held down.
    """

    sm: int | None = None
    memory: int | None = None
    celsius: int | None = None
    watts: float | None = None
    held: tuple[str, ...] = ()


class Nvml:
    """NVML's view of the device with this UUID (as CUDA tells it, without a prefix) or PCI bus id.

    Never by an index: NVML counts the devices of the machine, CUDA those that ``CUDA_VISIBLE_DEVICES`` leaves, in an order
    of its own. Every fact is asked for alone, and one that cannot be had is None: virtual machines, MIG slices and older
    drivers have some of them only. `module` stands for ``pynvml`` and is replaced by a fake in tests.
    """

    def __init__(self, uuid: str, bus: str, module: Any = None) -> None:
        #: Why there are no facts at all, in words; empty where there are.
        self.missing = ""
        self._device: Any = None
        self._nvml: Any = None
        try:
            self._nvml = module or importlib.import_module("pynvml")
        except ImportError:
            self.missing = "the package nvidia-ml-py is not installed"
            return
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            self.missing = f"NVML does not start: {error}"
            return
        self._device = self._found(uuid, bus)
        if self._device is None:
            self.missing = "NVML does not know this device"

    def driver(self) -> str | None:
        return self._text(lambda: self._nvml.nvmlSystemGetDriverVersion())

    def power_limit(self) -> float | None:
        """The limit that is in force, in watts: the least of the user's, the board's and the system's."""
        milliwatts = self._whole(lambda: self._nvml.nvmlDeviceGetEnforcedPowerLimit(self._device))
        return None if milliwatts is None else milliwatts / 1e3

    def mig(self) -> bool | None:
        """Whether the device that this is, or that this is a slice of, is divided by MIG now."""
        modes = self._asked(lambda: self._nvml.nvmlDeviceGetMigMode(self._device))
        return None if modes is None else bool(modes[0])

    def most(self) -> Clocks:
        """The highest clocks that the device can have."""
        return Clocks(
            sm=self._whole(lambda: self._nvml.nvmlDeviceGetMaxClockInfo(self._device, _SM)),
            memory=self._whole(lambda: self._nvml.nvmlDeviceGetMaxClockInfo(self._device, _MEMORY)),
        )

    def sm_clock(self) -> int | None:
        """The clock of the multiprocessors now, in MHz: one question, for it is asked between samples."""
        return self._whole(lambda: self._nvml.nvmlDeviceGetClockInfo(self._device, _SM))

    def clocks(self) -> Clocks:
        """The device at this moment; it need not be idle, and nothing is waited for."""
        milliwatts = self._whole(lambda: self._nvml.nvmlDeviceGetPowerUsage(self._device))
        return Clocks(
            sm=self.sm_clock(),
            memory=self._whole(lambda: self._nvml.nvmlDeviceGetClockInfo(self._device, _MEMORY)),
            celsius=self._whole(lambda: self._nvml.nvmlDeviceGetTemperature(self._device, _GPU)),
            watts=None if milliwatts is None else milliwatts / 1e3,
            held=self._held(),
        )

    def _held(self) -> tuple[str, ...]:
        # Renamed in the driver's release 535; older packages have the former name alone.
        name = "nvmlDeviceGetCurrentClocks{}Reasons"
        ask = getattr(self._nvml, name.format("Event"), None) or getattr(self._nvml, name.format("Throttle"), None)
        bits = self._whole(lambda: ask(self._device)) if ask is not None else None
        return tuple(words for bit, words in REASONS.items() if (bits or 0) & bit)

    def _found(self, uuid: str, bus: str) -> Any:
        """The whole device: what NVML tells of clocks and power is not told of a slice."""
        asks: tuple[Callable[[], Any], ...] = (
            lambda: self._nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"),
            lambda: self._nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
                self._nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")
            ),
            lambda: self._nvml.nvmlDeviceGetHandleByPciBusId(bus),
        )
        for ask in asks:
            try:
                return ask()
            except self._refusals:
                continue
        return None

    def _whole(self, ask: Callable[[], Any]) -> int | None:
        found = self._asked(ask)
        return None if found is None else int(found)

    def _text(self, ask: Callable[[], Any]) -> str | None:
        found = self._asked(ask)
        return found.decode(errors="replace") if isinstance(found, bytes) else found

    def _asked(self, ask: Callable[[], Any]) -> Any:
        if self._device is None:
            return None
        try:
            return ask()
        except self._refusals:
            return None

    @property
    def _refusals(self) -> tuple[type[Exception], ...]:
        """What is raised for what cannot be had: by NVML, and by a package that has no such function (yet, or any more)."""
        return self._nvml.NVMLError, AttributeError
