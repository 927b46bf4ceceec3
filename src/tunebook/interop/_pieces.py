"""What the formats share that are written from their own content: whose book it is, lines, times, JSON, two books made one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from tunebook.errors import UsageError
from tunebook.interop._format import ForeignBook
from tunebook.interop._reading import MAX_ENTRIES, canonical, read_text, refuse
from tunebook.records._base import LONGEST_S
from tunebook.store._text import one_line

_KINDS: Final = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def own(book: ForeignBook, name: str) -> Any:
    """The content of a book of the format `name`. Raises ``UsageError`` for a book of another."""
    if book.format != name or book.content is None:
        raise UsageError(
            f"{one_line(book.path)} is a book of {book.format}: as {name} only a book of {name} is written"
        )
    return book.content


def lines_of(path: Path) -> list[str]:
    """The lines of a text file; the last is what follows the last line break. Raises ``StoreError`` for more than are read."""
    text = read_text(path)
    if text.count("\n") > 2 * MAX_ENTRIES:
        refuse(path, f"more than {2 * MAX_ENTRIES} lines are not read")
    return text.split("\n")


def finite(value: object) -> bool:
    """Whether it is a number that a float holds; ``True`` is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def seconds(path: Path, value: Any, unit: float, place: str, what: str = "time") -> float:
    """A time in seconds, of which the format counts `unit`. Raises ``StoreError`` for what is no duration."""
    if not finite(value) or not 0 <= value * unit <= LONGEST_S:
        refuse(path, f"{what} {one_line(value, 60)!r} is not a duration", place)
    return float(value * unit)


def words(path: Path, value: object, place: str) -> str:
    """`canonical` text. Raises ``StoreError`` for what is nested too deeply."""
    try:
        return canonical(value)
    except ValueError as error:
        refuse(path, str(error), place)


def member(path: Path, holder: dict[str, Any], name: str, kind: type, place: str) -> Any:
    """A member of a JSON object. Raises ``StoreError`` where it is missing or of another type."""
    value = holder.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        said = f"and is {_KINDS[type(value)]}" if name in holder else "and is missing"
        refuse(path, f"{one_line(name, 100)} has to be {_KINDS[kind]}, {said}", place)
    return value


def dump(value: Any, indent: int | str | None = None) -> bytes:
    """JSON as Python's ``json`` writes it, which is what the other tuners use. Raises ``UsageError`` for what is too deep."""
    try:
        return json.dumps(value, indent=indent).encode()
    except RecursionError:
        raise UsageError("it cannot be written: it is nested too deeply") from None


def same(first: ForeignBook, second: ForeignBook, names: Iterable[str]) -> None:
    """Raise ``UsageError`` where two books differ in one of these facts: they do not belong together."""
    for name in names:
        mine, theirs = first.facts.get(name, "-"), second.facts.get(name, "-")
        if mine != theirs:
            raise UsageError(
                f"{one_line(first.path)} and {one_line(second.path)} do not belong together: "
                f"{one_line(name)} is {one_line(mine)} and {one_line(theirs)}"
            )


def merged(first: ForeignBook, second: ForeignBook, content: Any) -> ForeignBook:
    """The book of both with that content: where both have a key, the first's entry."""
    more = {key: entry for key, entry in second.entries.items() if key not in first.entries}
    return ForeignBook(
        path=first.path,
        format=first.format,
        facts=first.facts,
        entries={**first.entries, **more},
        misses=(*first.misses, *second.misses),
        content=content,
    )
