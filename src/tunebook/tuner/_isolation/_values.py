"""Arguments in shared memory: written once by the tuning, mapped by each worker so that no write of it reaches anybody else."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import tempfile
import weakref
from collections.abc import Sequence
from typing import Any

from tunebook.tuner._isolation._messages import Items, TensorAt, Value

#: Where a tensor begins in the memory: as aligned as torch's own.
_ALIGNED = 64
#: What ``/proc/self/pagemap`` says of a page: it is in memory or swapped out, and it is the file's own.
_HERE, _OF_FILE = 3 << 62, 1 << 61
#: A view of a larger tensor keeps its strides while what lies between costs at most this much of it.
_SPREAD = 2


class UnshareableError(Exception):
    """A value that cannot be given to another process; the text says which."""


class Memory:
    """Shared memory with values in it: `add` them, then `seal` it. It has no name, and is gone with its last user."""

    def __init__(self) -> None:
        self.size = 0
        self._tensors: list[tuple[int, Any]] = []
        self.fd = -1

    def add(self, value: Any) -> Value:
        """The description of a value. Raises UnshareableError but for plain values, tensors, and tuples and lists of them."""
        if type(value) is str and not value.isascii() and value.encode(errors="replace").decode() != value:
            raise _unshareable("a text that is no Unicode")
        if value is None or type(value) in (bool, float, str):
            return value  # type: ignore[no-any-return]  # one of these
        if type(value) is int:
            if not -(1 << 63) <= value < 1 << 63:
                raise _unshareable("a number of more than 64 bits")
            return value
        if type(value) in (tuple, list):
            return Items(items=tuple(self.add(item) for item in value), is_list=type(value) is list)
        return self._tensor(value)

    def _tensor(self, value: Any) -> TensorAt:
        import torch

        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            raise _unshareable(f"of type {type(value).__name__}")
        plain = value.layout is torch.strided and not (value.is_quantized or value.is_conj() or value.is_neg())
        if not plain or value.device.type not in ("cpu", "cuda"):
            raise _unshareable(f"a tensor of {value.layout} on {value.device}")
        device, value = str(value.device), value.detach().cpu()
        if _span(value) > _SPREAD * value.numel() * value.element_size():
            value = value.contiguous()
        offset = -(-self.size // _ALIGNED) * _ALIGNED
        self.size = offset + _span(value)
        self._tensors.append((offset, value))
        return TensorAt(
            dtype=str(value.dtype).removeprefix("torch."),
            shape=tuple(value.shape),
            stride=tuple(value.stride()),
            offset=offset,
            bytes=_span(value),
            device=device,
        )

    def seal(self) -> None:
        """Write it all; nobody can write to it afterwards. Raises OSError where there is no memory for it."""
        self.fd = _nameless()
        try:
            os.truncate(self.fd, max(1, self.size))
            for offset, value in self._tensors:
                _write(self.fd, offset, value)
        except BaseException:
            self.close()
            raise
        self._tensors.clear()
        with contextlib.suppress(OSError, AttributeError):  # a file cannot be sealed, and is only mapped for oneself
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _unshareable(what: str) -> UnshareableError:
    return UnshareableError(
        f"an argument is {what}, which cannot be given to another process; plain tensors, numbers, texts, None, and tuples "
        "and lists of them can"
    )


def _nameless() -> int:
    """A descriptor of memory that has no name in any directory; where there is no such thing, of a deleted file."""
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):
            return os.memfd_create("tunebook", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _span(value: Any) -> int:
    """The bytes from a tensor's first element to its last."""
    if value.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return int((last + 1) * value.element_size())


def _write(fd: int, offset: int, value: Any) -> None:
    import torch

    count = _span(value)
    if not count:
        return
    with torch.inference_mode():
        flat = torch.empty(0, dtype=torch.uint8).set_(
            value.untyped_storage(), value.storage_offset() * value.element_size(), (count,), (1,)
        )
        left = memoryview(flat.numpy())  # type: ignore[arg-type]  # arrays are buffers, which older stubs do not say
    while left:
        done = os.pwrite(fd, left, offset)
        left, offset = left[done:], offset + done


class Mapped:
    """Shared memory as this process alone sees it: what is written to it stays here. Takes the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        try:
            self.memory = self._map()
        except BaseException:
            os.close(fd)
            raise
        weakref.finalize(self, os.close, fd)

    def _map(self) -> mmap.mmap:
        size = os.fstat(self._fd).st_size
        return mmap.mmap(self._fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)

    @property
    def told(self) -> bool:
        """Whether `changed` can tell, once something of the memory was read."""
        return self._written() is not None

    def changed(self) -> bool:
        """Whether this process has changed it."""
        import numpy as np

        if not self._written():
            return False
        return not np.array_equal(np.frombuffer(self.memory, np.uint8), np.frombuffer(self._map(), np.uint8))

    def _written(self) -> bool | None:
        """Whether it was written to; None where the system does not tell.

        A page that is written gets a copy of its own, which Linux tells in ``/proc/self/pagemap``.
        """
        import numpy as np

        page = mmap.PAGESIZE
        first = np.frombuffer(self.memory, dtype=np.uint8).ctypes.data // page
        try:
            with open("/proc/self/pagemap", "rb", buffering=0) as file:
                file.seek(8 * first)
                told = file.read(8 * -(-len(self.memory) // page))
        except OSError:
            return None
        pages = np.frombuffer(told, dtype=np.uint64)
        if len(pages) * page < len(self.memory) or not (pages & _HERE).any():
            return None
        return bool((((pages & _HERE) != 0) & ((pages & _OF_FILE) == 0)).any())


def value_of(described: Value, memory: Mapped) -> Any:
    """The value again; tensors lie in `memory`, or are copied to their device."""
    match described:
        case TensorAt():
            return _tensor_of(described, memory)
        case Items(items=items, is_list=is_list):
            made = values_of(items, memory)
            return list(made) if is_list else made
    return described


def values_of(described: Sequence[Value], memory: Mapped) -> tuple[Any, ...]:
    return tuple(value_of(value, memory) for value in described)


def _tensor_of(at: TensorAt, memory: Mapped) -> Any:
    import torch

    dtype = getattr(torch, at.dtype)
    if not at.bytes:
        return torch.empty(at.shape, dtype=dtype, device=at.device)
    flat = torch.frombuffer(memory.memory, dtype=torch.uint8, count=at.bytes, offset=at.offset).view(dtype)
    made = flat.as_strided(at.shape, at.stride)
    return made if at.device == "cpu" else made.to(at.device)
