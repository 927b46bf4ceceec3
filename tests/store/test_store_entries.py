"""Entries are read when they are looked up: the same ones are served as by reading them all, and less work is done."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebook.records import SCHEMA, Environment, Member, Plan, Rejected, Verdict
from tunebook.store import CacheContents, Location, publish, read_any, read_cache

Make = Callable[..., Verdict]

HARD = {"device": "cpu", "cores": "8"}
HERE = Environment(hard=HARD)


def key(size: int) -> str:
    return f"linear|N=64,K=32|bf16|M≤{size}"


def plain_verdict(size: int, speedup: float = 1.5) -> dict[str, Any]:
    """A verdict with every kind of part, as plain JSON."""
    return {
        "problem": key(size),
        "winner": "onednn[batch_hint=16]",
        "status": "proven",
        "speedup": speedup,
        "low": speedup * 0.9,
        "high": speedup * 1.1,
        "seconds": 1e-4,
        "frontier": [
            {"tactic": "onednn[batch_hint=16]", "ratio": 1.0, "low": 1.0, "high": 1.0},
            {"tactic": "default", "ratio": 1.5, "low": 1.4, "high": 1.6},
        ],
        "offered": {"onednn": {"version": "1", "space": "ab12"}, "default": {"version": "2", "space": ""}},
        "rejected": [{"type": "rejected", "tactic": "torch", "reason": "runtime", "detail": 'it \\ "failed"'}],
    }


def plain_plan(fingerprint: str = "f00d") -> dict[str, Any]:
    return {"model": "tiny", "fingerprint": fingerprint, "tactics": {key(1): "default", key(2): "torch"}}


def document(verdicts: str, plans: str = "{}", environment: str = json.dumps({"hard": HARD})) -> str:
    return f'{{"schema": {SCHEMA}, "environment": {environment}, "verdicts": {verdicts}, "plans": {plans}}}'


def written(entries: list[tuple[str, str]]) -> str:
    return "{" + ", ".join(f"{name}: {text}" for name, text in entries) + "}"


def load(folder: Path, content: str) -> CacheContents:
    (folder / "c.json").write_text(content)
    return read_cache(folder / "c.json", HERE)


@contextmanager
def validations() -> Iterator[Counter[str]]:
    """How many records of each type are validated inside: their own code is watched, not replaced."""
    watched = {kind.__post_init__.__code__: kind.__name__ for kind in (Verdict, Member, Rejected)}
    counts: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in watched:
            counts[watched[frame.f_code]] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield counts
    finally:
        sys.setprofile(before)


# ---------------------------------------------------------------------------------------------- the same as all at once


class Pairs(list[tuple[str, Any]]):
    """An object as the names and values that it was written with."""


def eager(content: str) -> dict[str, Verdict]:
    """What may be served, found out another way: everything parsed with nothing lost, then each verdict decoded."""
    (entries,) = (value for name, value in json.loads(content, object_pairs_hook=Pairs) if name == "verdicts")
    times = Counter(name for name, _ in entries)
    found = {}
    for name, value in entries:
        with suppress(ValueError):
            verdict = msgspec.json.decode(json.dumps(without_pairs(value)), type=Verdict)
            if times[name] == 1 and verdict.problem == name:
                found[name] = verdict
    return found


def without_pairs(value: Any) -> Any:
    """Plain JSON again. Raises ``ValueError`` where a name occurs twice."""
    if isinstance(value, Pairs):
        if len(dict(value)) < len(value):
            raise ValueError("a name occurs twice")
        return {name: without_pairs(inner) for name, inner in value}
    return [without_pairs(inner) for inner in value] if isinstance(value, list) else value


def spelt_out(text: str) -> str:
    """The same JSON string with its letters as escapes."""
    return '"' + "".join(f"\\u{ord(c):04x}" for c in json.loads(text)) + '"'


FIELDS = ["problem", "winner", "status", "speedup", "low", "frontier", "offered", "rejected", "seconds", "note"]
VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [None, "", "x", "default", -1, 0, 1.5, 1e308, [], {}, [{}], {"default": {}}, key(2), True]
)
#: What is put in the place of what, so that a name occurs twice.
REPEATS = [
    ('"problem":', '"problem": "linear|||", "problem":'),
    ('"speedup":', '"speedup": 9.0, "speedup":'),
    ('"ratio":', '"ratio": 1.0, "ratio":'),
    ('"version":', '"version": "0", "version":'),
    ('"onednn":', '"onednn": {"version": "0", "space": ""}, "onednn":'),
    ('"detail":', '"\\u0064etail": "", "detail":'),
    # The tag may be left out, and is written again: the number of quotation marks stays the same.
    ('"type": "rejected"', '"reason": "runtime"'),
]


@st.composite
def entry(draw: st.DrawFn) -> tuple[str, str]:
    """A key and the text under it, often damaged, and if not, often spelt in another way than tunebook's."""
    size = draw(st.integers(1, 6))
    value = plain_verdict(size, draw(st.floats(0.1, 10)))
    for field in draw(st.lists(st.sampled_from(FIELDS), max_size=1)):
        value[field] = draw(VALUES)
    for field in draw(st.lists(st.sampled_from(FIELDS), max_size=1)):
        value.pop(field, None)
    if draw(st.booleans()):
        value["colour"] = draw(st.sampled_from(["red", {"a": 1, "b": [2]}, []]))
    layout: dict[str, Any] = draw(st.sampled_from([{}, {"indent": 2}, {"separators": (",", ":")}]))
    text = json.dumps(value, ensure_ascii=draw(st.booleans()), **layout)
    if draw(st.integers(0, 3)) == 0:
        text = text.replace(*draw(st.sampled_from(REPEATS)), 1)
    name = json.dumps(key(draw(st.sampled_from([size, size, size, 1]))))
    return spelt_out(name) if draw(st.integers(0, 3)) == 0 else name, text


