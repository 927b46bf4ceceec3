"""The file of coverage: whatever it holds is read or refused in one line, and what several processes add to it adds up."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

import tunebook
from tunebook.envs import envs
from tunebook.errors import StoreError
from tunebook.records import CoverageDocument, Environment, Served
from tunebook.records._base import LARGEST
from tunebook.records.coverage import MAX_DECODE, MAX_MODEL_NAME
from tunebook.store.coverage import (
    COVERAGE_NAME,
    MAX_COVERAGE_BYTES,
    MAX_PROBLEMS,
    add_coverage,
    bounded,
    coverage_path,
    encode_coverage,
    read_coverage,
    reset_coverage,
)

HERE = Environment(hard={"device": "cpu"})
KEY = "o||f|M≤1"
TEXT = (
    f'{{"since":"2026-01-01T00:00:00","until":"2026-01-02T00:00:00","models":{{"m":{{"{KEY}":{{"tuned":3}}}}}},'
    '"unlisted":1,"schema":1}'
)


def counted(served: Served, since: str = "2026-01-01T00:00:00", unlisted: int = 0) -> CoverageDocument:
    """Calls of one problem of a model."""
    return CoverageDocument(since=since, until=since, models={"m": {KEY: served}}, unlisted=unlisted)


def test_it_lies_beside_the_cache_or_where_the_variable_says(tmp_path: Path) -> None:
    beside = Path(envs.TUNEBOOK_CACHE_DIR.get()) / "autotune" / HERE.digest / COVERAGE_NAME
    assert coverage_path(HERE) == beside
    (tmp_path / "real.json").write_text("")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    with envs.TUNEBOOK_COVERAGE_FILE.override(tmp_path / "link.json"):
        assert coverage_path(HERE) == tmp_path / "real.json", "a link that the user names is followed"


def test_what_is_added_adds_up(tmp_path: Path) -> None:
    path = tmp_path / "new" / "coverage.json"
    assert add_coverage(path, counted(Served(tuned=2, default=1, decode=4)), 0.0)
    assert add_coverage(path, counted(Served(default=7, prefill=9), "2025-12-31T00:00:00", 5), 0.0)
    assert add_coverage(path, counted(Served(bucket=1), "2026-02-01T00:00:00"), 0.0)
    found = read_coverage(path)
    assert found.models == {"m": {KEY: Served(tuned=2, default=8, bucket=1, decode=4, prefill=9)}}
    assert (found.since, found.until, found.unlisted) == ("2025-12-31T00:00:00", "2026-02-01T00:00:00", 5)
    assert found.calls == 16
    assert sorted(p.name for p in path.parent.iterdir()) == ["coverage.json", "coverage.json.lock"]


def test_a_count_stays_a_number_that_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    for _ in range(2):
        add_coverage(path, counted(Served(tuned=LARGEST)), 0.0)
    assert read_coverage(path).models["m"][KEY].tuned == LARGEST


@given(
    st.lists(
        st.fixed_dictionaries({name: st.integers(0, 100) for name in ("pinned", "tuned", "bucket", "default")}).filter(
            lambda calls: any(calls.values())
        ),
        min_size=2,
        max_size=5,
    ),
    st.randoms(),
)
def test_the_order_of_adding_does_not_matter(parts: list[dict[str, int]], rng: random.Random) -> None:
    def total(order: list[dict[str, int]]) -> CoverageDocument:
        first, *rest = [counted(Served(**calls)) for calls in order]
        for one in rest:
            first = first.plus(one)
        return first

    shuffled = list(parts)
    rng.shuffle(shuffled)
    assert total(parts) == total(shuffled)
    assert total(parts).calls == sum(sum(calls.values()) for calls in parts)


# ------------------------------------------------------------------------------------------------------------ bounds


def many(problems: int, length: int = 1) -> CoverageDocument:
    """As many problems, the first called most, with attributes of this length."""
    rows = {f"o|a={'x' * length}|f|M={i}": Served(tuned=problems - i) for i in range(problems)}
    return CoverageDocument(since="a", until="b", models={"m": rows})


@pytest.mark.parametrize(("problems", "length"), [(MAX_PROBLEMS + 7, 1), (1000, 2000), (10, 16000)])
def test_a_file_keeps_within_its_limits_and_no_call_is_lost(tmp_path: Path, problems: int, length: int) -> None:
    document = many(problems, length)
    path = tmp_path / "c.json"
    add_coverage(path, document, 0.0)
    add_coverage(path, document, 0.0)
    found = read_coverage(path)
    kept = list(found.models["m"])
    assert path.stat().st_size <= MAX_COVERAGE_BYTES
    assert len(kept) <= MAX_PROBLEMS
    assert found.calls == 2 * document.calls
    assert set(kept) == set(list(document.models["m"])[: len(kept)]), "those called most are kept"


def test_what_fits_is_left_alone() -> None:
    document = many(5)
    assert bounded(document) is document


# ----------------------------------------------------------------------------------------------------- files of others


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(TEXT)
    assert read_coverage(tmp_path / "c.json").models == {"m": {KEY: Served(tuned=3)}}


HOSTILE: list[tuple[str | None, str]] = [
    (None, "no such file"),
    ("", "empty"),
    ("[]", "no file of coverage"),
    (TEXT[:-5], "truncated"),
    (TEXT[:-1] + ',"x":' + "[" * 100_000, "nested too deeply"),
    (TEXT.replace(":3", ":NaN"), "malformed"),
    (TEXT.replace(":3", ":-1"), "tuned calls: -1"),
    (TEXT.replace(":3", ":0"), "without a call"),
    (TEXT.replace(":3", ":" + "9" * 400), "no file of coverage"),
    (TEXT.replace(":3", f":{LARGEST + 1}"), "is not a number from 0"),
    (TEXT.replace('"tuned":3', f'"tuned":3,"decode":{MAX_DECODE + 1}'), "decode is not a size"),
    (TEXT.replace('"tuned":3', '"tuned":3,"prefill":-1'), "prefill is not a size"),
    (TEXT.replace("M≤1", "M≤" + "9" * 400), "size"),
    (TEXT.replace(KEY, "no key"), "problem key"),
    (TEXT.replace('"m"', f'"{"m" * (MAX_MODEL_NAME + 1)}"'), "name of a model"),
    (TEXT.replace("2026-01-01T00:00:00", "2" * 100), "since"),
    (TEXT.replace('"unlisted":1', '"unlisted":-1'), "unlisted"),
    (TEXT.replace('"schema":1', '"schema":2'), "schema 2 is newer"),
    (TEXT.replace('"schema":1', '"schema":0'), "schema 0 is older"),
    (TEXT.replace('"schema":1', '"schema":"1"'), "schema"),
    (TEXT.replace('"models"', '"models":{},"models"'), "models occurs twice"),
    (TEXT.replace('"tuned":3', '"tuned":3,"tuned":4'), "tuned occurs twice"),
    (TEXT + " " * MAX_COVERAGE_BYTES, str(MAX_COVERAGE_BYTES)),
]


@pytest.mark.parametrize(("text", "says"), HOSTILE, ids=[says for _, says in HOSTILE])
def test_what_is_no_coverage_is_one_line(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "c.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StoreError, match=r"c\.json") as caught:
        read_coverage(path)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()
    assert caught.value.__cause__ is None


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data, put = TEXT.encode(), draw(st.binary(max_size=4))
    start = draw(st.integers(0, len(data)))
    return data[:start] + put + data[start + len(put) :]


@settings(max_examples=150)
@given(data=st.binary(max_size=80) | damaged())
def test_any_bytes_are_coverage_or_one_line_and_are_added_to_or_kept(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "c.json"
    path.write_bytes(data)
    before = 0
    with suppress(StoreError):
        before = read_coverage(path).calls
    try:
        add_coverage(path, counted(Served(tuned=1)), 0.0)
    except StoreError:
        assert path.read_bytes() == data, "what is refused is left as it is"
    else:
        assert read_coverage(path).calls == before + 1
        aside = [p for p in path.parent.iterdir() if ".broken-" in p.name]
        assert [p.read_bytes() for p in aside] in ([], [data])
        assert bool(aside) == (before == 0 and bool(data.strip()))


@pytest.mark.parametrize("text", ['{"schema":2,"more":1}', TEXT + " " * MAX_COVERAGE_BYTES], ids=["newer", "huge"])
def test_what_must_not_be_lost_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=r"c\.json"):
        add_coverage(path, counted(Served(tuned=1)), 0.0)
    assert path.read_text() == text


def directory(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [directory, pipe])
def test_what_is_no_file_is_an_error_that_says_so(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "c.json"
    make(path)
    with pytest.raises(StoreError, match="not a file"):
        read_coverage(path)
    with pytest.raises(StoreError, match="not a file"):
        add_coverage(path, counted(Served(tuned=1)), 0.0)


@pytest.mark.parametrize("target", ["file", "new"])
def test_a_link_is_replaced_and_not_written_through(tmp_path: Path, target: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text(TEXT)
    path = tmp_path / "c.json"
    path.symlink_to(outside / target)
    add_coverage(path, counted(Served(tuned=1)), 0.0)
    assert not path.is_symlink()
    assert {p.name: p.read_text() for p in outside.iterdir()} == {"file": TEXT}


def test_a_linked_lock_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "c.json.lock").symlink_to(tmp_path / "theirs")
    with suppress(StoreError):
        add_coverage(tmp_path / "c.json", counted(Served(tuned=1)), 0.0)
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_a_place_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"was not written: .*TUNEBOOK_COVERAGE_FILE"):
        add_coverage(tmp_path / "file" / "c.json", counted(Served(tuned=1)), 0.0)


def test_a_reset_removes_the_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    add_coverage(path, counted(Served(tuned=1)), 0.0)
    reset_coverage(path, 0.0)
    assert not path.exists()
    reset_coverage(path, 0.0)
    path.mkdir()
    with pytest.raises(StoreError, match="not removed"):
        reset_coverage(path, 0.0)


# ---------------------------------------------------------------------------------------------------- several processes


def test_who_finds_the_lock_held_does_not_wait_longer_than_it_may(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with FileLock(tmp_path / "c.json.lock"):
        assert not add_coverage(path, counted(Served(tuned=1)), 0.0)
        with pytest.raises(StoreError, match="another process"):
            reset_coverage(path, 0.0)
    assert not path.exists()
    assert add_coverage(path, counted(Served(tuned=1)), 0.0)


ADDING = """
import sys
from pathlib import Path
from tunebook.records import CoverageDocument, Served
from tunebook.store.coverage import add_coverage

