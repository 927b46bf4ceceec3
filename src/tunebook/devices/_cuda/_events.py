"""Timing by events: marks in a stream, of which the device itself notes when it passes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

#: No calls take less, in seconds: what is shorter than an event's step of half a microsecond may be told as nothing.
LEAST_S = 1e-9


def seconds_between(
    cuda: Any, stream: Any, calls: Sequence[Callable[[], Any]], before: Callable[[], Any] | None
) -> float:
    """Seconds on the device from the end of `before` to the end of `calls`, all of them started on `stream`.

    `before`, which is not timed, is not waited for either: while the device is busy with it the calls are queued, so that
    starting them from Python is hidden behind it, as it is in a graph that is served. The time of an event may be asked for
    only once the event was passed; the second one is waited for, and the first one lies before it in the same stream.
    """
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    if before is not None:
        before()
    start.record(stream)
    for call in calls:
        call()
    end.record(stream)
    end.synchronize()
    return max(float(start.elapsed_time(end)) / 1e3, LEAST_S)