@settings(deadline=None, max_examples=300)
@given(entries=st.lists(entry(), max_size=6), asked=st.lists(st.integers(0, 8), max_size=12))
def test_what_is_looked_up_is_what_reading_all_gives(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, str]], asked: list[int]
) -> None:
    content = document(written(entries))
    expected = eager(content)
    contents = load(tmp_path_factory.mktemp("same"), content)
    for size in asked:
        assert contents.verdicts.get(key(size)) == expected.get(key(size))
        assert (key(size) in contents.verdicts) == (key(size) in expected)
    assert dict(contents.verdicts) == expected
    assert list(contents.verdicts) == [
        name for name in dict.fromkeys(json.loads(n) for n, _ in entries) if name in expected
    ]
    # Each of the others is a miss, once.
    where = Counter(miss.where for miss in contents.misses)
    assert set(where.values()) <= {1}
    assert len(where) == len({json.loads(name) for name, _ in entries} - expected.keys())
    assert {miss.kind for miss in contents.misses} <= {"entry"}


# -------------------------------------------------------------------------------------------------- repeated names


def twice(text: str, name: str) -> str:
    """`text` with the first member called `name` written twice, its first value being another one."""
    at = text.index(f'"{name}":')
    return f'{text[:at]}"{name}": 0, {text[at:]}'


@pytest.mark.parametrize(
    "path",
    ["problem", "winner", "seconds", "frontier", "tactic", "ratio", "offered", "onednn", "space", "detail", "type"],
)
def test_a_name_that_is_repeated_anywhere_in_a_verdict_is_refused(tmp_path: Path, path: str) -> None:
    good, bad = json.dumps(plain_verdict(1)), twice(json.dumps(plain_verdict(2)), path)
    contents = load(tmp_path, document(written([(json.dumps(key(1)), good), (json.dumps(key(2)), bad)])))
    assert list(contents.verdicts) == [key(1)]
    (miss,) = contents.misses
    assert key(2) in miss.where


def test_a_repeated_name_is_found_where_a_left_out_tag_makes_up_for_it(tmp_path: Path) -> None:
    text = json.dumps(plain_verdict(1)).replace('"type": "rejected", ', "")
    contents = load(tmp_path, document(written([(json.dumps(key(1)), text)])))
    assert list(contents.verdicts) == [key(1)]
    text = text.replace('"status":', '"status": "likely", "status":')
    contents = load(tmp_path, document(written([(json.dumps(key(1)), text)])))
    assert list(contents.verdicts) == []
    assert "status occurs twice" in contents.misses[0].detail


@pytest.mark.parametrize("name", ["model", "tactics", key(1)])
def test_a_name_that_is_repeated_anywhere_in_a_plan_is_refused(tmp_path: Path, name: str) -> None:
    text = json.dumps(plain_plan(), ensure_ascii=False).replace(f'"{name}":', f'"{name}": "default", "{name}":')
    contents = load(tmp_path, document("{}", f'{{"f00d": {text}, "beef": {json.dumps(plain_plan("beef"))}}}'))
    assert contents.plans.get("f00d") is None
    assert list(contents.plans) == ["beef"]
    assert "f00d" in contents.misses[0].where


