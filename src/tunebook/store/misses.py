"""A miss: something in a file that cannot be served, said in one line. Data, not an exception."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final, Literal

MissKind = Literal["absent", "empty", "unreadable", "not JSON", "not TOML", "schema", "environment", "entry"]

#: So many bad entries are named; the rest are counted.
MAX_ENTRY_MISSES: Final = 1000

logger = logging.getLogger("tunebook.store")


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """Why a file, or one entry of it, is not served.

    - ``absent``, ``empty``, ``unreadable``, ``not JSON``, ``not TOML``, ``schema``, ``environment``: nothing of the file is
      served.
    - ``entry``: this one verdict, plan or line is not; the rest is.

    `where` names the file and, for an entry, its key or line; `detail` names the field and what is wrong with it. Both
    are printable and short, whatever the file held.
    """

    kind: MissKind
    where: str
    detail: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.detail}"


class Misses:
    """The misses of the file called `where` as far as they are known: those of entries come as the entries are read.

    At most `MAX_ENTRY_MISSES` are kept, the rest are counted. `loud` is set once the reader has been given what was known
    after reading: what comes later is logged as well, since nobody may ask again.
    """

    def __init__(self, where: str, *known: Miss) -> None:
        self.loud = False
        self._where = where
        self._named = list(known)
        self._more = 0

    def add(self, miss: Miss) -> None:
        """Keep a miss, and log it if it comes late."""
        if len(self._named) >= MAX_ENTRY_MISSES:
            self._more += 1
            return
        self._named.append(miss)
        if self.loud:
            logger.warning("cache miss: %s", miss)

    def without(self, kind: MissKind) -> Misses:
        """These misses, and none of that kind; for a file of which nothing else is known."""
        if not any(miss.kind == kind for miss in self._named):
            return self
        return Misses(self._where, *(miss for miss in self._named if miss.kind != kind))

    def known(self) -> tuple[Miss, ...]:
        """Every miss so far, in the order in which they were found."""
        if not self._more:
            return tuple(self._named)
        more = Miss(kind="entry", where=self._where, detail=f"{self._more} more entries cannot be served")
        return (*self._named, more)
