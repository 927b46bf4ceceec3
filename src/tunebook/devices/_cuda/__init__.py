"""A CUDA device. Written against the documentation of PyTorch, CUDA and NVML; not yet run on hardware by this project."""

from tunebook.devices._cuda._device import FLUSH_RATIO, CudaDevice
from tunebook.devices._cuda._graphs import CAPTURE_WARM_UP
from tunebook.devices._cuda._lost import DeviceLostError, sticky
from tunebook.devices._cuda._nvml import Clocks

__all__ = ["CAPTURE_WARM_UP", "FLUSH_RATIO", "Clocks", "CudaDevice", "DeviceLostError", "sticky"]
