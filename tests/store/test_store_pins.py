"""Pins: what a file of them says, what is written, and that whatever is wrong with one is said in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebook.errors import StoreError, UsageError
from tunebook.records import DEFAULT, Dim, Problem, Tactic
from tunebook.store import MAX_PINS_BYTES, Pins, read_pins, update_pins

KEY = "linear|N=64,K=32|bf16|M≤16"
NATIVE = Tactic.parse("native[block=32]")
TORCH = Tactic.parse("torch")


def read(path: Path, text: str | bytes) -> Pins:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    pins = read_pins(path)
    for miss in pins.misses:
        assert str(miss).isprintable()
        assert str(path) in str(miss)
        assert len(str(miss)) < 2000
    return pins


def problem(size: int = 16, op: str = "linear", n: str = "64") -> Problem:
    return Problem(op=op, attrs=(("N", n), ("K", "32")), dtypes=("bf16",), dims=(Dim(name="M", size=size),))


def test_the_narrowest_pin_counts(tmp_path: Path) -> None:
    pins = read(
        tmp_path / "pins.toml",
        f'[pins]\n"linear" = "torch"\nlinear2 = "x"\n"linear@M≤16" = "native[block=32]"\n"{KEY}" = "default"\n',
    )
    assert pins.misses == ()
    assert pins.of(problem()) == (KEY, DEFAULT)
    assert pins.of(problem(n="8")) == ("linear@M≤16", NATIVE)
    assert pins.of(problem(8)) == ("linear", TORCH)
    assert pins.of(problem(op="experts")) is None
    assert pins.problems == (KEY,)


def test_no_file_and_an_empty_one_are_no_pins_and_no_miss(tmp_path: Path) -> None:
    assert (read_pins(tmp_path / "pins.toml").tactics, read_pins(tmp_path / "pins.toml").misses) == ({}, ())
    assert read(tmp_path / "pins.toml", "").misses == read(tmp_path / "pins.toml", "# nothing\n").misses == ()


BAD: list[tuple[str | bytes, str, str]] = [
    ('[pins]\n"linear" = "torch\n', "not TOML", "line 2"),
    ('[pins]\n"linear" = "torch"\n"linear" = "x"\n', "not TOML", "line 3"),
    ("[pins]\nlinear = NaN\n", "not TOML", "line 2"),
    (b"\xef\xbb\xbf[pins]\n", "not TOML", "byte order mark"),
    (b'[pins]\n"linear" = "\xff"\n', "not TOML", "byte 19"),
    (b"\x00\x01", "not TOML", "line 1"),
    ("x = " + "[" * 3000, "not TOML", "nested too deeply"),
    ("x = " + "[\n" * 30000, "not TOML", "nested too deeply"),
    ("a" + ".a" * 5000 + " = 1\n", "not TOML", "line 1 has 10005 characters"),
    ("[" + "a." * 3000 + "b]\n", "not TOML", "line 1 has"),
    ("pins = 3\n", "schema", "not a table"),
    ("#" * (MAX_PINS_BYTES + 1), "unreadable", str(MAX_PINS_BYTES)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "says"), BAD, ids=range(len(BAD)))
def test_a_file_that_is_none_is_one_miss(tmp_path: Path, text: str | bytes, kind: str, says: str) -> None:
    pins = read(tmp_path / "pins.toml", text)
    (miss,) = pins.misses
    assert (dict(pins.tactics), miss.kind) == ({}, kind)
    assert says in miss.detail


BAD_PINS = [
    ('"linear" = 3', "not a text"),
    ('"linear" = ["torch"]', "not a text"),
    ("linear.torch = true", "not a text"),
    ('"linear" = "torch["', "torch["),
    ('"linear" = "torch[p=1,p=2]"', "twice"),
    ('"linear" = ""', "not runner"),
    ('"" = "torch"', "op"),
    ('"lin ear" = "torch"', "op"),
    ('"linear@" = "torch"', "no dimension"),
    ('"linear@M" = "torch"', "'M'"),
    ('"linear@M≤16,M≤4" = "torch"', "twice"),
    ('"linear|N" = "torch"', "parts"),
    (f'"linear@M≤{"9" * 40}" = "torch"', "size"),
    (f'"linear" = "torch[{"x" * 50}"', "torch["),
    (f'"{KEY}" = "a"\n"{KEY.replace("≤16", "≤016")}" = "b"', "pinned twice"),
]


@pytest.mark.parametrize(("line", "says"), BAD_PINS, ids=[line for line, _ in BAD_PINS])
def test_a_pin_that_is_none_is_a_miss_of_its_own(tmp_path: Path, line: str, says: str) -> None:
    pins = read(tmp_path / "pins.toml", f'[pins]\n"experts" = "torch"\n{line}\n')
    (miss,) = pins.misses
    assert miss.kind == "entry"
    assert says in str(miss)
    assert pins.tactics["experts"] == TORCH


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    pins = read(tmp_path / "pins.toml", '[pins]\n"linear" = "torch"\n[colours]\nred = 1\n')
    assert dict(pins.tactics) == {"linear": TORCH}
    assert "colours" in pins.misses[0].detail


def test_misses_are_bounded(tmp_path: Path) -> None:
    pins = read(tmp_path / "pins.toml", "[pins]\n" + "".join(f"k{n} = 1\n" for n in range(5000)))
    assert len(pins.misses) == 101
    assert "4900 more" in pins.misses[-1].detail


def test_places_that_are_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "round").symlink_to(tmp_path / "round")
    for name in ("pipe", "folder", "round"):
        assert [miss.kind for miss in read_pins(tmp_path / name).misses] == ["unreadable"]


def test_what_is_written_reads_back_sorted_and_goes_with_the_last_pin(tmp_path: Path) -> None:
    path = tmp_path / "new" / "pins.toml"
    wanted = {KEY: NATIVE, "linear": TORCH, "demo::bag@M≤96@multiple(32)": DEFAULT}
    assert update_pins(path, wanted).tactics == wanted
    assert (read_pins(path).tactics, read_pins(path).misses) == (wanted, ())
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert lines[1] == "[pins]"
    assert lines[2:] == sorted(lines[2:])
    update_pins(path, {"linear": None, "experts": TORCH})
    assert dict(read_pins(path).tactics) == {KEY: NATIVE, "demo::bag@M≤96@multiple(32)": DEFAULT, "experts": TORCH}
    update_pins(path, dict.fromkeys(read_pins(path).tactics))
    assert not path.exists()
    update_pins(path, {"linear": None})
    assert not path.exists()


@pytest.mark.parametrize(
    "text", ["[other]\nx = 1\n", '[pins]\n"linear" = 1\n', "x = [", '[pins]\n"lin ear" = "torch"\n']
)
def test_a_file_that_would_lose_something_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pins.toml"
    path.write_text(text)
    with pytest.raises(StoreError, match=r"pins\.toml.*left as it is") as caught:
        update_pins(path, {"linear": TORCH})
    assert str(caught.value).isprintable()
    assert path.read_text() == text


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"pins\.toml"):
        update_pins(tmp_path / "file" / "pins.toml", {"linear": TORCH})
    with pytest.raises(UsageError, match="a pin is for an op"):
        update_pins(tmp_path / "pins.toml", {"lin ear": TORCH})
    many = {f"op{n}": TORCH for n in range(20_000)}
    with pytest.raises(StoreError, match=str(MAX_PINS_BYTES)):
        update_pins(tmp_path / "pins.toml", many)
    assert sorted(os.listdir(tmp_path)) == ["file"]


def test_a_link_in_the_place_of_the_pins_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / "pins.toml").symlink_to(tmp_path / "elsewhere")
    update_pins(tmp_path / "pins.toml", {"linear": TORCH})
    assert (tmp_path / "elsewhere").read_text() == ""
    assert not (tmp_path / "pins.toml").is_symlink()


names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.:-]{0,8}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
tactics = st.builds(
    lambda runner, params: Tactic(runner=runner, params=tuple(params.items())),
    names,
    st.dictionaries(names, texts | st.integers(0, 99) | st.booleans(), max_size=2),
)
dims = st.lists(
    st.builds(Dim, name=texts.filter(bool), size=st.integers(0, 999), rule=texts.filter(bool)),
    min_size=1, max_size=2, unique_by=lambda dim: dim.name,
)  # fmt: skip
targets = (
    names
    | st.builds(lambda op, some: f"{op}@{','.join(map(str, some))}", names, dims)
    | st.builds(
        lambda op, attr, some: Problem(op=op, attrs=(("a", attr),), dims=tuple(d for d in some if d.name != "a")).key,
        names, texts, dims,
    )
)  # fmt: skip


@settings(deadline=None, max_examples=80)
@given(wanted=st.dictionaries(targets, tactics, min_size=1, max_size=6))
def test_every_pin_reads_back(tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, Tactic]) -> None:
    path = tmp_path_factory.mktemp("pins") / "pins.toml"
    update_pins(path, wanted)
    assert (dict(read_pins(path).tactics), read_pins(path).misses) == (wanted, ())


@settings(deadline=None, max_examples=200)
@given(
    data=st.binary(max_size=60)
    | texts.map(lambda text: f"[pins]\n{text}".encode())
    | st.tuples(texts, texts).map(lambda two: f'[pins]\n"{two[0]}" = "{two[1]}"\n'.encode())
)
def test_any_bytes_are_pins_or_a_miss(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    pins = read(tmp_path_factory.mktemp("any") / "pins.toml", data)
    assert all(isinstance(tactic, Tactic) for tactic in pins.tactics.values())
