"""What a device must do for tunebook: tell the time, wait, offer a stream of its own, and say what it is."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from tunebook.records import Environment


class Device(Protocol):
    """One device behind one interface; the rest of tunebook never asks which kind it is."""

    @property
    def name(self) -> str:
        """``cpu``, ``cuda:0``: what torch calls it."""

    def clock(self) -> float:
        """Seconds on a clock that never goes back."""

    def synchronize(self) -> None:
        """Return when everything that was started has ended."""

    def stream(self) -> AbstractContextManager[Any]:
        """Work in the block runs on a stream of its own, which waits for the current one and is waited for by it."""

    def environment(self) -> Environment:
        """The hard and soft facts that timings depend on."""

    def free_memory(self) -> int:
        """Bytes that can be allocated now."""

    def cache_bytes(self) -> int:
        """Bytes of the last-level cache; 0 where it is not known."""
