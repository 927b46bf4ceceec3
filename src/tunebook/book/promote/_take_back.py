"""Taking back a promotion: what it replaced comes into the cache again, and what was published since is not lost."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tunebook.errors import StoreError
from tunebook.records import Environment
from tunebook.store import CacheContents, Location, Run, read_any
from tunebook.store.promotion import Restored, Revision, restored, roll_back
from tunebook.store.replaced import Replaced, read_replaced


@dataclass(frozen=True, kw_only=True)
class TakeBack:
    """What rolling back the newest promotion would do: `restored` are the entries as they become; `more` are older ones."""

    location: Location
    environment: Environment
    promotion: Replaced
    restored: Restored
    contents: CacheContents
    more: int


def last_promotion(cache: Path) -> TakeBack:
    """What can be taken back of a cache. Raises StoreError where nothing was promoted into it, or that cannot be read."""
    promotions = read_replaced(Path(os.path.realpath(cache)))
    if not promotions:
        raise StoreError(f"{cache}: nothing was promoted into it that could be rolled back")
    contents = read_any(cache)
    if isinstance(contents, Run) or contents.environment is None:
        raise StoreError(f"{cache}: this is no cache that says in which environment it was made; nothing was changed")
    location = Location.of(contents.environment)
    if location.cache != cache.absolute():
        location = Location.of(contents.environment, cache)
    return TakeBack(
        location=location,
        environment=contents.environment,
        promotion=promotions[-1],
        restored=restored(promotions[-1], contents.verdicts, contents.plans),
        contents=contents,
        more=len(promotions) - 1,
    )


def take_back(found: TakeBack) -> Revision:
    """Do it, as `tunebook.store.promotion.roll_back` says."""
    return roll_back(found.location, found.environment, found.promotion)
