"""FlashInfer's managed store (``autotune_v2``): a directory an environment, in it a small JSON file an entry.

``<root>/v2/<environment's hash>/manifest.json`` and ``entries/<key's hash>.json``. The hashes are the beginnings of SHA-256:
of the manifest and of the key. After FlashInfer 0.7.2.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tunebook.errors import StoreError, UsageError
from tunebook.interop import flashinfer_v1
from tunebook.interop._flashinfer import Record, check_record, entries_of, key_fields, problem_of, shadowed
from tunebook.interop._format import Entry, Fidelity, ForeignBook, Format, Loss
from tunebook.interop._reading import (
    MAX_DEPTH,
    MAX_ENTRIES,
    canonical,
    parse_json,
    read_bytes,
    refuse,
    replace_tree,
)
from tunebook.store import Miss
from tunebook.store._text import one_line
from tunebook.store.misses import Misses

SCHEMA: Final = "v2"
MANIFEST: Final = "manifest.json"
ENTRIES: Final = "entries"
#: The largest entry or manifest that is read: they have some hundred bytes.
MAX_ENTRY_BYTES: Final = 2**20
MAX_ENVIRONMENTS: Final = 1000
_HASH: Final = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One environment's directory: its manifest and its entries by file name, each as it stands in the file."""

    manifest: dict[str, Any]
    entries: dict[str, dict[str, Any]]

    def records(self) -> list[Record]:
        return [_record(entry) for entry in self.entries.values()]


@dataclass(frozen=True, kw_only=True)
class Content:
    """A store's environments by the name of their directory."""

    environments: dict[str, Environment]

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Each file as FlashInfer writes it, by its path under the root."""
        for name, one in self.environments.items():
            yield f"{SCHEMA}/{name}/{MANIFEST}", _encode(one.manifest)
            for file, entry in one.entries.items():
                yield f"{SCHEMA}/{name}/{ENTRIES}/{file}", _encode(entry)

    def as_v1(self, path: Path) -> flashinfer_v1.Content:
        """The v1 file of the same winners. Raises ``UsageError`` where there is not one environment alone."""
        if len(self.environments) != 1:
            raise UsageError(
                f"{path}: it holds {len(self.environments)} environments, and a v1 file holds one; name one of "
                f"them: {path}/{SCHEMA}/{next(iter(self.environments), '…')}"
            )
        (one,) = self.environments.values()
        metadata = {name: value for name, value in one.manifest.items() if name != "cache_schema"}
        return flashinfer_v1.of_records(metadata, one.records())


class FlashInferV2:
    """`Format` of that store: of its root, of its directory ``v2``, or of one environment's directory."""

    name = "flashinfer-v2"
    title = "FlashInfer's managed store (v2)"
    fidelity: Fidelity = "bytes"
    lost = (
        Loss("entries that FlashInfer does not serve: they are named when the store is read"),
        Loss("white space of files that FlashInfer did not write itself"),
        Loss("`_records`, `_generation`, entries that FlashInfer passes over: they are named", "flashinfer-v1"),
    )

    def detects(self, path: Path, head: bytes) -> bool:
        return head == b"" and bool(_directories(path))

    def read(self, path: Path) -> ForeignBook:
        content, misses = read_store(path)
        entries, facts = _shown(content)
        return ForeignBook(path=path, format=self.name, facts=facts, entries=entries, misses=misses, content=content)

    def write(self, book: ForeignBook, path: Path) -> None:
        replace_tree(path, dict(_content(book).files()))

    def merge(self, first: ForeignBook, second: ForeignBook) -> ForeignBook:
        one, other = _content(first).environments, _content(second).environments
        merged = dict(other)
        for name, mine in one.items():
            theirs = other.get(name)
            if theirs is None:
                merged[name] = mine
                continue
            taken = {problem_of(entry["key"]) for entry in mine.entries.values()}
            kept = {file: e for file, e in theirs.entries.items() if problem_of(e["key"]) not in taken}
            merged[name] = Environment(manifest=mine.manifest, entries={**kept, **mine.entries})
        content = Content(environments={name: merged[name] for name in sorted(merged)})
        entries, facts = _shown(content)
        return ForeignBook(path=first.path, format=self.name, facts=facts, entries=entries, content=content)


FORMAT: Format = FlashInferV2()


def read_store(path: Path) -> tuple[Content, tuple[Miss, ...]]:
    """The store at `path`, and what of it FlashInfer would not serve. Raises ``StoreError`` where it cannot be told."""
    directories = _directories(path)
    if not directories:
        refuse(path, f"there is no {SCHEMA} store here: no directory with {MANIFEST} and {ENTRIES}/")
    if not any(map(_has_manifest, directories)):
        refuse(directories[0], f"there is no {MANIFEST}, which says for which environment the entries are")
    if len(directories) > MAX_ENVIRONMENTS:
        refuse(path, f"{len(directories)} environments are more than the {MAX_ENVIRONMENTS} that are read")
    misses = Misses(one_line(path))
    environments: dict[str, Environment] = {}
    count = 0
    for directory in directories:
        if not _has_manifest(directory):
            detail = f"there is no {MANIFEST}, which says for which environment the entries are; they are left out"
            misses.add(Miss(kind="environment", where=one_line(directory), detail=detail))
            continue
        manifest = _object(directory / MANIFEST)
        expected = environment_hash(manifest)
        if directory.name != expected:
            detail = f"FlashInfer looks for this environment in {expected}, and does not find it here"
            misses.add(Miss(kind="environment", where=one_line(directory), detail=detail))
        entries: dict[str, dict[str, Any]] = {}
        for file in _files(directory / ENTRIES):
            count += 1
            if count > MAX_ENTRIES:
                refuse(path, f"more than {MAX_ENTRIES} entries are not read")
            try:
                entry = _object(file)
                _check(file, entry)
            except StoreError as error:
                where = one_line(file)
                misses.add(Miss(kind="entry", where=where, detail=str(error).removeprefix(f"{where}: ")))
                continue
            entries[file.name] = entry
        environments[directory.name] = Environment(manifest=manifest, entries=entries)
    return Content(environments=environments), misses.known()


