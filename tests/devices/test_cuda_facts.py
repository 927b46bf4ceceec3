"""What is kept of a CUDA device: hard facts from torch alone, soft ones from a stand-in for NVML that tells some or none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tunebook.devices import CudaDevice
from tunebook.devices._cuda import Clocks

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from tests.devices.cuda_driver import Driver  # noqa: E402 - found from the root

HARD = {"device": "cuda Fake GPU", "capability": "9.0", "sms": "132", "l2": str(50 << 20), "mig": "none"}


class NVMLError(Exception):
    pass


class FakeNvml:
    """Stands for ``pynvml``, with the answers of one device; those in `refused` raise, as for what a device does not tell."""

    NVMLError = NVMLError

    def __init__(self, *refused: str, known: str = "GPU-1234", started: bool = True, held: int = 0) -> None:
        self.refused = refused
        self.known = known
        self.started = started
        self.held = held
        self.asked: list[str] = []

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        if not self.started:
            raise NVMLError("NVML Shared Library Not Found")

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def answer(*args: Any) -> Any:
            self.asked.append(name)
            if name in self.refused:
                raise NVMLError("Not Supported")
            match name, args:
                case "nvmlDeviceGetHandleByUUID" | "nvmlDeviceGetHandleByPciBusId", (given,):
                    if given != self.known:
                        raise NVMLError("Not Found")
                    return "slice" if given.startswith("MIG") else "whole"
                case "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", ("slice",):
                    return "whole"
                case "nvmlSystemGetDriverVersion", ():
                    return "580.95.05"
                case _, ("whole", *rest):
                    return self.of_the_whole(name, *rest)
            raise NVMLError("Invalid Argument")

        return answer

    def of_the_whole(self, name: str, *args: int) -> Any:
        match name, args:
            case "nvmlDeviceGetEnforcedPowerLimit", ():
                return 700_000
            case "nvmlDeviceGetPowerUsage", ():
                return 81_500
            case "nvmlDeviceGetMigMode", ():
                return [1 if self.known.startswith("MIG") else 0, 0]
            case "nvmlDeviceGetClockInfo", (kind,):
                return {1: 1410, 2: 2619}[kind]
            case "nvmlDeviceGetMaxClockInfo", (kind,):
                return {1: 1980, 2: 2619}[kind]
            case "nvmlDeviceGetTemperature", (0,):
                return 41
            case "nvmlDeviceGetCurrentClocksEventReasons", ():
                return self.held
        raise NVMLError("Invalid Argument")


def test_all_facts_of_a_device_that_tells_all() -> None:
    device = CudaDevice(0, Driver(), FakeNvml(held=0x1 | 0x4 | 0x40))
    environment = device.environment()
    assert environment.hard == HARD
    soft = environment.soft
    assert soft["driver"] == "580.95.05"
    assert soft["power_limit"] == "700 W"
    assert soft["mig_mode"] == "disabled"
    assert soft["memory"] == "80.0 GiB"
    assert soft["clocks"] == (
        "SM 1410 of 1980 MHz, memory 2619 of 2619 MHz, held by power cap and thermal slowdown (hardware)"
    )
    assert soft["host"].startswith("cpu ")
    assert "nvml" not in soft
    assert device.mhz() == 1410
    assert device.clocks() == Clocks(
        sm=1410, memory=2619, celsius=41, watts=81.5, held=("power cap", "thermal slowdown (hardware)")
    )


def test_the_book_does_not_change_with_what_is_installed_or_with_the_driver() -> None:
    told = CudaDevice(0, Driver(), FakeNvml()).environment()
    silent = CudaDevice(0, Driver(total_memory=79 << 30), FakeNvml(started=False)).environment()
    assert told.digest == silent.digest


@pytest.mark.parametrize(
    ("facts", "field"),
    [({"name": "Other GPU"}, "device"), ({"minor": 3}, "capability"), ({"multi_processor_count": 114}, "sms")],
)
def test_another_device_has_another_book(facts: dict[str, Any], field: str) -> None:
    one, other = (CudaDevice(0, Driver(**some), FakeNvml()).environment() for some in ({}, facts))
    assert one.digest != other.digest
    assert [text.partition(":")[0] for text in one.differences(other)] == [field]


def test_a_slice_is_known_by_its_name_and_its_clocks_are_those_of_the_whole() -> None:
    driver = Driver(name="NVIDIA H100 80GB HBM3 MIG 1g.10gb", multi_processor_count=16)
    environment = CudaDevice(0, driver, FakeNvml(known="MIG-1234")).environment()
    assert environment.hard["mig"] == "1g.10gb"
    assert environment.soft["mig_mode"] == "enabled"
    assert environment.soft["clocks"].startswith("SM 1410")


@pytest.mark.parametrize("name", ["NVIDIA MIGHTY 7g", "Fake GPU", "MIGRATED MIG"])
def test_a_name_without_a_profile_is_that_of_a_whole_device(name: str) -> None:
    assert CudaDevice(0, Driver(name=name), FakeNvml()).environment().hard["mig"] == "none"


def test_a_device_is_found_by_its_bus_where_its_uuid_says_nothing() -> None:
    nvml = FakeNvml(known="00000000:1a:00.0")
    assert CudaDevice(0, Driver(), nvml).clocks().sm == 1410


@pytest.mark.parametrize(
    ("nvml", "why"),
    [
        (FakeNvml(started=False), "NVML does not start: NVML Shared Library Not Found"),
        (FakeNvml(known="GPU-another"), "NVML does not know this device"),
    ],
)
def test_without_facts_the_environment_says_why_and_no_clock_is_told(nvml: FakeNvml, why: str) -> None:
    device = CudaDevice(0, Driver(), nvml)
    environment = device.environment()
    assert environment.hard == HARD
    assert environment.soft["nvml"] == why
    assert not {"power_limit", "mig_mode", "clocks"} & set(environment.soft)
    assert device.clocks() == Clocks()
    assert device.mhz() is None


def test_without_the_package_the_environment_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert CudaDevice(0, Driver()).environment().soft["nvml"] == "the package nvidia-ml-py is not installed"


@pytest.mark.parametrize(
    ("refused", "gone"),
    [
        ("nvmlDeviceGetEnforcedPowerLimit", "power_limit"),
        ("nvmlDeviceGetMigMode", "mig_mode"),
        ("nvmlDeviceGetClockInfo", "clocks"),
        ("nvmlSystemGetDriverVersion", "driver"),
    ],
)
def test_a_fact_that_cannot_be_had_costs_no_other(refused: str, gone: str) -> None:
    whole = set(CudaDevice(0, Driver(), FakeNvml()).environment().soft)
    part = set(CudaDevice(0, Driver(), FakeNvml(refused)).environment().soft)
    assert whole - part == {gone}


@pytest.mark.parametrize(
    ("absent", "gone"),
    [
        ("nvmlDeviceGetEnforcedPowerLimit", {"power_limit"}),
        ("nvmlDeviceGetMigMode", {"mig_mode"}),
        ("nvmlDeviceGetTemperature", set()),
        ("nvmlDeviceGetHandleByUUID", {"clocks", "driver", "mig_mode", "power_limit"}),
    ],
)
def test_a_function_that_the_package_lacks_costs_its_fact_alone(absent: str, gone: set[str]) -> None:
    class Other(FakeNvml):
        def __getattr__(self, name: str) -> Any:
            if name == absent:
                raise AttributeError(name)
            return super().__getattr__(name)

    whole = set(CudaDevice(0, Driver(), FakeNvml()).environment().soft)
    part = CudaDevice(0, Driver(), Other())
    assert whole - set(part.environment().soft) == gone
    assert part.clocks().sm == (None if "clocks" in gone else 1410)


def test_highest_clocks_that_are_not_told_are_left_out() -> None:
    soft = CudaDevice(0, Driver(), FakeNvml("nvmlDeviceGetMaxClockInfo")).environment().soft
    assert soft["clocks"] == "SM 1410 MHz, memory 2619 MHz"


def test_older_packages_name_the_reasons_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older(FakeNvml):
        def __getattr__(self, name: str) -> Any:
            if name == "nvmlDeviceGetCurrentClocksEventReasons":
                raise AttributeError(name)
            return super().__getattr__(name)

        def of_the_whole(self, name: str, *args: int) -> Any:
            return super().of_the_whole(name.replace("Throttle", "Event"), *args)

    assert CudaDevice(0, Driver(), Older(held=0x8)).clocks().held == ("hardware slowdown",)


def test_nvml_is_asked_for_the_device_once() -> None:
    nvml = FakeNvml()
    device = CudaDevice(0, Driver(), nvml)
    for _ in range(3):
        device.clocks()
    assert nvml.asked.count("nvmlDeviceGetHandleByUUID") == 1


def test_what_is_called_here_is_in_the_package() -> None:
    """The stand-in answers to any name: the package must have them."""
    pynvml = pytest.importorskip("pynvml")
    nvml = FakeNvml(known="none")
    device = CudaDevice(0, Driver(), nvml)
    device.clocks()
    nvml = FakeNvml()
    CudaDevice(0, Driver(), nvml).environment()
    assert all(hasattr(pynvml, name) for name in {*nvml.asked, "nvmlDeviceGetHandleByPciBusId", "nvmlInit"})
    assert issubclass(pynvml.NVMLError, Exception)
    assert (pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM, pynvml.NVML_TEMPERATURE_GPU) == (1, 2, 0)
    assert pynvml.nvmlClocksEventReasonSwPowerCap == 0x4
    assert pynvml.nvmlClocksEventReasonHwThermalSlowdown == 0x40
