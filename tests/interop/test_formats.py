"""What holds for every format: told by its content, read, written back as it promises, converted, and refused in one line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tunebook.errors import StoreError, UsageError
from tunebook.interop import FORMATS, ForeignBook, Format, Merges, by_name, diff, format_of, merge, open_any, write


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a book by its path; a book of one file has it under the empty name."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {one.relative_to(path).as_posix(): one.read_bytes() for one in path.rglob("*") if one.is_file()}


def rewritten(kind: Format, book: ForeignBook, path: Path, tmp_path: Path) -> Path:
    """The book written by `kind` under its own name, which carries meaning in some formats."""
    target = tmp_path / "again" / path.parent.name / path.name
    write(kind, book, target)
    return target


def test_every_format_has_a_fixture_and_a_name_of_its_own(fmt: Format, paths: list[Path]) -> None:
    assert paths, f"{fmt.name} has no fixture"
    assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", fmt.name)
    assert [one for one in FORMATS if one.name == fmt.name] == [fmt]
    assert by_name(fmt.name) is fmt
    assert fmt.title
    if fmt.fidelity == "lossy":
        assert fmt.lost


def test_a_format_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match=r"'nonsense' is no format; these are: .*flashinfer-v1"):
        by_name("nonsense")


def test_a_book_is_of_one_format_alone(kind: Format, path: Path) -> None:
    head = path.read_bytes()[: 64 * 1024] if path.is_file() else b""
    claimed = [one.name for one in FORMATS if one.detects(path, head)]
    assert claimed[0] == kind.name
    if kind.fidelity == "bytes":
        assert claimed == [kind.name]


def test_a_book_has_problems_and_nothing_in_it_is_missed(kind: Format, path: Path) -> None:
    book = open_any(path)
    assert book is not None
    assert (book.format, book.path, book.misses) == (kind.name, path, ())
    assert book.entries
    for key, entry in book.entries.items():
        assert key == entry.key
        assert entry.choice or entry.trials
        for text in (key, entry.op, entry.problem, entry.choice, *(trial.tactic for trial in entry.trials)):
            assert "\n" not in text


def test_what_is_read_and_written_is_what_it_was(kind: Format, path: Path, tmp_path: Path) -> None:
    book = kind.read(path)
    if kind.fidelity == "read only":
        with pytest.raises(UsageError):
            write(kind, book, tmp_path / path.name)
        return
    target = rewritten(kind, book, path, tmp_path)
    again = kind.read(target)
    assert again.entries == book.entries
    assert again.facts == book.facts
    assert not diff(book, again).different
    if kind.fidelity == "bytes":
        assert contents(target) == contents(path)
    if kind.fidelity in ("bytes", "values"):
        assert again.content == book.content


def test_a_book_is_not_written_over_itself(kind: Format, path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
    before = contents(copy)
    with pytest.raises(UsageError, match="would be lost"):
        write(kind, kind.read(copy), copy)
    assert contents(copy) == before


def test_every_conversion_works_or_says_in_one_line_why_not(kind: Format, path: Path, tmp_path: Path) -> None:
    book = kind.read(path)
    done, refused = [], []
    for number, other in enumerate(FORMATS):
        target = tmp_path / str(number) / path.parent.name / path.name
        try:
            write(other, book, target)
        except UsageError as error:
            refused.append((str(error), target))
            continue
        places = [target] if target.is_file() else [target, *sorted(target.rglob("*"))]
        found = next(filter(None, map(open_any, places)))
        assert found.entries
        done.append(other.name)
    for message, target in refused:
        assert "\n" not in message
        assert not target.is_file()
    if kind.fidelity != "read only":
        assert kind.name in done


def test_a_book_merged_with_itself_is_itself(kind: Format, path: Path, tmp_path: Path) -> None:
    book = kind.read(path)
    if not isinstance(kind, Merges):
        with pytest.raises(UsageError, match="not merged"):
            merge([book, book])
        return
    merged = merge([book, book])
    assert merged.book.entries == book.entries
    assert (merged.conflicts, merged.added) == ((), (0,))
    assert kind.read(rewritten(kind, merged.book, path, tmp_path)).entries == book.entries


def test_books_of_two_formats_are_not_merged(tmp_path: Path, fixtures: Path) -> None:
    one = open_any(fixtures / "flashinfer-v1" / "first.json")
    other = open_any(fixtures / "flashinfer-v2" / "store")
    assert one is not None
    assert other is not None
    with pytest.raises(UsageError, match="tunebook convert"):
        merge([one, other])


@pytest.mark.parametrize(
    "text",
    ["", " ", "{}", "[]", "null", "1", '{"schema": 1, "verdicts": {}}', "a,b,c\n1,2,3\n", "# a page\n", "\x00\x01"],
)
def test_what_is_of_no_format_is_left_to_others(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    assert format_of(path) is None
    assert open_any(path) is None


def test_nothing_and_a_pipe_and_an_empty_directory_are_of_no_format(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    for name in ("nothing", "pipe", "empty", "a\0b"):
        assert open_any(tmp_path / name) is None


def test_entries_can_be_kept_as_json(kind: Format, path: Path) -> None:
    for entry in kind.read(path).entries.values():
        built: dict[str, Any] = msgspec.to_builtins(entry)
        assert msgspec.convert(built, type(entry)) == entry


def test_a_file_that_is_too_large_is_refused_before_it_is_read(fmt: Format, paths: list[Path], tmp_path: Path) -> None:
    path = next((one for one in paths if one.is_file()), None)
    if path is None:
        assert all(one.is_dir() for one in paths)  # of these each file is bounded; see their own tests
        return
    copy = tmp_path / path.parent.name / path.name
    copy.parent.mkdir()
    shutil.copy(path, copy)
    with copy.open("r+b") as file:
        file.truncate(2**34)
    with pytest.raises(StoreError, match=r"bytes are more than the \d+ that are read"):
        fmt.read(copy)
