"""What the formats share: bounded reading, JSON that is refused with its place, canonical text, and writing."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
from codecs import BOM_UTF8
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from tunebook.errors import StoreError, UsageError
from tunebook.store import Miss
from tunebook.store._text import cause, one_line
from tunebook.store.files import read_bounded, replace_atomically
from tunebook.store.objects import repeated_names

#: The largest file of another tuner that is read.
MAX_BYTES: Final = 64 * 2**20
#: The most entries of one book: a large model has a few hundred.
MAX_ENTRIES: Final = 200_000
#: So deep are values nested that are put in words. Tactics of today's tuners have three levels.
MAX_DEPTH: Final = 64
#: So much of a file is looked at to tell its format.
HEAD_BYTES: Final = 64 * 2**10

_BYTE = re.compile(r" \(byte (\d+)\)$")
_decoder = json.JSONDecoder()
_space = re.compile(r"[ \t\n\r]*")


def refuse(path: Path, detail: str, place: str = "") -> NoReturn:
    """Raise the ``StoreError`` of one line: path, place (``line 3``, ``key …``), what is wrong."""
    raise StoreError(": ".join(one_line(part) for part in (path, place, detail) if part))


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a file. Raises ``StoreError`` where it is absent, empty, no file, or larger than `limit`."""
    data = read_bounded(path, limit)
    if isinstance(data, Miss):
        raise StoreError(str(data))
    return data


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """The same as text, which has to be UTF-8; a mark of the byte order at its beginning is left out."""
    data = read_bytes(path, limit)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(path, f"it is not UTF-8 text ({error.reason})", place_of(data, error.start))


def place_of(data: bytes, offset: int) -> str:
    """``line 3, column 7`` of a byte; both count from 1."""
    before = data[:offset]
    lines = before.count(b"\n") + 1
    column = offset - before.rfind(b"\n")
    return f"line {lines}, column {column}"


def parse_json(path: Path, data: bytes) -> Any:
    """The JSON value in `data`; `path` is for messages.

    Raises ``StoreError`` with the place for what is not JSON, for a name that occurs twice in one object, and for a
    number that no float holds.
    """
    if data.startswith(BOM_UTF8):
        refuse(path, "not JSON: a mark of the byte order stands before it", "line 1, column 1")
    try:
        value = msgspec.json.decode(data)
        twice = repeated_names(data)
    except RecursionError:
        refuse(path, "not JSON that is read: it is nested too deeply")
    except ValueError as error:
        text = str(error)
        found = _BYTE.search(text)
        offset = int(found[1]) if found else len(data)
        refuse(path, f"not JSON: {_BYTE.sub('', text).removeprefix('JSON is malformed: ')}", place_of(data, offset))
    if twice:
        name = min(twice)
        refuse(path, f"{json.dumps(name)} occurs twice in one object", _second(data, name))
    return value


def _second(data: bytes, name: str) -> str:
    """The place of the second occurrence of a name, as far as a search of the text tells it."""
    for text in (json.dumps(name), json.dumps(name, ensure_ascii=False)):
        quoted = text.encode("utf-8", "surrogatepass")
        first = data.find(quoted)
        second = data.find(quoted, first + 1) if first >= 0 else -1
        if second >= 0:
            return place_of(data, second)
    return ""


def head_of(path: Path) -> bytes | None:
    """The first `HEAD_BYTES` of a file, ``b""`` for a directory, and None for what is neither or cannot be read."""
    try:
        if path.is_dir():
            return b""
        if not path.is_file():  # a pipe would block whoever opens it
            return None
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except (OSError, ValueError):
        return None


def head_members(head: bytes) -> dict[str, Any] | None:
    """The members of the JSON object that `head` begins, as far as they are whole; None where it begins none.

    For telling a format by its content: what follows the head, and what is wrong in it, does not matter.
    """
    text = head.decode("utf-8", "ignore").removeprefix("\ufeff")
    at = _after_space(text, 0)
    if text[at : at + 1] != "{":
        return None
    found: dict[str, Any] = {}
    at = _after_space(text, at + 1)
    while text[at : at + 1] == '"':
        try:
            name, at = _decoder.raw_decode(text, at)
            at = _after_space(text, at)
            if text[at : at + 1] != ":":
                break
            found[name], at = _decoder.raw_decode(text, _after_space(text, at + 1))
        except (ValueError, RecursionError):
            break
        at = _after_space(text, at)
        if text[at : at + 1] != ",":
            break
        at = _after_space(text, at + 1)
    return found


def _after_space(text: str, at: int) -> int:
    match = _space.match(text, at)
    return match.end() if match else at


def is_number(value: object) -> bool:
    """Whether it is a finite number; ``True`` is none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def canonical(value: Any, depth: int = 0) -> str:
    """A tactic in words, the same for the same value: a name as it is, an object as sorted ``field=value`` pairs.

    Raises ``ValueError`` for what is nested deeper than `MAX_DEPTH`.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        text = ",".join(f"{name}={canonical(value[name], depth + 1)}" for name in sorted(value))
        return text if depth == 0 else f"{{{text}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(canonical(item, depth + 1) for item in value)}]"
    return str(value)


def replace(path: Path, data: bytes) -> None:
    """Put `data` at `path`, all of it or nothing; parents are made. Raises ``StoreError`` where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(path, data)
    except (OSError, ValueError) as error:
        said = cause(error) if isinstance(error, OSError) else str(error)
        raise StoreError(f"{one_line(path)}: cannot be written: {one_line(said)}; name another place") from error


def replace_tree(path: Path, files: Mapping[str, bytes]) -> None:
    """Put these files, by their paths under it, at `path`: all of them or nothing.

    Raises ``UsageError`` where something stands there already, and ``StoreError`` where it cannot be written.
    """
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{one_line(path)}: something is there already; name a directory that is not, or is empty")
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        made.mkdir()
        try:
            for name, data in files.items():
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                (made / name).write_bytes(data)
            os.replace(made, path)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        said = cause(error) if isinstance(error, OSError) else str(error)
        raise StoreError(f"{one_line(path)}: cannot be written: {one_line(said)}; name another place") from error
