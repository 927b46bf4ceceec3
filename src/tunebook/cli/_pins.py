"""The cache whose pins are meant, and what a pin does, in words: for `pin`, `unpin` and `pins`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from tunebook.cli._text import clean

if TYPE_CHECKING:
    from tunebook.book.pinning import PinState
    from tunebook.store import CacheContents


def pinned_cache(cache: Path | None, threads: int | None) -> Path:
    """The cache that the pins lie beside; this environment's also before anything was tuned."""
    from tunebook.book import place_of
    from tunebook.errors import StoreError

    try:
        return place_of(cache, threads).cache
    except StoreError:
        from tunebook.devices import device_of
        from tunebook.engine import set_threads
        from tunebook.store import Location

        set_threads(threads)
        return Location.of(device_of("cpu").environment()).cache


def known_problems(contents: CacheContents) -> list[str]:
    """The keys of the problems that a cache has a verdict on; those that cannot be read are left out."""
    return list(contents.verdicts)


def effect(state: PinState) -> str:
    """What a pin serves now, in words."""
    if not state.declared:
        return "its op is not declared here (--with FILE)"
    if state.wrong:
        return clean(f"not offered: {state.wrong}")
    return f"serves {_problems(state.serves)}" + (f", not offered for {len(state.refused)}" if state.refused else "")


def refusals(states: Collection[PinState]) -> list[tuple[str, str, str]]:
    """A row for each problem that a pin is not offered for: the pin, the problem, why."""
    return [(clean(s.target), clean(key), clean(why)) for s in states for key, why in sorted(s.refused.items())]


def _problems(count: int) -> str:
    return f"{count} problem{'' if count == 1 else 's'} of the cache"
