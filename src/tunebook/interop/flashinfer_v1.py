"""FlashInfer's JSON file: what ``autotune(cache=…)`` and ``save_configs`` write, and SGLang's rank files and vLLM's cache are.

An object: ``_metadata`` (versions and device), ``_records`` (what products keep beside it), then for each key
``[runner, tactic]`` or ``[runner, tactic, measuring policy]``, and ``_generation``, the SHA-256 of all else. After
FlashInfer 0.6.18 and 0.7.2.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tunebook.errors import UsageError
from tunebook.interop._flashinfer import (
    Key,
    Record,
    check_record,
    entries_of,
    entries_of_products,
    problem_of,
    shadowed,
)
from tunebook.interop._format import Entry, Fidelity, ForeignBook, Format, Loss
from tunebook.interop._reading import MAX_ENTRIES, canonical, head_members, parse_json, read_bytes, refuse, replace
from tunebook.store import Miss
from tunebook.store._text import one_line
from tunebook.store.misses import Misses

METADATA: Final = "_metadata"
RECORDS: Final = "_records"
GENERATION: Final = "_generation"
_OWN: Final = (METADATA, RECORDS, GENERATION)
#: A value of `_metadata` that matches every machine.
ANY: Final = "*"


@dataclass(frozen=True, kw_only=True)
class Content:
    """The whole document, in the order of the file."""

    document: dict[str, Any]

    @property
    def metadata(self) -> dict[str, Any]:
        found: dict[str, Any] = self.document.get(METADATA, {})
        return found

    def records(self) -> list[Record]:
        """The entries that FlashInfer serves; they were checked when the file was read."""
        return [
            Record(
                key=key,
                runner=value[0],
                tactic=value[1],
                policy=None if len(value) < 3 else tuple(value[2]),
            )
            for key, value in self.document.items()
            if key not in _OWN and not _passed_over(value)
        ]

    def misses(self, path: Path) -> tuple[Miss, ...]:
        """The entries that FlashInfer passes over when it loads the file, `path`."""
        found = Misses(one_line(path))
        for key, value in self.document.items():
            if key not in _OWN and _passed_over(value):
                said = f"{value[0]}[{value[1]}]: FlashInfer passes over cuDNN's tactics that are numbers, and tunes them anew"
                found.add(Miss(kind="entry", where=f"{one_line(path)}, key {one_line(key)}", detail=one_line(said)))
        return found.known()

    def entries(self) -> dict[str, Entry]:
        """The winners, and what products keep beside them."""
        return {**entries_of_products(self.document.get(RECORDS, {})), **entries_of(self.records())}


class FlashInferV1:
    """`Format` of that file."""

    name = "flashinfer-v1"
    title = "FlashInfer's JSON file (also SGLang's rank files and vLLM's cache)"
    fidelity: Fidelity = "bytes"
    lost = (
        Loss("white space and escapes of a file that FlashInfer did not write itself"),
        Loss(
            "what makes its entries readable in bulk (key_fields); FlashInfer derives it from the key", "flashinfer-v2"
        ),
    )

    def detects(self, path: Path, head: bytes) -> bool:
        members = head_members(head)
        if not members:
            return False
        metadata = members.get(METADATA)
        if isinstance(metadata, dict) and "flashinfer_version" in metadata:
            return True
        name, value = next(((n, v) for n, v in members.items() if n not in _OWN), ("", None))
        pair = isinstance(value, list) and len(value) in (2, 3) and isinstance(value[0], str)
        return pair and (isinstance(metadata, dict) or Key.parse(name) is not None)

    def read(self, path: Path) -> ForeignBook:
        content = parse(path, read_bytes(path))
        entries = content.entries()
        facts = {name: canonical(value) for name, value in content.metadata.items()}
        if several := shadowed(entries):
            facts["problems with entries of several runners"] = str(several)
        return ForeignBook(
            path=path, format=self.name, facts=facts, entries=entries, misses=content.misses(path), content=content
        )

    def write(self, book: ForeignBook, path: Path) -> None:
        replace(path, encode(content_of(book)))

    def merge(self, first: ForeignBook, second: ForeignBook) -> ForeignBook:
        one, other = content_of(first), content_of(second)
        check_same(first.path, one.metadata, second.path, other.metadata)
        records = _products(one.document.get(RECORDS, {}), other.document.get(RECORDS, {}))
        winners = {name: value for name, value in other.document.items() if name not in _OWN}
        # A runner that won in the first book only shows if the same problem's other runners are out of its way.
        taken = {problem_of(record.key) for record in one.records()}
        kept = {name: value for name, value in winners.items() if problem_of(name) not in taken}
        merged = document(one.metadata or other.metadata, {**kept, **_winners(one.document)}, records)
        content = Content(document=merged)
        return ForeignBook(
            path=first.path, format=self.name, facts=first.facts, entries=content.entries(), content=content
        )


FORMAT: Format = FlashInferV1()


def content_of(book: ForeignBook) -> Content:
    """The v1 file of a book of FlashInfer's. Raises ``UsageError`` for one that is not."""
    if isinstance(book.content, Content):
        return book.content
    convert = getattr(book.content, "as_v1", None)
    if convert is None:
        raise UsageError(
            f"{book.path}: a book of {book.format} cannot become one of FlashInfer's: it has none of its keys"
        )
    found: Content = convert(book.path)
    return found


