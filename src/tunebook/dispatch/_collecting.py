"""The one place that knows whether calls are being collected, and by whom."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from tunebook.dispatch._scope import snapshot
from tunebook.errors import UsageError

if TYPE_CHECKING:
    from tunebook.dispatch._binding import Binding

#: Every binding that lives, so that entering and leaving a collection reaches all of them.
BINDINGS: weakref.WeakSet[Binding] = weakref.WeakSet()


class Collector(Protocol):
    """Notes a call and gives the callable that serves it meanwhile."""

    def note(self, binding: Binding, args: tuple[Any, ...]) -> Callable[..., Any]: ...


class _State:
    collector: Collector | None = None


_state = _State()


def collector() -> Collector | None:
    """Who collects calls now, or None."""
    return _state.collector


@contextmanager
def collecting(by: Collector) -> Iterator[None]:
    """Send every call of every op to `by`. Tables are switched, not emptied: serving costs nothing for it."""
    if _state.collector is not None:
        raise UsageError("calls are being collected already; leave that autotune block first")
    _state.collector = by
    try:
        _switch_all()
        yield
    finally:
        _state.collector = None
        _switch_all()


@contextmanager
def uncollected() -> Iterator[None]:
    """Calls in this block are not collected: they are served as if no collection were open."""
    paused, _state.collector = _state.collector, None
    try:
        _switch_all()
        yield
    finally:
        _state.collector = paused
        _switch_all()


def _switch_all() -> None:
    for binding in snapshot(BINDINGS):
        binding.switch()
