"""Errors after which a process can do nothing more on its device: CUDA gives the same one to every later call."""

from __future__ import annotations

from tunebook.errors import TunebookError

#: Codes of ``cudaError_t`` of which CUDA's reference says that the process must be ended and started anew, in its own words.
STICKY: dict[int, str] = {
    700: "an illegal memory access was encountered",
    702: "the launch timed out and was terminated",
    710: "device-side assert triggered",
    714: "hardware stack error",
    715: "an illegal instruction was encountered",
    716: "misaligned address",
    717: "operation not supported on global/shared address space",
    718: "invalid program counter",
    719: "unspecified launch failure",
}


class DeviceLostError(TunebookError):
    """A call spoilt the device for this process, and this process only: another one, started now, has the device back.

    The message names the device and the error. It may have been caused by a call before the one that raised it: calls on a
    device end later than they return.
    """


def sticky(error: BaseException) -> str | None:
    """CUDA's words for an error after which nothing works any more in this process; None for any other error.

    PyTorch's AcceleratorError carries the code of ``cudaError_t``. What other libraries raise is known by the words. Of a
    DeviceLostError it is the message.
    """
    if isinstance(error, DeviceLostError):
        return str(error)
    code = getattr(error, "error_code", None)
    if code in STICKY:
        return STICKY[code]
    text = str(error)
    return next((words for words in STICKY.values() if words in text), None) if "CUDA" in text else None
