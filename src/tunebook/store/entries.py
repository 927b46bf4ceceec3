"""The entries of a cache, each read when it is first looked up: a start pays for those that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import msgspec

from tunebook.records import Record
from tunebook.store._text import one_line
from tunebook.store.misses import Miss, Misses
from tunebook.store.objects import Members, read_record

_R = TypeVar("_R", bound=Record)


class Entries(Mapping[str, _R]):
    """Verdicts by problem key, or plans by fingerprint, in the order of the file. Read-only.

    An entry is decoded and validated in full when it is first looked up, and remembered; one that cannot be served is then
    a `Miss`, recorded once, and absent. `len` and iteration read every entry, so they count and give those that can be
    served. Nothing is decoded twice. Threads may look up at the same time.
    """

    def __init__(
        self,
        where: str,
        members: Members,
        decoder: msgspec.json.Decoder[_R],
        key_of: Callable[[_R], str],
        misses: Misses,
    ) -> None:
        """`where` names the file and the kind of entry in a miss; `key_of` gives the key that an entry is to stand under."""
        self._where = where
        self._decoder = decoder
        self._key_of = key_of
        self._misses = misses
        self._entries: dict[str, msgspec.Raw | _R] = dict(members.entries)
        self._all_read = False
        for key in [key for key in self._entries if key in members.repeated] if members.repeated else ():
            self._refuse(key, "the key occurs twice")

    def __getitem__(self, key: str) -> _R:
        entry = self._entries[key]
        return self._read(key, entry) if isinstance(entry, msgspec.Raw) else entry

    def __iter__(self) -> Iterator[str]:
        self._read_all()
        return iter(self._entries)

    def __len__(self) -> int:
        self._read_all()
        return len(self._entries)

    def __repr__(self) -> str:
        unread = sum(isinstance(entry, msgspec.Raw) for entry in self._entries.values())
        return f"<{len(self._entries)} entries of {self._where}, {unread} of them not read yet>"

    def _read(self, key: str, text: msgspec.Raw) -> _R:
        try:
            entry = read_record(text, self._decoder)
        except (ValueError, RecursionError) as error:
            self._refuse(key, one_line(error))
            raise KeyError(key) from None
        if self._key_of(entry) != key:
            self._refuse(key, f"it is about {one_line(self._key_of(entry))}")
            raise KeyError(key)
        self._entries[key] = entry
        return entry

    def _read_all(self) -> None:
        if self._all_read:
            return
        for key in list(self._entries):
            self.get(key)
        self._all_read = True

    def _refuse(self, key: str, why: str) -> None:
        # Another thread may have come to the same result first.
        if self._entries.pop(key, None) is not None:
            self._misses.add(Miss(kind="entry", where=f"{self._where} {one_line(key)}", detail=why))