part = CoverageDocument(since="a", until="b", models={"m": {sys.argv[2]: Served(tuned=1), "o||f|": Served(default=2)}})
times = int(sys.argv[3])
print("ready", flush=True)
while times:
    times -= 1
    assert add_coverage(Path(sys.argv[1]), part, 60.0)
"""


def adding(path: Path, name: str, times: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(tunebook.__file__).parents[1])}
    command = [sys.executable, "-c", ADDING, str(path), f"o||f|M={name}", str(times)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_processes_that_add_at_once_lose_nothing_and_a_killed_one_harms_nobody(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    others = [adding(path, str(i), 25) for i in range(2)]
    killed = adding(path, "9", -1)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # until it has written, and then in the midst of it
        with suppress(StoreError):
            if "o||f|M=9" in read_coverage(path).models["m"]:
                break
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    killed.stdout.close()
    for one in others:
        assert one.wait(120) == 0
        assert one.stdout is not None
        one.stdout.close()
    rows = read_coverage(path).models["m"]
    assert [rows[f"o||f|M={i}"].tuned for i in range(2)] == [25, 25]
    theirs = rows["o||f|M=9"].tuned
    assert theirs >= 1
    assert rows["o||f|"].default == 2 * (50 + theirs), "each addition is there as a whole, or not at all"
    assert msgspec.json.decode(encode_coverage(read_coverage(path)), type=CoverageDocument) == read_coverage(path)
