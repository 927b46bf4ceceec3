"""What a device must do for tunebook: tell the time, wait, offer a stream of its own, empty caches, say what it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from tunebook.devices._flush import Flush
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

    def flush(self) -> Flush:
        """A function that empties caches, as far as can be afforded at every sample; `bytes` of it says how far."""

    def no_capture(self) -> str | None:
        """Why calls cannot be captured as a graph on this device, in words; None where they can."""

    def capture(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Record what `call` starts as a graph, and give the function that runs the graph again and returns `call`'s result.

        Raises UsageError where the device has no graphs, and whatever `call` raises for work that cannot be recorded.
        """
