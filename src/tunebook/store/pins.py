"""Pins: the tactics that a user has chosen, for an op, for a bucket of an op or for one problem, in a TOML file.

The file is the user's: a change keeps its comments and its order. One that holds what is not understood is left alone, and said.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tunebook.errors import StoreError, UsageError
from tunebook.records import Problem, Tactic
from tunebook.records._base import check_name
from tunebook.store._text import cause, one_line, remedy
from tunebook.store.files import read_bounded, replace_atomically
from tunebook.store.misses import Miss

#: The file beside a cache that holds its pins.
PINS_NAME: Final = "pins.toml"
#: The largest file of pins that is read or written: some thousand of them.
MAX_PINS_BYTES: Final = 256 * 2**10
#: The longest line in it: TOML's dotted keys take time that grows with the square of their length.
MAX_PIN_LINE: Final = 4096

#: So many bad pins are named; the rest are counted.
MAX_PIN_MISSES: Final = 100

_HEADER: Final = """\
# Tactics that serve whatever was measured: a pin goes before the cache. The narrowest that fits a problem counts:
#   "linear" = "torch"                               every problem of an op
#   "linear@M≤16" = "native[block=32]"               one bucket of it
#   "linear|N=64,K=32|bf16|M≤16" = "default"         one problem, by its key
# A pin that the op does not offer is not served, and the log says so. `tunebook pin` and `unpin` keep comments.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """The pins beside one cache: tactics by what they are for, ``linear``, ``linear@M≤16`` or a problem key.

    `misses` names what could not be used: one of kind ``entry`` for a line, any other for the whole file.
    """

    path: Path
    tactics: Mapping[str, Tactic] = field(default_factory=dict)
    misses: tuple[Miss, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """The keys of the problems that have a pin of their own."""
        return tuple(target for target in self.tactics if "|" in target)

    def of(self, problem: Problem) -> tuple[str, Tactic] | None:
        """The narrowest pin that fits a problem, with what it is for; None where none does."""
        if not self.tactics:
            return None
        for target in (problem.key, f"{problem.op}@{','.join(map(str, problem.dims))}", problem.op):
            if target in self.tactics:
                return target, self.tactics[target]
        return None


def pins_path(cache: Path) -> Path:
    """Where the pins of a cache are."""
    return cache.with_name(PINS_NAME)


def pin_target(text: str) -> str:
    """What a pin is for, as a file has it: an op, ``OP@BUCKET`` or a problem key. Raises ``ValueError`` for anything else."""
    if "|" in text:
        return Problem.parse(text).key
    op, at, bucket = text.partition("@")
    check_name("op", op)
    if not at:
        return op
    dims = Problem.parse(f"{op}|||{bucket}").dims
    if not dims:
        raise ValueError(f"bucket {bucket!r} names no dimension")
    return f"{op}@{','.join(map(str, dims))}"


def read_pins(path: Path) -> Pins:
    """The pins in a file. Whatever is wrong with it is a miss, never an exception; no file is no pins and no miss."""
    data = read_bounded(path, MAX_PINS_BYTES)
    if isinstance(data, Miss):
        return Pins(path=path, misses=() if data.kind in ("absent", "empty") else (data,))
    return parse_pins(path, data)


def parse_pins(path: Path, data: bytes) -> Pins:
    """The pins in `data`; `path` is for messages."""
    where = one_line(path)
    try:
        document = _document(data)
    except (ValueError, RecursionError) as error:
        return Pins(path=path, misses=(Miss(kind="not TOML", where=where, detail=one_line(_said(error))),))
    misses = [
        Miss(kind="entry", where=where, detail=f"{one_line(name)} is not [pins], the one table that is read")
        for name in document
        if name != "pins"
    ]
    table = document.get("pins", {})
    if not isinstance(table, dict):
        return Pins(path=path, misses=(*misses, Miss(kind="schema", where=where, detail="pins is not a table")))
    tactics: dict[str, Tactic] = {}
    for text, name in table.items():
        try:
            if not isinstance(name, str):
                raise ValueError("its tactic is not a text in quotation marks")
            target, tactic = pin_target(text), Tactic.parse(name)
            if target in tactics:
                raise ValueError(f"{target} is pinned twice")
        except ValueError as error:
            misses.append(Miss(kind="entry", where=f"{where}, pin {one_line(text)}", detail=one_line(error)))
        else:
            tactics[target] = tactic
    if (more := len(misses) - MAX_PIN_MISSES) > 0:
        misses[MAX_PIN_MISSES:] = [Miss(kind="entry", where=where, detail=f"{more} more pins cannot be read")]
    return Pins(path=path, tactics=tactics, misses=tuple(misses))


def update_pins(path: Path, changes: Mapping[str, Tactic | None]) -> Pins:
    """Pin each target of `changes` to its tactic, or with None take its pin away; returns what the file holds then.

    Comments, the order and the spelling of all other lines stay as they are. The file is replaced atomically, and removed with
    its last pin unless it holds comments of the user's. Raises ``UsageError`` for a target that is none; ``StoreError`` where
    the file holds anything that is not understood (then it is left as it is), or cannot be written. Two processes that do
    this at once: the last one's file stands.
    """
    try:
        wanted = {pin_target(text): tactic for text, tactic in changes.items()}
    except ValueError as error:
        raise UsageError(f"{one_line(error)}; a pin is for an op, OP@BUCKET or a problem key") from None
    data = read_bounded(path, MAX_PINS_BYTES)
    there = None if isinstance(data, Miss) else data.decode(errors="replace")
    before = parse_pins(path, data) if not isinstance(data, Miss) else read_pins(path)
    if before.misses:
        raise StoreError(f"{before.misses[0]}; the file is left as it is: mend or remove it first")
    tactics = {**before.tactics, **{target: tactic for target, tactic in wanted.items() if tactic is not None}}
    for target, tactic in wanted.items():
        if tactic is None:
            tactics.pop(target, None)
    new = encode_pins(tactics) if there is None else _edited(path, there, wanted, tactics)
    if len(new) > MAX_PINS_BYTES or any(len(line) > MAX_PIN_LINE for line in new.decode().split("\n")):
        raise StoreError(
            f"{one_line(path)} is left as it is: it would be longer than the {MAX_PINS_BYTES} bytes, or one of its lines than "
            f"the {MAX_PIN_LINE} characters, that are read"
        )
    try:
        if tactics or _is_the_users(new):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_atomically(path, new)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{one_line(path)} was not written: {cause(error)} ({remedy(error)})") from None
    return Pins(path=path, tactics=tactics)


def encode_pins(tactics: Mapping[str, Tactic]) -> bytes:
    """The bytes of a new file with these pins: a comment that explains it, then the pins, sorted."""
    lines = [f"{_quoted(target)} = {_quoted(tactics[target].name)}\n" for target in sorted(tactics)]
    return f"{_HEADER}\n[pins]\n{''.join(lines)}".encode()


def _edited(path: Path, text: str, changes: Mapping[str, Tactic | None], tactics: Mapping[str, Tactic]) -> bytes:
    """The text of a file, which can be read, with these changes and no others. `tactics` are what it must then hold."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
        table: Any = document.setdefault("pins", tomlkit.table())
        spelt = {pin_target(name): name for name in list(table)}
        for target, tactic in changes.items():
            if tactic is not None:
                table[spelt.get(target, target)] = tactic.name
            elif target in spelt:
                del table[spelt[target]]
        data = tomlkit.dumps(document).encode()
    except (TOMLKitError, RecursionError) as error:
        raise StoreError(f"{one_line(path)} is left as it is: {one_line(error)}; change it by hand") from None
    after = parse_pins(path, data)
    if after.misses or after.tactics != tactics:
        raise StoreError(
            f"{one_line(path)} is left as it is: it is written in a way that cannot be kept; change it by hand"
        )
    return data


def _is_the_users(data: bytes) -> bool:
    """Whether a file without pins holds more than what tunebook writes."""
    return not {line.strip() for line in data.decode().splitlines()} <= {"", "[pins]", *_HEADER.splitlines()}


def _document(data: bytes) -> dict[str, object]:
    if data.startswith(b"\xef\xbb\xbf"):
        raise ValueError("it begins with a byte order mark; save it as UTF-8 without one")
    text = data.decode()
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > MAX_PIN_LINE:
            raise ValueError(f"line {number} has {len(line)} characters, more than the {MAX_PIN_LINE} that are read")
    return tomllib.loads(text)


def _said(error: Exception) -> object:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"{error.reason} at byte {error.start}" if isinstance(error, UnicodeDecodeError) else error


def _quoted(text: str) -> str:
    """A basic string of TOML."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else _escape(c) for c in escaped) + '"'


def _escape(character: str) -> str:
    return f"\\U{ord(character):08x}"
