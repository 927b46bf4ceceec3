"""Errors after which a process can do nothing more on its device: CUDA gives the same one to every later call."""

from __future__ import annotations

from tunebook.errors import TunebookError

#: Codes of ``cudaError_t`` of which CUDA's reference says that the process must be ended and started anew, in its own words.
STICKY: dict[int, str] = {
    226: "Invalid access of peer GPU memory over nvlink or a hardware error",
    700: "an illegal memory access was encountered",
    702: "the launch timed out and was terminated",
    710: "device-side assert triggered",
    714: "hardware stack error",
    715: "an illegal instruction was encountered",
    716: "misaligned address",
    717: "operation not supported on global/shared address space",
    718: "invalid program counter",
    719: "unspecified launch failure",
    721: "tensor memory not completely freed",
    810: "the MPS client has been terminated by the server",
}
#: What the same errors are called in the runtime's interface and in the driver's: some libraries raise the name alone.
NAMES: dict[int, tuple[str, str]] = {
    226: ("cudaErrorContained", "CUDA_ERROR_CONTAINED"),
    700: ("cudaErrorIllegalAddress", "CUDA_ERROR_ILLEGAL_ADDRESS"),
    702: ("cudaErrorLaunchTimeout", "CUDA_ERROR_LAUNCH_TIMEOUT"),
    710: ("cudaErrorAssert", "CUDA_ERROR_ASSERT"),
    714: ("cudaErrorHardwareStackError", "CUDA_ERROR_HARDWARE_STACK_ERROR"),
    715: ("cudaErrorIllegalInstruction", "CUDA_ERROR_ILLEGAL_INSTRUCTION"),
    716: ("cudaErrorMisalignedAddress", "CUDA_ERROR_MISALIGNED_ADDRESS"),
    717: ("cudaErrorInvalidAddressSpace", "CUDA_ERROR_INVALID_ADDRESS_SPACE"),
    718: ("cudaErrorInvalidPc", "CUDA_ERROR_INVALID_PC"),
    719: ("cudaErrorLaunchFailure", "CUDA_ERROR_LAUNCH_FAILED"),
    721: ("cudaErrorTensorMemoryLeak", "CUDA_ERROR_TENSOR_MEMORY_LEAK"),
    810: ("cudaErrorMpsClientTerminated", "CUDA_ERROR_MPS_CLIENT_TERMINATED"),
}


class DeviceLostError(TunebookError):
    """A call spoilt the device for this process, and this process only: another one, started now, has the device back.

    The message names the device and the error. It may have been caused by a call before the one that raised it: calls on a
    device end later than they return.
    """


def sticky(error: BaseException) -> str | None:
    """CUDA's words for an error after which nothing works any more in this process; None for any other error.

    PyTorch's AcceleratorError carries the code of ``cudaError_t``. What other libraries raise is known by the words or by the
    error's name. Of a DeviceLostError it is the message.
    """
    if isinstance(error, DeviceLostError):
        return str(error)
    code = getattr(error, "error_code", None)
    if code in STICKY:
        return STICKY[code]
    text = str(error)
    named = next((STICKY[code] for code, names in NAMES.items() if any(name in text for name in names)), None)
    if named is not None or "CUDA" not in text:
        return named
    return next((words for words in STICKY.values() if words in text), None)