@pytest.mark.parametrize("part", ["verdicts", "plans"])
def test_a_repeated_key_is_known_at_once_and_not_served(tmp_path: Path, part: str) -> None:
    one = (key(1), json.dumps(plain_verdict(1))) if part == "verdicts" else ("f00d", json.dumps(plain_plan()))
    name, text = json.dumps(one[0]), one[1]
    for entries in ([(name, text)] * 2, [(name, text), (spelt_out(name), text)], [(name, "0"), (name, text)]):
        contents = load(tmp_path, document(**{"verdicts": "{}", part: written(entries)}))
        (miss,) = contents.misses
        assert (miss.detail, one[0] in miss.where) == ("the key occurs twice", True)
        assert dict(getattr(contents, part)) == {}
        assert contents.misses == (miss,)


@pytest.mark.parametrize("part", ["verdicts", "plans"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_part_that_occurs_twice_is_refused_though_one_is_empty(tmp_path: Path, part: str, order: int) -> None:
    full = {
        "verdicts": f'{{"{key(1)}": {json.dumps(plain_verdict(1))}}}',
        "plans": f'{{"f00d": {json.dumps(plain_plan())}}}',
    }
    first, second = [full[part], "{}"][::order]
    contents = load(
        tmp_path,
        document(full["verdicts"], full["plans"]).replace(
            f'"{part}": {full[part]}', f'"{part}": {first}, "{part}": {second}'
        ),
    )
    assert [(miss.kind, miss.detail) for miss in contents.misses] == [("schema", f"field {part} occurs twice")]
    assert (dict(contents.verdicts), dict(contents.plans)) == ({}, {})


@pytest.mark.parametrize("name", ["hard", "cores"])
def test_a_name_that_is_repeated_in_the_environment_is_refused(tmp_path: Path, name: str) -> None:
    text = json.dumps({"hard": HARD}).replace(
        f'"{name}":', f'"{name}": {json.dumps(HARD if name == "hard" else "4")}, "{name}":'
    )
    contents = load(tmp_path, document("{}", environment=text))
    assert [miss.kind for miss in contents.misses] == ["environment"]
    assert f"{name} occurs twice" in contents.misses[0].detail


# ------------------------------------------------------------------------------------------------------ bounded work


def many(count: int, bad: range = range(0)) -> str:
    """A document of `count` verdicts, those numbered in `bad` with a speed-up outside its interval."""
    return document(
        written(
            [
                (json.dumps(key(n)), json.dumps(plain_verdict(n) | ({"low": 1.6} if n in bad else {})))
                for n in range(count)
            ]
        )
    )


def test_only_what_is_looked_up_is_validated_and_only_once(tmp_path: Path) -> None:
    content = many(50, bad=range(40, 50))
    with validations() as done:
        contents = load(tmp_path, content)
        assert done == {}
        for _ in range(3):
            assert contents.verdicts[key(7)].problem == key(7)
            assert key(8) in contents.verdicts
            assert contents.verdicts.get(key(45)) is None
            assert contents.verdicts.get(key(99)) is None
    assert done == {"Verdict": 3, "Member": 6, "Rejected": 3}
    assert len(contents.misses) == 1
    with validations() as done:
        for _ in range(3):
            assert len(contents.verdicts) == 40
            assert len(list(contents.verdicts.values())) == 40
    assert done["Verdict"] == 50 - 3
    assert len(contents.misses) == 10


def test_a_publish_that_adds_nothing_reads_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(many(50, bad=range(40, 50)))
    mine = read_cache(tmp_path / "c.json", HERE).verdicts[key(3)]
    with validations() as done:
        published = publish(Location.of(HERE, tmp_path / "c.json"), HERE, {key(3): mine}, {})
    assert (published.problem, published.written) == (None, False)
    assert done["Verdict"] == 2  # ours in the form in which it would be read, and theirs


def test_a_publish_that_adds_something_reads_every_entry_and_keeps_the_bad_ones_aside(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(many(50, bad=range(40, 50)))
    before = (tmp_path / "c.json").read_bytes()
    mine = msgspec.convert(plain_verdict(45), Verdict)
    published = publish(Location.of(HERE, tmp_path / "c.json"), HERE, {key(45): mine}, {})
    assert (published.problem, published.written) == (None, True)
    assert published.note is not None
    assert "10 of its entries" in published.note
    contents = read_cache(tmp_path / "c.json", HERE)
    assert set(contents.verdicts) == {key(n) for n in (*range(40), 45)}
    assert contents.misses == ()
    (aside,) = tmp_path.glob("*.broken-*")
    assert aside.read_bytes() == before


def test_more_fields_than_any_cache_has_are_not_read(tmp_path: Path) -> None:
    fields = ", ".join(f'"k{n}": 0' for n in range(200_001))
    contents = load(tmp_path, document("{}").replace('"schema"', f'{fields}, "schema"', 1))
    assert [miss.kind for miss in contents.misses] == ["schema"]
    assert "200001 entries" in contents.misses[0].detail


def test_a_file_that_does_not_tell_its_size_is_read_to_its_end() -> None:
    # The name of this process: fifteen bytes that can be written to, in a file of which the size is given as 0.
    name = Path("/proc/self/comm")
    before = name.read_text()
    try:
        name.write_text('{"schema": 2}')
        assert name.stat().st_size == 0
        (miss,) = read_cache(name, HERE).misses
    finally:
        name.write_text(before)
    assert miss.kind == "schema"
    assert "schema 2 is newer" in miss.detail


# ------------------------------------------------------------------------------------------------------------ telling


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "tunebook.store"]


def test_an_entry_that_turns_out_bad_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tunebook.store")
    contents = load(tmp_path, many(5, bad=range(2, 4)))
    assert (contents.misses, lines(caplog)) == ((), [])
    for _ in range(2):
        assert contents.verdicts.get(key(2)) is None
    (line,) = lines(caplog)
    assert line == f"cache miss: {contents.misses[0]}"
    assert all(text in line for text in (str(tmp_path / "c.json"), key(2), "interval"))
    assert len(contents.verdicts) == 3
    assert len(lines(caplog)) == 2


def test_what_is_known_at_once_is_for_the_caller_to_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tunebook.store")
    text = (json.dumps(key(1)), json.dumps(plain_verdict(1)))
    contents = load(tmp_path, document(written([text, text])))
    assert (len(contents.misses), len(contents.verdicts), lines(caplog)) == (1, 0, [])


def test_what_is_read_for_showing_is_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tunebook.store")
    load(tmp_path, many(5, bad=range(2, 4)))
    for found in (read_any(tmp_path / "c.json"), read_cache(tmp_path / "c.json", None)):
        assert (len(found.verdicts), len(found.misses), lines(caplog)) == (3, 2, [])


def test_the_log_is_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    contents = load(tmp_path, document(written([(f'"k{n}"', "0") for n in range(3000)])))
    assert len(contents.verdicts) == 0
    assert len(lines(caplog)) == len(contents.misses) - 1 == 1000
    assert "2000 more entries" in contents.misses[-1].detail


def test_threads_get_the_same_and_each_miss_comes_once(tmp_path: Path) -> None:
    contents = load(tmp_path, many(200, bad=range(100, 200)))
    found: list[list[Verdict | None]] = [[] for _ in range(4)]
    barrier = threading.Barrier(len(found))

    def look(into: list[Verdict | None]) -> None:
        barrier.wait(60)
        into += [contents.verdicts.get(key(n)) for n in range(200)]

    threads = [threading.Thread(target=look, args=(into,)) for into in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [verdict is not None for verdict in found[0]] == [n < 100 for n in range(200)]
    assert all(one == found[0] for one in found)
    assert len(contents.misses) == 100


# ------------------------------------------------------------------------------------------------------- as a mapping


def test_entries_are_a_mapping(tmp_path: Path, make_plan: Callable[..., Plan]) -> None:
    (tmp_path / "c.json").write_text(
        document(
            written([(json.dumps(key(n)), json.dumps(plain_verdict(n))) for n in (3, 1, 2)]),
            json.dumps({"f00d": plain_plan(), "beef": {}}),
        )
    )
    contents = read_cache(tmp_path / "c.json", HERE)
    assert "2 of them not read yet" in repr(contents.plans)
    assert contents.plans["f00d"] == msgspec.convert(plain_plan(), Plan)
    assert contents.plans["f00d"] is contents.plans["f00d"]
    for missing in ("beef", "none"):
        with pytest.raises(KeyError, match=missing):
            contents.plans[missing]
    assert [type(name) for name in contents.verdicts] == [str] * 3
    assert list(contents.verdicts) == [key(3), key(1), key(2)]
    assert contents.verdicts == {key(n): msgspec.convert(plain_verdict(n), Verdict) for n in (1, 2, 3)}
    assert contents.verdicts != {}
    assert contents == read_cache(tmp_path / "c.json", None)
    with pytest.raises(TypeError):
        contents.verdicts["x"] = contents.verdicts[key(1)]  # type: ignore[index]
