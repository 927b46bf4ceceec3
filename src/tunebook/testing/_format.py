"""What a format of another tuner promises: it knows its own files, reads them, writes them back, and refuses in one line."""

from __future__ import annotations

import json
import random
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunebook.errors import StoreError, UsageError
from tunebook.testing._failure import broken, no_exception

FIDELITIES = ("bytes", "values", "lossy", "read only")
#: So much of a file is shown to `detects`, as `tunebook.interop` does.
HEAD_BYTES = 64 * 2**10
#: What is of no format, or of anybody's.
STRANGE = (b"", b" ", b"{}", b"[]", b"null", b"1", b"a,b,c\n1,2,3\n", b"# a page\n", b"\x00\x01\xff", b'{"schema": 1}')
#: So many damaged copies are made of each file.
DAMAGED = 48


def check_format(
    format: Any, fixtures: Sequence[Path | str], *, before: Sequence[Any] = (), damaged: int = DAMAGED
) -> None:
    """Check what a `tunebook.interop.Format` promises, on files that the other tuner wrote.

    fixtures: paths of such files, or of directories where a book is one; their names and their directory's are kept.
    before:   the formats that are asked before this one: none of them may claim the fixtures.
    damaged:  how many damaged copies of each fixture are read.

    It detects its fixtures and nothing strange; a book has entries under their own keys, in single lines, the same ones each
    time, and reading leaves the file alone; written and read again it is what `fidelity` says; damaged copies are read, or
    refused by a ``StoreError`` of one line that names the file.

    Raises ContractError for what is broken.
    """
    name = getattr(format, "name", None)
    thing = f"format {name}"
    if not isinstance(name, str) or not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name):
        broken(thing, "its name is not of lower-case words joined by hyphens", "it is what `convert --to` takes")
    if not getattr(format, "title", ""):
        broken(thing, "it has no title", "say what people call it")
    if format.fidelity not in FIDELITIES:
        broken(thing, f"its fidelity is {format.fidelity!r}", f"it is one of {', '.join(FIDELITIES)}")
    if format.fidelity == "lossy" and not format.lost:
        broken(thing, "it is lossy, and lost is empty", "list what is lost")
    if not fixtures:
        broken(thing, "no fixture was given", "give at least one file that the other tuner wrote")
    with tempfile.TemporaryDirectory() as made:
        _check_strange(thing, format, Path(made))
    for given in fixtures:
        path = Path(given)
        where = f"{thing}, {path.name}"
        _check_detects(where, format, path, before)
        book = _check_book(where, format, path)
        with tempfile.TemporaryDirectory() as made:
            _check_round_trip(where, format, path, book, Path(made))
        with tempfile.TemporaryDirectory() as made:
            _check_damaged(where, format, path, Path(made), damaged)


def _head(path: Path) -> bytes:
    if path.is_dir():
        return b""
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _check_strange(thing: str, format: Any, directory: Path) -> None:
    remedy = "detect by what only this format has; return False for everything else"
    (directory / "empty").mkdir()
    for number, data in enumerate(STRANGE):
        path = directory / f"strange{number}.json"
        path.write_bytes(data)
        with no_exception(thing, f"detects raises for {data!r}:", remedy):
            if format.detects(path, data):
                broken(thing, f"it claims a file that holds {data!r}", remedy)
    with no_exception(thing, "detects raises for an empty directory:", remedy):
        if format.detects(directory / "empty", b""):
            broken(thing, "it claims an empty directory", remedy)


