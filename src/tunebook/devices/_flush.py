"""The flush: reading scratch memory until caches hold that instead of the weights of the last call."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary


class Flush:
    """Call it to read `bytes` of scratch memory on `device`, on all of torch's threads or the current stream.

    What was in a cache of at most `bytes` is then gone. It reads, so that caches keep nothing that is still to be written
    back within the next measurement. The memory is taken at the first call and goes with this object.
    """

    def __init__(self, bytes: int, device: str = "cpu") -> None:
        self.bytes = bytes
        self._device = device
        self._scratch: Any = None

    @classmethod
    def shared(cls, bytes: int, device: str = "cpu") -> Flush:
        """The one flush of this size and device, for as long as anybody holds it: its memory is taken once."""
        found = _SHARED.get((bytes, device))
        if found is None:
            found = _SHARED[bytes, device] = cls(bytes, device)
        return found

    def __call__(self) -> None:
        if self._scratch is None:
            import torch

            # Written once: pages of zeros that nobody has written may all be one and the same in memory.
            self._scratch = torch.ones(-(-self.bytes // 8), dtype=torch.int64, device=self._device)
        self._scratch.sum()


_SHARED: WeakValueDictionary[tuple[int, str], Flush] = WeakValueDictionary()
