"""Formats that break a promise are told by name, with the remedy, in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunebook.errors import StoreError, UsageError
from tunebook.interop import Entry, ForeignBook
from tunebook.testing import ContractError, check_format


class Mine:
    """A format of one JSON object with a mark of its own; every test makes one thing of it wrong."""

    name = "mine"
    title = "My tuner's file"
    fidelity: Any = "bytes"
    lost: tuple[str, ...] = ()

    def detects(self, path: Path, head: bytes) -> bool:
        return head.startswith(b'{"mine"')

    def read(self, path: Path) -> ForeignBook:
        try:
            content = json.loads(path.read_bytes())
            entries = {
                key: Entry(key=key, op="op", problem=key, choice=str(value)) for key, value in content["mine"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(f"{path}: {' '.join(str(error).split())}") from error
        if any("\n" in key for key in entries):
            raise StoreError(f"{path}: a key of several lines")
        return ForeignBook(path=path, format=self.name, facts={}, entries=entries, content=content)

    def write(self, book: ForeignBook, path: Path) -> None:
        path.write_text(json.dumps(book.content))


@pytest.fixture
def fixture(tmp_path: Path) -> Path:
    path = tmp_path / "tuner" / "file.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"mine": {"one": 1, "two": 2}}))
    return path


def said(fixture: Path, *, before: tuple[Any, ...] = (), **wrong: Any) -> str:
    format = type("Wrong", (Mine,), wrong)()
    with pytest.raises(ContractError) as error:
        check_format(format, [fixture], before=before)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"format {wrong.get('name', 'mine')}")
    assert ";" in text, "no remedy"
    return text


def test_a_format_that_keeps_its_promises_passes(fixture: Path) -> None:
    check_format(Mine(), [fixture])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"name": "My Format"}, "is not of lower-case words"),
        ({"title": ""}, "it has no title"),
        ({"fidelity": "perfect"}, "its fidelity is 'perfect'; it is one of bytes, values, lossy, read only"),
        ({"fidelity": "lossy"}, "it is lossy, and lost is empty"),
    ],
)
def test_what_it_says_of_itself(fixture: Path, wrong: dict[str, Any], words: str) -> None:
    assert words in said(fixture, **wrong)


def test_without_a_fixture_nothing_is_checked() -> None:
    with pytest.raises(ContractError, match="no fixture was given"):
        check_format(Mine(), [])


def test_it_claims_too_much_or_too_little(fixture: Path) -> None:
    assert "it claims a file that holds b'{}'" in said(fixture, detects=lambda self, path, head: head.startswith(b"{"))
    assert "it claims an empty directory" in said(
        fixture, detects=lambda self, path, head: path.is_dir() or head.startswith(b'{"mine"')
    )
    assert "does not detect its own fixture" in said(fixture, detects=lambda self, path, head: False)
    assert "detects raises for b'':" in said(fixture, detects=lambda self, path, head: head[0] == 123)


def test_another_format_claims_its_files(fixture: Path) -> None:
    class Greedy(Mine):
        name = "greedy"

    text = said(fixture, before=(Greedy(),))
    assert "the format greedy, which is asked first, claims it; place it before greedy" in text


def _book(**wrong: Any) -> Any:
    def read(self: Any, path: Path) -> ForeignBook:
        book = Mine.read(self, path)
        made: dict[str, Any] = {name: getattr(book, name) for name in ("path", "format", "facts", "entries", "content")}
        return ForeignBook(**{**made, **wrong})

    return read


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"format": "other"}, "its book is of format 'other'"),
        ({"path": Path("elsewhere")}, "its book has the path elsewhere"),
        ({"entries": {}}, "its book has no entries"),
        ({"entries": {"a": Entry(key="b", op="o", problem="", choice="")}}, "the entry under 'a' has the key 'b'"),
        ({"entries": {"a": Entry(key="a", op="o\np", problem="", choice="")}}, "has a text of several lines"),
    ],
)
def test_a_book_that_is_wrong(fixture: Path, wrong: dict[str, Any], words: str) -> None:
    assert words in said(fixture, read=_book(**wrong))


def test_a_book_that_differs_each_time(fixture: Path) -> None:
    def read(self: Any, path: Path) -> ForeignBook:
        key = str(id(object()))
        seen.append(key)
        return _book(entries={f"{len(seen)}": Entry(key=f"{len(seen)}", op="o", problem="", choice="")})(self, path)

    seen: list[str] = []
    assert "read twice it is two different books" in said(fixture, read=read)


def test_reading_a_fixture_fails(fixture: Path) -> None:
    def read(self: Any, path: Path) -> ForeignBook:
        raise StoreError(f"{path}: too new")

    assert "reading it raises StoreError" in said(fixture, read=read)


def _writing(change: Any) -> Any:
    return lambda self, book, path: path.write_text(json.dumps(change(book.content), indent=None))


def test_what_does_not_come_back(fixture: Path) -> None:
    less = {"mine": {"one": 1}}
    assert "has other entries or facts" in said(fixture, write=_writing(lambda content: less))
    more = _writing(lambda content: {**content, "more": 1})
    assert "its values do not come back, and its fidelity is values" in said(fixture, write=more, fidelity="values")
    assert "not written byte for byte" in said(
        fixture, write=lambda self, book, path: path.write_text(json.dumps(book.content, indent=1))
    )
    assert "writing it back raises OSError" in said(fixture, write=_raising(OSError("disk")))


def test_a_value_that_is_not_even_read(fixture: Path) -> None:
    """What reading drops is in no book, so that only the file tells."""

    def read(self: Mine, path: Path) -> ForeignBook:
        book = Mine.read(self, path)
        kept = {"mine": book.content["mine"]}
        return ForeignBook(path=path, format=self.name, facts={}, entries=book.entries, content=kept)

    fixture.write_text('{"mine":  {"one": 1},  "version": 3}')
    assert "a value of the file does not come back" in said(fixture, read=read, fidelity="values")
    check_format(type("Whole", (Mine,), {"fidelity": "values"})(), [fixture])
    check_format(type("Less", (Mine,), {"fidelity": "lossy", "read": read, "lost": ("version",)})(), [fixture])


def test_reading_that_changes_the_file(fixture: Path) -> None:
    def read(self: Mine, path: Path) -> ForeignBook:
        book = Mine.read(self, path)
        path.write_bytes(path.read_bytes() + b" ")
        return book

    assert "reading it changes the file" in said(fixture, read=read)


def _raising(error: Exception) -> Any:
    def raising(self: Any, *args: Any) -> Any:
        raise error

    return raising


def test_one_that_is_read_only_does_not_write(fixture: Path) -> None:
    assert "it is read only, and write writes" in said(fixture, fidelity="read only")
    assert "write raises OSError: disk; raise UsageError" in said(
        fixture, fidelity="read only", write=_raising(OSError("disk"))
    )
    check_format(type("Reader", (Mine,), {"fidelity": "read only", "write": _raising(UsageError("no"))})(), [fixture])


def test_damage_that_is_not_refused_in_one_line(fixture: Path) -> None:
    def careless(self: Any, path: Path) -> ForeignBook:
        content = json.loads(path.read_bytes())
        entries = {
            key: Entry(key=key, op="op", problem=key, choice=str(value)) for key, value in content["mine"].items()
        }
        return ForeignBook(path=path, format=self.name, facts={}, entries=entries, content=content)

    assert "a damaged copy (number " in (text := said(fixture, read=careless))
    assert "raise StoreError in one line that begins with the path" in text or "bound how deep" in text

    def wordy(self: Any, path: Path) -> ForeignBook:
        try:
            return Mine.read(self, path)
        except StoreError as error:
            raise StoreError(f"{error}\nsee the manual") from error

    assert "is refused with " in said(fixture, read=wordy)

    def nameless(self: Any, path: Path) -> ForeignBook:
        try:
            return Mine.read(self, path)
        except StoreError as error:
            raise StoreError("malformed") from error

    assert "is refused with 'malformed'" in said(fixture, read=nameless)