def _check_detects(where: str, format: Any, path: Path, before: Sequence[Any]) -> None:
    head = _head(path)
    with no_exception(where, "detects raises", "return False for what is not of this format"):
        if not format.detects(path, head):
            broken(where, "it does not detect its own fixture", "look at what the other tuner writes")
        for length in (0, 1, len(head) // 2):
            format.detects(path, head[:length])
    for other in before:
        if other.detects(path, head):
            broken(where, f"the format {other.name}, which is asked first, claims it", f"place it before {other.name}")


def _check_book(where: str, format: Any, path: Path) -> Any:
    before = _contents(path)
    with no_exception(where, "reading it raises", "read every file that the other tuner writes"):
        book, again = format.read(path), format.read(path)
    if _contents(path) != before:
        broken(where, "reading it changes the file", "open it for reading alone")
    if book.format != format.name:
        broken(where, f"its book is of format {book.format!r}", f"give format={format.name!r}")
    if Path(book.path) != path:
        broken(where, f"its book has the path {book.path}", "give the path that was read")
    if not book.entries:
        broken(where, "its book has no entries", "give one for each problem")
    for key, entry in book.entries.items():
        if key != entry.key:
            broken(where, f"the entry under {key!r} has the key {entry.key!r}", "list entries by their own key")
        for text in (entry.key, entry.op, entry.problem, entry.choice, *(trial.tactic for trial in entry.trials)):
            if "\n" in text:
                broken(where, f"entry {key!r} has a text of several lines", "write texts in one line")
    if (book.entries, book.facts) != (again.entries, again.facts):
        broken(where, "read twice it is two different books", "keys and texts come from the file alone")
    return book


def _check_round_trip(where: str, format: Any, path: Path, book: Any, directory: Path) -> None:
    target = directory / path.parent.name / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if format.fidelity == "read only":
        try:
            format.write(book, target)
        except UsageError:
            return
        except Exception as error:  # noqa: BLE001 - named, whatever it is
            broken(where, f"write raises {type(error).__name__}: {error}", "raise UsageError: it is read only")
        broken(where, "it is read only, and write writes", "raise UsageError there, or give another fidelity")
    with no_exception(where, "writing it back raises", "write what was read, or be read only"):
        format.write(book, target)
        again = format.read(target)
    if again.entries != book.entries or again.facts != book.facts:
        broken(where, "written and read again it has other entries or facts", "write all that is read")
    if format.fidelity in ("bytes", "values") and again.content != book.content:
        broken(where, f"its values do not come back, and its fidelity is {format.fidelity}", "keep them, or be lossy")
    if format.fidelity == "values" and _values(target) != _values(path):
        broken(where, "a value of the file does not come back, and its fidelity is values", "keep all, or be lossy")
    if format.fidelity == "bytes" and _contents(target) != _contents(path):
        broken(where, "it is not written byte for byte, and its fidelity is bytes", "write it so, or say values")


def _contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in _files(path)}


def _values(path: Path) -> dict[str, Any]:
    """What the files hold, whatever their white space and order: of JSON the value, of others the words, sorted."""
    found: dict[str, Any] = {}
    for name, data in _contents(path).items():
        text = data.decode("utf-8-sig", "replace")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = sorted(text.split())
    return found


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _check_damaged(where: str, format: Any, path: Path, directory: Path, count: int) -> None:
    target = directory / path.parent.name / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target)
    else:
        shutil.copy(path, target)
    rng = random.Random(0)
    remedy = "raise StoreError in one line that begins with the path"
    for number in range(count):
        file = rng.choice(_files(target))
        whole = file.read_bytes()
        file.write_bytes(_damage(whole, rng))
        try:
            for entry in format.read(target).entries.values():
                if "\n" in entry.key:
                    broken(
                        where, f"a damaged copy (number {number}) has a key of several lines", "write it in one line"
                    )
        except StoreError as error:
            text = str(error)
            if "\n" in text or not text.startswith(str(target)):
                broken(where, f"a damaged copy (number {number}) is refused with {text[:200]!r}", remedy)
        except RecursionError:
            broken(where, f"a damaged copy (number {number}) raises RecursionError", "bound how deep it reads")
        except Exception as error:
            if isinstance(error, AssertionError):
                raise
            broken(where, f"a damaged copy (number {number}) raises {type(error).__name__}: {error}", remedy)
        file.write_bytes(whole)


def _damage(data: bytes, rng: random.Random) -> bytes:
    """A copy that is cut off, or has bytes changed, doubled or left out."""
    if not data:
        return bytes([rng.randrange(256)])
    at = rng.randrange(len(data))
    end = min(len(data), at + rng.randrange(1, 24))
    return rng.choice(list(_damages(data, at, end, rng)))


def _damages(data: bytes, at: int, end: int, rng: random.Random) -> Iterator[bytes]:
    yield data[:at]
    yield data[:at] + data[end:]
    yield data[:end] + data[at:]
    yield data[:at] + bytes(rng.randrange(256) for _ in range(end - at)) + data[end:]
    yield data[:at] + rng.choice((b'"', b"{", b"]", b",", b"null", b"-1", b"1e999", b"[" * 100_000)) + data[end:]
