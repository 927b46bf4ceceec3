"""JSON objects in pieces, their members unread; and the names that occur twice, which a dictionary does not show."""

from __future__ import annotations

import json
from abc import ABC
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from tunebook.records import Record
from tunebook.store._text import one_line

_R = TypeVar("_R", bound=Record)

#: The largest single entry that is read: a plan of some thousand problems. A search for repeated names takes some thirty
#: times as much memory.
MAX_ENTRY_BYTES: Final = 4 * 2**20

_encoder = msgspec.json.Encoder(order="deterministic")


class _Name(ABC):  # noqa: B024 - it is there to be asked about, not to be inherited from
    """The name of a member: text, of a type of its own so that msgspec hands each one to a hook, repeated or not."""


_Name.register(str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """The members of an object, unread, by name and in their order; of a repeated one the last is there."""

    entries: dict[str, msgspec.Raw]
    repeated: frozenset[str] = frozenset()


def members(data: bytes | msgspec.Raw, limit: int) -> Members:
    """Take an object apart. Raises ``ValueError`` and ``RecursionError`` for what is none, or has over `limit` members."""
    names: list[str] = []
    entries: dict[str, msgspec.Raw] = _decode(data, dict[_Name, msgspec.Raw], names, limit)
    if len(names) == len(entries):
        return Members(entries=entries)
    return Members(entries=entries, repeated=frozenset(name for name, times in Counter(names).items() if times > 1))


def two_levels(data: bytes, limit: int) -> dict[str, dict[str, msgspec.Raw] | int] | None:
    """Take an object of objects and whole numbers apart, both levels in one pass; None where a name occurs twice.

    Every name is counted as it is read, so a repeated one shows as a name more than the result has. Raises as `members`
    does, `limit` being one for all names together.
    """
    names: list[str] = []
    found: dict[str, Any] = _decode(data, dict[_Name, dict[_Name, msgspec.Raw] | int], names, limit)
    distinct = len(found) + sum(len(part) for part in found.values() if isinstance(part, dict))
    return found if len(names) == distinct else None


def _decode(data: bytes | msgspec.Raw, kind: Any, names: list[str], limit: int) -> Any:
    """Decode, with each name appended to `names` and no more than `limit` of them: that bounds time and memory."""

    def note(_: type, name: str) -> str:
        names.append(name)
        if len(names) > limit:
            raise ValueError
        return name

    try:
        return msgspec.json.decode(data, type=kind, dec_hook=note)
    except ValueError:
        if len(names) > limit:
            raise msgspec.ValidationError(f"{limit + 1} entries and more are not read") from None
        raise


def read_record(data: bytes | msgspec.Raw, decoder: msgspec.json.Decoder[_R]) -> _R:
    """The record that `data` is. Raises ``ValueError`` and ``RecursionError`` where it is none or repeats a name.

    What is written again as it was, but for white space, repeats none. Anything else is searched: at five times the cost.
    """
    text = bytes(data)
    if len(text) > MAX_ENTRY_BYTES:
        raise ValueError(f"{len(text)} bytes are more than the {MAX_ENTRY_BYTES} of an entry that are read")
    record = decoder.decode(text)
    if msgspec.json.format(text, indent=-1) != _encoder.encode(record) and (twice := repeated_names(text)):
        raise ValueError(f"field {one_line(min(twice))} occurs twice")
    return record


def repeated_names(data: bytes) -> set[str]:
    """The names that occur twice in any one object in `data`."""
    twice: set[str] = set()

    def note(pairs: list[tuple[str, object]]) -> None:
        if len({name for name, _ in pairs}) < len(pairs):
            twice.update(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)

    # Numbers are not looked at, so they are not converted: a long one takes a long time. Nor are characters.
    number: Callable[[str], int] = len
    text = data.decode("utf-8", "replace")
    json.loads(text, object_pairs_hook=note, parse_int=number, parse_float=number, strict=False)
    return twice
