"""Bundles: the same content gives the same bytes, and whatever is none of ours is refused by name, without a traceback."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebook.errors import StoreError
from tunebook.records import Environment, Plan, Verdict
from tunebook.store import Location, publish, read_any, read_cache
from tunebook.store import bundles as module
from tunebook.store.bundles import MAX_BUNDLE_BYTES, MAX_RUNS, encode_bundle, open_bundle
from tunebook.store.cache import MAX_CACHE_BYTES, encode_document

NAME = "winners.20260102_030405.jsonl"
HERE = Environment(hard={"device": "cpu"})
DOCUMENT = encode_document(HERE, {}, {})


def archive(*members: tuple[str, bytes], change: Callable[[zipfile.ZipInfo], None] = lambda info: None) -> bytes:
    """A zip archive as bundles are made, each member changed before it is written."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as file:
        for name, data in members:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            change(info)
            file.writestr(info, data)
    return made.getvalue()


def read_all(path: Path) -> tuple[bytes, dict[str, bytes]]:
    with open_bundle(path) as bundle:
        return bundle.cache(MAX_CACHE_BYTES), {name: bundle.run(name) for name in bundle.runs}


def refusal(path: Path, data: bytes) -> str:
    """The one line with which a file is refused; serving from it is a miss that says the same."""
    path.write_bytes(data)
    with pytest.raises(StoreError) as caught:
        read_all(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.isprintable()
    contents = read_cache(path, HERE)
    assert (dict(contents.verdicts), dict(contents.plans)) == ({}, {})
    return text


def test_the_same_content_is_the_same_bytes_and_reads_back(
    tmp_path: Path, environment: Environment, make_verdict: Any, make_plan: Any
) -> None:
    verdicts: dict[str, Verdict] = {v.problem: v for v in (make_verdict(8), make_verdict(16))}
    plans: dict[str, Plan] = {"f00d": make_plan()}
    document = encode_document(environment, verdicts, plans)
    runs = {NAME: b"one\n", "winners.20250102_030405-2.jsonl": b"two\n"}
    data = encode_bundle(document, runs)
    backwards = encode_bundle(
        encode_document(environment, dict(reversed(verdicts.items())), plans), dict(reversed(runs.items()))
    )
    assert data == backwards
    path = tmp_path / "b.tunebook"
    path.write_bytes(data)
    assert read_all(path) == (document, runs)
    with open_bundle(path) as bundle:
        assert bundle.runs == tuple(sorted(runs))
        with pytest.raises(StoreError, match="more than the 10 that are read"):
            bundle.cache(10)
    for found in (read_cache(path, environment), read_any(path)):
        assert (dict(found.verdicts), dict(found.plans), found.misses) == (verdicts, plans, ())
    elsewhere = read_cache(path, HERE)
    assert not elsewhere.verdicts
    assert "made on another machine" in elsewhere.misses[0].detail
    with zipfile.ZipFile(path) as file:  # and other programs read it
        assert file.testzip() is None


def test_a_name_that_is_no_runs_is_not_put_in() -> None:
    for name in ("../x.jsonl", "x.jsonl", "winners.1.jsonl", f"a/{NAME}", f"{NAME}\n"):
        with pytest.raises(ValueError, match="not the name of a run"):
            encode_bundle(DOCUMENT, {name: b""})


def link(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def pipe(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFIFO | 0o644) << 16


def deflated(info: zipfile.ZipInfo) -> None:
    info.compress_type = zipfile.ZIP_DEFLATED


def extra(info: zipfile.ZipInfo) -> None:
    info.extra = b"up\x05\x00\x01\x00\x00\x00\x00"


CACHE = ("winners.json", DOCUMENT)
GOOD = encode_bundle(DOCUMENT, {NAME: b"{}\n"})


def end(data: bytes, place: int, value: int, width: int = 2) -> bytes:
    """The archive with a number of its last record changed."""
    at = len(data) - 22 + place
    return data[:at] + value.to_bytes(width, "little") + data[at + width :]


MANY = [(f"runs/winners.20260101_{n:06}.jsonl", b"") for n in range(MAX_RUNS + 1)]
REFUSED: dict[str, tuple[bytes, str]] = {
    "a path upwards": (archive(CACHE, (f"../{NAME}", b"")), "it holds ../winners"),
    "a path from the root": (archive(CACHE, ("/etc/passwd", b"")), "it holds /etc/passwd"),
    "a path below": (archive(CACHE, (f"runs/x/{NAME}", b"")), f"it holds runs/x/{NAME}"),
    "upwards in a run's name": (archive(CACHE, ("runs/../winners.json", b"")), "neither winners.json nor the name of a run"),
    "a directory": (archive(CACHE, ("runs/", b"")), "it holds runs/,"),
    "pins": (archive(CACHE, ("pins.toml", b"")), "it holds pins.toml"),
    "control characters": (archive(CACHE, ("runs/\x1b[31m", b"")), "it holds runs/\\x1b[31m"),
    "a link": (archive(CACHE, (f"runs/{NAME}", b"/etc"), change=link), "link or another special file"),
    "a named pipe": (archive(CACHE, change=pipe), "link or another special file"),
    "compressed": (archive(CACHE, change=deflated), "is compressed or encrypted"),
    "another name beside its name": (archive(CACHE, change=extra), "fields that no member of a bundle has"),
    "no cache": (archive((f"runs/{NAME}", b"")), "it holds no winners.json"),
    "nothing": (archive(), "not a bundle"),
    "too many": (archive(CACHE, *MANY), "more than 1000 runs"),
    "something before it": (b"x" + GOOD, "its directory is not where it says"),
    "something after it": (GOOD + b"x", "something follows it"),
    "cut off": (GOOD[:-30], "something follows it"),
    "empty": (b"", "cut off"),
    "a mere beginning": (GOOD[:4], "cut off"),
    "text": (b"just some text that is longer than the end of an archive\n", "does not end as a bundle does"),
    "another number of bytes": (end(GOOD, 12, 7, 4), "not where it says"),
    "many members promised": (end(GOOD, 10, 0xFFFF), "more than 1000 runs"),
    "a comment": (end(GOOD, 20, 3), "something follows it"),
    "changed bytes": (GOOD.replace(b'"hard"', b'"harm"'), "damaged bundle: winners.json: Bad CRC-32"),
    "another name inside": (GOOD.replace(NAME.encode(), NAME.replace("2026", "2025").encode(), 1), "damaged bundle"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "says"), REFUSED.values(), ids=REFUSED)
def test_whatever_is_no_bundle_is_refused_in_one_line(data: bytes, says: str, tmp_path: Path) -> None:
    assert says in refusal(tmp_path / "b.tunebook", data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    assert "winners.json is in it twice" in refusal(tmp_path / "b.tunebook", archive(CACHE, CACHE))


def test_members_that_share_their_bytes_do_not_expand(tmp_path: Path) -> None:
    """Two entries of the directory for one stored member: together they are larger than the file."""
    data = b"x" * 5000
    whole = archive(CACHE, (f"runs/{NAME}", data), ("runs/winners.20260102_030406.jsonl", data))
    start = whole.index(b"PK\x01\x02")
    first = whole.index(b"runs/winners.20260102_030406.jsonl") - 30  # the last member's own bytes are taken out
    directory = whole[start:-22]
    second = directory.rindex(b"PK\x01\x02")
    one = directory.rindex(b"PK\x01\x02", 0, second)
    directory = directory[: second + 42] + directory[one + 42 : one + 46] + directory[second + 46 :]
    overlapping = whole[:first] + directory + whole[-22:]
    overlapping = end(overlapping, 16, first, 4)
    assert "larger than itself" in refusal(tmp_path / "b.tunebook", overlapping)


def test_a_format_without_bounds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locator = b"PK\x06\x07" + bytes(16)
    at = len(GOOD) - 22
    assert "zip64" in refusal(tmp_path / "b.tunebook", GOOD[:at] + locator + GOOD[at:])
    large = tmp_path / "large.tunebook"
    with large.open("wb") as file:
        file.write(GOOD[:4])
        file.truncate(MAX_BUNDLE_BYTES + 1)
    with pytest.raises(StoreError, match="more than the 268435456 that are read"), open_bundle(large):
        pass
    monkeypatch.setattr(module, "MAX_BUNDLE_BYTES", 10)
    assert "more than the 10 that are read" in refusal(tmp_path / "b.tunebook", GOOD)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, says in (
        (tmp_path, "is not a file"),
        (tmp_path / "pipe", "is not a file"),
        (tmp_path / "absent", "No such file"),
        (Path("a\0b"), "null"),
    ):
        with pytest.raises(StoreError, match=says) as caught, open_bundle(path):
            pass
        assert str(caught.value).isprintable()


@settings(max_examples=400)
@given(data=st.data())
def test_damaged_bytes_end_in_entries_or_one_line(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bytes of a bundle changed, cut out and repeated: what is read is what was put in, or nothing."""
    changed = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(len(changed) - 1, 0)))
        kind = data.draw(st.sampled_from(("byte", "cut", "repeat", "insert")))
        if kind == "byte" and changed:
            changed[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del changed[place : place + data.draw(st.integers(1, 60))]
        elif kind == "repeat":
            changed[place:place] = changed[place : place + data.draw(st.integers(1, 60))]
        else:
            changed[place:place] = data.draw(st.binary(min_size=1, max_size=8))
    path = tmp_path_factory.getbasetemp() / "fuzzed.tunebook"
    path.write_bytes(changed)
    said = ""
    try:
        document, runs = read_all(path)
    except StoreError as error:
        said = str(error)
    else:
        assert document == DOCUMENT
        assert set(runs.values()) <= {b"{}\n"}
    assert said.isprintable()
    contents = read_cache(path, HERE)
    assert (dict(contents.verdicts), dict(contents.plans)) == ({}, {})


def test_a_bundle_is_never_published_into(tmp_path: Path, environment: Environment, make_verdict: Any) -> None:
    path = tmp_path / "b.tunebook"
    verdict = make_verdict(8)
    path.write_bytes(encode_bundle(encode_document(environment, {verdict.problem: verdict}, {}), {}))
    before = path.read_bytes()
    other = make_verdict(16)
    published = publish(Location.of(environment, path), environment, {other.problem: other}, {})
    assert published.problem is not None
    assert "it is a bundle, not a cache" in published.problem
    assert path.read_bytes() == before
    assert {entry.name for entry in tmp_path.iterdir()} <= {"b.tunebook", "b.tunebook.lock"}