def parse(path: Path, data: bytes) -> Content:
    """The document in `data`. Raises ``StoreError`` with the key where FlashInfer could not load it."""
    found = parse_json(path, data)
    if not isinstance(found, dict):
        refuse(path, "not FlashInfer's: the document is not an object")
    for name in (METADATA, RECORDS):
        if not isinstance(found.get(name, {}), dict):
            refuse(path, "not an object", f"key {name}")
    products = found.get(RECORDS, {}).values()
    count = len(found) + sum(len(records) for records in products if isinstance(records, dict))
    if count > MAX_ENTRIES:
        refuse(path, f"{count} entries are more than the {MAX_ENTRIES} that are read")
    if not isinstance(found.get(GENERATION), str | None):
        refuse(path, "not a text", f"key {GENERATION}")
    for name in (METADATA, RECORDS):
        try:
            canonical(found.get(name, {}))
        except ValueError as error:
            refuse(path, str(error), f"key {name}")
    for key, value in found.items():
        if key in _OWN:
            continue
        place = f"key {key}"
        if not isinstance(value, list) or not 2 <= len(value) <= 3:
            refuse(path, "not [runner, tactic] or [runner, tactic, measuring policy]", place)
        if len(value) > 2 and not isinstance(value[2], list):
            refuse(path, "the measuring policy is not a list", place)
        check_record(path, place, key, value[0], value[1], value[2] if len(value) > 2 else None)
    return Content(document=found)


def encode(content: Content) -> bytes:
    """As FlashInfer writes it: ASCII, indented by two."""
    return json.dumps(content.document, indent=2).encode()


def document(metadata: Mapping[str, Any], winners: Mapping[str, Any], records: Mapping[str, Any]) -> dict[str, Any]:
    """A new document, ordered and signed as FlashInfer does it."""
    made: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    if records:
        made[RECORDS] = dict(records)
    made |= {key: winners[key] for key in sorted(winners)}
    source = json.dumps(made, sort_keys=True, separators=(",", ":")).encode()
    made[GENERATION] = hashlib.sha256(source).hexdigest()
    return made


def of_records(metadata: Mapping[str, Any], records: Iterable[Record]) -> Content:
    """The file that holds these entries, tuned in that environment."""
    winners = {
        record.key: [record.runner, record.tactic, *([list(record.policy)] if record.policy is not None else [])]
        for record in records
    }
    return Content(document=document(metadata, winners, {}))


def check_same(first: Path, one: Mapping[str, Any], second: Path, other: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` where two books were tuned in different environments: FlashInfer would serve one of them alone."""
    for name in sorted({*one, *other}):
        if one.get(name) != other.get(name):
            raise UsageError(
                f"{one_line(first)} and {one_line(second)} are of different environments ({one_line(name)}: "
                f"{one_line(canonical(one.get(name)))} and {one_line(canonical(other.get(name)))}); FlashInfer would serve "
                "one of them alone, keep them apart"
            )


def _passed_over(value: Any) -> bool:
    """A number was once the place of a plan in cuDNN's list, which another version orders otherwise."""
    runner, tactic = value[0], value[1]
    return runner.startswith("Cudnn") and isinstance(tactic, int) and tactic >= 0


def _products(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What products keep in both: of a namespace each record, and for one that both have the first's."""
    merged = {**other, **one}
    for namespace, mine in one.items():
        theirs = other.get(namespace)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            merged[namespace] = {**theirs, **mine}
    return merged


def _winners(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in _OWN}