def environment_hash(manifest: Mapping[str, Any]) -> str:
    """The name of the directory in which FlashInfer keeps this environment's entries."""
    source = json.dumps(dict(manifest), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def entry_name(key: str) -> str:
    """The file in which FlashInfer keeps this key's entry."""
    return f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def of_v1(path: Path, content: flashinfer_v1.Content) -> Content:
    """The store of the same winners. Raises ``UsageError`` where the file does not say for which environment they are."""
    metadata = content.metadata
    loose = [name for name, value in metadata.items() if value == flashinfer_v1.ANY or not isinstance(value, str)]
    if not metadata or loose:
        what = one_line(f"{loose[0]} is {canonical(metadata[loose[0]])!r}") if loose else "there is none"
        raise UsageError(
            f"{one_line(path)}: a v2 store is of one environment, which `{flashinfer_v1.METADATA}` has to name in full: {what}"
        )
    manifest = {**metadata, "cache_schema": SCHEMA}
    entries = {entry_name(record.key): _entry(record) for record in content.records()}
    made = Environment(manifest=manifest, entries={name: entries[name] for name in sorted(entries)})
    return Content(environments={environment_hash(manifest): made})


def _content(book: ForeignBook) -> Content:
    if isinstance(book.content, Content):
        return book.content
    return of_v1(book.path, flashinfer_v1.content_of(book))


def _shown(content: Content) -> tuple[dict[str, Entry], dict[str, str]]:
    """Entries and facts; those of several environments have its directory before them."""
    several = len(content.environments) > 1
    entries: dict[str, Entry] = {}
    facts: dict[str, str] = {}
    for name, one in content.environments.items():
        before = f"{name}: " if several else ""
        for key, entry in entries_of(one.records()).items():
            found = Entry(
                key=f"{before}{key}",
                op=entry.op,
                problem=f"{before}{entry.problem}",
                choice=entry.choice,
                trials=entry.trials,
            )
            entries[found.key] = found
        facts |= {f"{before}{field}": canonical(value) for field, value in one.manifest.items()}
    if count := shadowed(entries):
        facts["problems with entries of several runners"] = str(count)
    return entries, facts


def _directories(path: Path) -> list[Path]:
    """The directories of environments: `path` itself, or those in its ``v2``, or in it where it is that.

    One of whose manifest there is nothing, as where copying a store was broken off, is among them if its name is of a hash.
    """
    if _is_environment(path):
        return [path]
    for below in (path / SCHEMA, *([path] if path.name == SCHEMA else [])):
        try:
            found = sorted(one for one in below.iterdir() if _is_environment(one))
        except (OSError, ValueError):  # ValueError: a path with a null character in it
            continue
        if found:
            return found
    return []


def _is_environment(path: Path) -> bool:
    try:
        return (path / ENTRIES).is_dir() and (_has_manifest(path) or _HASH.fullmatch(path.name) is not None)
    except (OSError, ValueError):
        return False


def _has_manifest(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def _files(directory: Path) -> list[Path]:
    try:
        return sorted(one for one in directory.iterdir() if one.suffix == ".json" and not one.name.startswith("."))
    except OSError as error:
        refuse(directory, f"it cannot be listed: {error.strerror}")


def _object(path: Path) -> dict[str, Any]:
    data = read_bytes(path, MAX_ENTRY_BYTES)
    found = parse_json(path, data)
    if not isinstance(found, dict):
        refuse(path, "it is not an object")
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:  # else it cannot be nested deeper
        try:
            canonical(found)
        except ValueError as error:
            refuse(path, str(error))
    return found


def _check(path: Path, entry: Mapping[str, Any]) -> None:
    """Raises ``StoreError`` where FlashInfer would take the entry for a miss."""
    key = entry.get("key")
    if not isinstance(key, str):
        refuse(path, "it is not a text", "key")
    if "tactic" not in entry:
        refuse(path, "there is none", "tactic")
    check_record(path, "entry", key, entry.get("runner"), entry["tactic"], entry.get("profiling_policy"))
    if path.name != entry_name(key):
        refuse(path, f"FlashInfer looks for this entry in {entry_name(key)}", "key")


def _record(entry: Mapping[str, Any]) -> Record:
    policy = entry.get("profiling_policy")
    return Record(
        key=entry["key"],
        runner=entry["runner"],
        tactic=entry["tactic"],
        policy=None if policy is None else tuple(policy),
    )


def _entry(record: Record) -> dict[str, Any]:
    made: dict[str, Any] = {"key": record.key, "runner": record.runner, "tactic": record.tactic}
    if record.policy is not None:
        made["profiling_policy"] = list(record.policy)
    if (fields := key_fields(record.key)) is not None:
        made["key_fields"] = fields
    return made


def _encode(value: object) -> bytes:
    """As FlashInfer writes it: ASCII, sorted, indented by two."""
    return json.dumps(value, indent=2, sort_keys=True).encode()
