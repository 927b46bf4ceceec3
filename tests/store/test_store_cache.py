"""Reading a cache: what is served, and that every way of not being served has a name."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebook import store
from tunebook.errors import StoreError
from tunebook.records import (
    SCHEMA,
    CacheDocument,
    Dim,
    Environment,
    Header,
    Member,
    Offered,
    Plan,
    Problem,
    Rejected,
    Tactic,
    Verdict,
)
from tunebook.store import CacheContents, Location, Miss, Run, publish, read_any, read_cache

Json = dict[str, object]


@pytest.fixture
def document(environment: Environment, make_verdict: Callable[..., Verdict], make_plan: Callable[..., Plan]) -> Json:
    """A cache of three verdicts and a plan, as plain JSON, to be broken."""
    verdicts = [make_verdict(size) for size in (1, 16, 512)]
    whole = CacheDocument(
        schema=SCHEMA,
        environment=environment,
        verdicts={verdict.problem: verdict for verdict in verdicts},
        plans={"f00d": make_plan()},
    )
    return json.loads(msgspec.json.encode(whole))


def read(path: Path, content: Json | bytes | str, environment: Environment) -> CacheContents:
    """What a file holds, every entry of it read: only then are all the misses known."""
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    contents = read_cache(path, environment)
    for entries in (contents.verdicts, contents.plans):
        list(entries)
    for miss in contents.misses:
        line = str(miss)
        assert line.isprintable()
        assert len(line) < 3000
        assert str(path) in line
    return contents


def the_miss(contents: CacheContents) -> Miss:
    (miss,) = contents.misses
    return miss


def key(size: int) -> str:
    return f"linear|N=64,K=32|bf16|M≤{size}"


def test_a_good_cache_is_served_whole(tmp_path: Path, document: Json, environment: Environment) -> None:
    contents = read(tmp_path / "c.json", document, environment)
    assert list(contents.verdicts) == [key(1), key(16), key(512)]
    assert contents.verdicts[key(16)].winner == "onednn[batch_hint=16]"
    assert list(contents.plans) == ["f00d"]
    assert contents.misses == ()
    assert contents.environment == environment


def test_soft_differences_are_no_miss(tmp_path: Path, document: Json, environment: Environment) -> None:
    here = Environment(hard=environment.hard, soft={"torch": "3"})
    contents = read(tmp_path / "c.json", document, here)
    assert len(contents.verdicts) == 3
    assert contents.environment is not None
    assert here.soft_differences(contents.environment) == ["torch: 3 ≠ 2.13.0"]


def nothing(contents: CacheContents, kind: str) -> Miss:
    assert contents.verdicts == {}
    assert contents.plans == {}
    miss = the_miss(contents)
    assert miss.kind == kind
    return miss


def test_absent(tmp_path: Path, environment: Environment) -> None:
    nothing(read_cache(tmp_path / "none.json", environment), "absent")
    (tmp_path / "link.json").symlink_to(tmp_path / "gone.json")
    assert "symbolic link" in nothing(read_cache(tmp_path / "link.json", environment), "absent").detail


@pytest.mark.parametrize("content", ["", " \n\t\n"])
def test_empty(tmp_path: Path, environment: Environment, content: str) -> None:
    nothing(read(tmp_path / "c.json", content, environment), "empty")


def test_unreadable(tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "a directory" in nothing(read_cache(tmp_path, environment), "unreadable").detail
    (tmp_path / "file").write_text("x")
    nothing(read_cache(tmp_path / "file" / "c.json", environment), "unreadable")
    nothing(read_cache(tmp_path / ("n" * 300), environment), "unreadable")
    nothing(read_cache(Path("a\0b"), environment), "unreadable")
    (tmp_path / "round.json").symlink_to(tmp_path / "round.json")
    nothing(read_cache(tmp_path / "round.json", environment), "unreadable")

    def denied(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    assert "Permission denied" in nothing(read_cache(tmp_path / "file", environment), "unreadable").detail


def test_a_pipe_does_not_hold_the_start_up(tmp_path: Path, environment: Environment) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    assert "pipe" in nothing(read_cache(tmp_path / "pipe.json", environment), "unreadable").detail
    nothing(read_cache(Path("/dev/zero"), environment), "unreadable")


def test_reading_leaves_no_open_files(tmp_path: Path, environment: Environment) -> None:
    (tmp_path / "c.json").write_text("[")
    count = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path, tmp_path / "c.json", tmp_path / "none", Path("/dev/zero")):
        read_cache(path, environment)
    assert len(os.listdir("/proc/self/fd")) == count


def test_too_large_states_the_limit(tmp_path: Path, environment: Environment) -> None:
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(store.MAX_CACHE_BYTES + 1)
    detail = nothing(read_cache(tmp_path / "huge.json", environment), "unreadable").detail
    assert str(store.MAX_CACHE_BYTES) in detail


NOT_JSON = [
    b"{",
    b"hello",
    b"\x00\x01",
    b'{"schema": 1',
    b'{"schema": 1} trailing',
    b'{"schema": NaN}',
    b"\xef\xbb\xbf{}",
    b'{"schema": 1, "verdicts": ' + b"[" * 200_000,
    b'{"schema": 1, "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
]


@pytest.mark.parametrize("content", NOT_JSON, ids=range(len(NOT_JSON)))
def test_not_json(tmp_path: Path, environment: Environment, content: bytes) -> None:
    nothing(read(tmp_path / "c.json", content, environment), "not JSON")


@pytest.mark.parametrize(
    ("schema", "says"), [(SCHEMA + 1, "newer"), (SCHEMA - 1, "older"), ("1", "int"), (None, "int"), (True, "int")]
)
def test_another_schema(tmp_path: Path, document: Json, environment: Environment, schema: object, says: str) -> None:
    document["schema"] = schema
    document["verdicts"] = "of a form to come"
    miss = nothing(read(tmp_path / "c.json", document, environment), "schema")
    assert says in miss.detail
    if says in ("newer", "older"):
        assert f"schema {schema}" in miss.detail


@pytest.mark.parametrize("content", ["[]", "1", '"text"', "{}"])
def test_no_schema(tmp_path: Path, environment: Environment, content: str) -> None:
    nothing(read(tmp_path / "c.json", content, environment), "schema")


@pytest.mark.parametrize("field", ["schema", "environment", "verdicts", "plans"])
def test_a_part_that_occurs_twice(tmp_path: Path, document: Json, environment: Environment, field: str) -> None:
    text = json.dumps(document)
    content = f'{{"{field}": {json.dumps(document[field])}, {text[1:]}'
    assert f"{field} occurs twice" in nothing(read(tmp_path / "c.json", content, environment), "schema").detail


def test_another_environment_names_every_field(tmp_path: Path, document: Json) -> None:
    here = Environment(hard={"device": "cpu", "isa": "avx2", "numa": "2"})
    detail = nothing(read(tmp_path / "c.json", document, here), "environment").detail
    for text in ("isa: avx2 ≠ avx512", "cores: - ≠ 8", "numa: 2 ≠ -"):
        assert text in detail
    assert "device" not in detail


@pytest.mark.parametrize("value", [{}, {"hard": {}}, {"hard": {"device": 1}}, "cpu", None])
def test_an_environment_that_cannot_be_read(
    tmp_path: Path, document: Json, environment: Environment, value: object
) -> None:
    document["environment"] = value
    contents = read(tmp_path / "c.json", document, environment)
    nothing(contents, "environment")
    assert contents.environment is None


def broken(document: Json, **fields: object) -> Json:
    verdicts = document["verdicts"]
    assert isinstance(verdicts, dict)
    verdicts[key(16)].update(fields)
    return document


BAD_FIELDS: list[tuple[str, object]] = [
    ("speedup", "fast"),
    ("speedup", -1),
    ("low", 99.0),
    ("winner", "torch["),
    ("winner", "cublas"),
    ("winner", None),
    ("status", "certain"),
    ("frontier", []),
    ("frontier", {}),
    ("offered", {}),
    ("seconds", -1.0),
    ("problem", "linear|M"),
    ("problem", key(512)),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_a_bad_entry_is_a_miss_of_its_own(
    tmp_path: Path, document: Json, environment: Environment, field: str, value: object
) -> None:
    contents = read(tmp_path / "c.json", broken(document, **{field: value}), environment)
    assert list(contents.verdicts) == [key(1), key(512)]
    assert list(contents.plans) == ["f00d"]
    miss = the_miss(contents)
    assert miss.kind == "entry"
    assert key(16) in miss.where


def test_the_field_is_named(tmp_path: Path, document: Json, environment: Environment) -> None:
    assert "$.speedup" in str(the_miss(read(tmp_path / "c.json", broken(document, speedup="fast"), environment)))


def test_a_bad_plan_is_a_miss_of_its_own(tmp_path: Path, document: Json, environment: Environment) -> None:
    plans = document["plans"]
    assert isinstance(plans, dict)
    plans["beef"] = dict(plans["f00d"])
    plans["cafe"] = {"model": "m"}
    contents = read(tmp_path / "c.json", document, environment)
    assert list(contents.plans) == ["f00d"]
    assert len(contents.verdicts) == 3
    assert ["beef" in contents.misses[0].where, "cafe" in contents.misses[1].where] == [True, True]
    assert "it is about f00d" in contents.misses[0].detail


@pytest.mark.parametrize("part", ["verdicts", "plans"])
def test_a_part_of_the_wrong_type(tmp_path: Path, document: Json, environment: Environment, part: str) -> None:
    document[part] = ["no", "object"]
    contents = read(tmp_path / "c.json", document, environment)
    assert the_miss(contents).kind == "entry"
    assert part in the_miss(contents).where
    assert len(contents.verdicts) + len(contents.plans) == (1 if part == "verdicts" else 3)


def test_a_missing_part_is_empty(tmp_path: Path, document: Json, environment: Environment) -> None:
    del document["verdicts"], document["plans"]
    contents = read(tmp_path / "c.json", document, environment)
    assert (contents.verdicts, contents.plans, contents.misses) == ({}, {}, ())


def test_an_unknown_field_is_left_out_silently(tmp_path: Path, document: Json, environment: Environment) -> None:
    document["colour"] = "red"
    contents = read(tmp_path / "c.json", broken(document, colour="red"), environment)
    assert len(contents.verdicts) == 3
    assert contents.misses == ()


def test_text_that_is_no_utf8_costs_its_entry_alone(tmp_path: Path, document: Json, environment: Environment) -> None:
    content = json.dumps(broken(document, note="NOTE")).encode().replace(b"NOTE", b"\xff\xfe")
    contents = read(tmp_path / "c.json", content, environment)
    assert list(contents.verdicts) == [key(1), key(512)]
    assert key(16) in the_miss(contents).where


def test_a_key_that_occurs_twice_is_not_served(tmp_path: Path, document: Json, environment: Environment) -> None:
    verdicts = document["verdicts"]
    assert isinstance(verdicts, dict)
    again = {**verdicts[key(16)], "winner": "default", "offered": {"default": {"version": "1", "space": "x"}}}
    again["frontier"] = [again["frontier"][1]]
    for spelt in (json.dumps(key(16)), json.dumps(key(16), ensure_ascii=False).replace("l", "\\u006c")):
        text = json.dumps(document, ensure_ascii=False)
        text = text.replace('"verdicts": {', f'"verdicts": {{{spelt}: {json.dumps(again)}, ', 1)
        contents = read(tmp_path / "c.json", text, environment)
        assert list(contents.verdicts) == [key(1), key(512)]
        assert key(16) in the_miss(contents).where
        assert "twice" in the_miss(contents).detail


@pytest.mark.parametrize(
    "field", ['"winner": "default"', '"speedup": 1.4', '"\\u0077inner": "default"', '"x": 1, "x": 2']
)
def test_a_field_that_occurs_twice_is_not_served(
    tmp_path: Path, document: Json, environment: Environment, field: str
) -> None:
    text = json.dumps(document, ensure_ascii=False)
    text = text.replace(f'"{key(16)}": {{', f'"{key(16)}": {{{field}, ', 1)
    contents = read(tmp_path / "c.json", text, environment)
    assert list(contents.verdicts) == [key(1), key(512)]
    assert "twice" in the_miss(contents).detail


def test_deep_nesting_inside_an_entry(tmp_path: Path, document: Json, environment: Environment) -> None:
    text = json.dumps(broken(document, note="NOTE")).replace('"NOTE"', "[" * 100_000 + "]" * 100_000)
    contents = read(tmp_path / "c.json", text, environment)
    assert key(16) not in contents.verdicts
    assert contents.misses


def test_what_a_file_says_cannot_write_to_the_terminal(
    tmp_path: Path, document: Json, environment: Environment
) -> None:
    verdicts = document["verdicts"]
    assert isinstance(verdicts, dict)
    verdicts["\x1b[2J\nall is well" + "x" * 5000] = {"problem": "\x1b]0;"}
    miss = the_miss(read(tmp_path / "c.json", document, environment))
    assert "\\x1b[2J\\nall is well" in str(miss)


def test_misses_are_bounded(tmp_path: Path, document: Json, environment: Environment) -> None:
    document["verdicts"] = {f"k{n}": 0 for n in range(3000)}
    contents = read(tmp_path / "c.json", document, environment)
    assert len(contents.misses) < 1100
    assert "more" in contents.misses[-1].detail


def test_too_many_entries_or_hard_fields_are_not_looked_at(
    tmp_path: Path, document: Json, environment: Environment
) -> None:
    entries = {f"k{n}": 0 for n in range(200_001)}
    contents = read(tmp_path / "c.json", {**document, "verdicts": entries}, environment)
    assert "200001 entries" in the_miss(contents).detail
    assert list(contents.plans) == ["f00d"]
    hard = {f"k{n}": "" for n in range(1001)}
    contents = read(tmp_path / "c.json", {**document, "environment": {"hard": hard}}, environment)
    assert "1001 hard fields" in nothing(contents, "environment").detail


def test_without_an_environment_nothing_is_compared(tmp_path: Path, document: Json) -> None:
    (tmp_path / "c.json").write_text(json.dumps(document))
    assert len(read_cache(tmp_path / "c.json", None).verdicts) == 3


def test_read_any_tells_a_cache_from_a_run(
    tmp_path: Path, document: Json, header: Header, environment: Environment
) -> None:
    # By content, not by name.
    (tmp_path / "a.jsonl").write_text(json.dumps(document))
    found = read_any(tmp_path / "a.jsonl")
    assert isinstance(found, CacheContents)
    assert found.environment == environment
    (tmp_path / "b.json").write_bytes(msgspec.json.encode(header))
    assert isinstance(read_any(tmp_path / "b.json"), Run)


@pytest.mark.parametrize(
    "content", [None, "", "hello", "{}", "[]", '{"type": "trial"}', '{"schema": 2}', "{" * 100_000]
)
def test_read_any_refuses_everything_else_in_one_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "c.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StoreError) as caught:
        read_any(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert caught.value.__cause__ is None


# Round trips and damage.

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.:-]{0,8}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ratios = st.floats(0.01, 100.0)
scalars = st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | texts
tactics = st.builds(
    lambda runner, params: Tactic(runner=runner, params=tuple(params.items())).name,
    names,
    st.dictionaries(names, scalars, max_size=2),
)
problems = st.builds(
    lambda op, attrs, dtypes, size: (
        Problem(op=op, attrs=tuple(attrs.items()), dtypes=tuple(dtypes), dims=(Dim(name="∘M", size=size),)).key
    ),
    names,
    st.dictionaries(texts.filter(bool), texts, max_size=2),
    st.lists(names, max_size=2),
    st.integers(0, 1 << 20),
)


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    winner, other = draw(tactics), draw(tactics)
    low, speedup, high = sorted((draw(ratios), draw(ratios), draw(ratios)))
    return Verdict(
        problem=draw(problems),
        winner=winner,
        status=draw(st.sampled_from(["proven", "likely", "unresolved"])),
        speedup=speedup,
        low=low,
        high=high,
        seconds=draw(st.floats(0, 10)),
        frontier=(
            Member(tactic=winner, ratio=1.0, low=1.0, high=1.0),
            Member(tactic=other, ratio=speedup, low=low, high=high, layout=draw(texts)),
        ),
        offered={Tactic.parse(winner).runner: Offered(version=draw(texts), space=draw(texts))},
        ties=(other,),
        rejected=(Rejected(tactic=other, reason="runtime", detail=draw(texts)),),
        note=draw(texts),
    )


plans = st.builds(
    Plan,
    model=texts,
    fingerprint=texts,
    tactics=st.dictionaries(problems, tactics, max_size=2),
    layouts=st.dictionaries(texts, st.lists(texts, max_size=2).map(tuple), max_size=2),
    active=st.booleans(),
)


@settings(deadline=None)
@given(st.lists(verdicts(), max_size=5), st.lists(plans, max_size=2))
def test_what_is_published_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, environment: Environment, some: list[Verdict], planned: list[Plan]
) -> None:
    path = tmp_path_factory.mktemp("round") / "c.json"
    by_key = {verdict.problem: verdict for verdict in some}
    by_fingerprint = {plan.fingerprint: plan for plan in planned}
    published = publish(Location.of(environment, path), environment, by_key, by_fingerprint)
    assert (published.problem, published.verdicts) == (None, len(by_key))
    contents = read_cache(path, environment)
    assert contents.verdicts == by_key
    assert contents.plans == by_fingerprint
    if by_key or by_fingerprint:
        assert contents.misses == ()


@pytest.fixture(scope="session")
def sample(
    tmp_path_factory: pytest.TempPathFactory,
    environment: Environment,
    make_verdict: Callable[..., Verdict],
    make_plan: Callable[..., Plan],
) -> tuple[bytes, CacheContents]:
    path = tmp_path_factory.mktemp("sample") / "c.json"
    some = [make_verdict(size, op=op) for size in (1, 16) for op in ("linear", "experts")]
    publish(Location.of(environment, path), environment, {v.problem: v for v in some}, {"f00d": make_plan()})
    return path.read_bytes(), read_cache(path, environment)


def survives(folder: Path, data: bytes, environment: Environment, original: CacheContents) -> CacheContents:
    """Read damaged bytes: no exception, and nothing that was not there before, nor another winner than before."""
    (folder / "c.json").write_bytes(data)
    contents = read_cache(folder / "c.json", environment)
    for name, verdict in contents.verdicts.items():
        assert name == verdict.problem
        assert verdict.winner == original.verdicts[name].winner
    assert set(contents.plans) <= set(original.plans)
    for miss in contents.misses:
        assert str(miss).isprintable()
    return contents


@settings(deadline=None, max_examples=200)
@given(cut=st.floats(0, 1))
def test_truncated(
    tmp_path_factory: pytest.TempPathFactory,
    sample: tuple[bytes, CacheContents],
    environment: Environment,
    cut: float,
) -> None:
    data, original = sample
    folder = tmp_path_factory.mktemp("cut")
    # Only the last line break may be lost without losing the document.
    contents = survives(folder, data[: int(cut * (len(data) - 2))], environment, original)
    assert contents.verdicts == {}
    assert len(contents.misses) == 1


@settings(deadline=None, max_examples=300)
@given(
    at=st.floats(0, 1),
    length=st.integers(0, 40),
    put=st.binary(max_size=12) | st.sampled_from(list(b'{}[]",:\\0 ')).map(lambda b: bytes([b])),
)
def test_mutated(
    tmp_path_factory: pytest.TempPathFactory,
    sample: tuple[bytes, CacheContents],
    environment: Environment,
    at: float,
    length: int,
    put: bytes,
) -> None:
    data, original = sample
    start = int(at * len(data))
    survives(tmp_path_factory.mktemp("cut"), data[:start] + put + data[start + length :], environment, original)


@settings(deadline=None, max_examples=150)
@given(
    data=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | texts,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["schema", "environment", "verdicts", "plans", "hard", "type"]) | texts,
                inner,
                max_size=5,
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_at_all(tmp_path_factory: pytest.TempPathFactory, environment: Environment, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    contents = survives(folder, data, environment, read_cache(folder / "none.json", environment))
    assert contents.misses or json.loads(data)["schema"] == SCHEMA
    with suppress(StoreError):
        read_any(folder / "c.json")


def test_swapped_entries_are_not_served(tmp_path: Path, document: Json, environment: Environment) -> None:
    verdicts = document["verdicts"]
    assert isinstance(verdicts, dict)
    keys = list(verdicts)
    shuffled = random.Random(7).sample(keys, len(keys))
    document["verdicts"] = {name: verdicts[other] for name, other in zip(keys, shuffled, strict=True)}
    contents = read(tmp_path / "c.json", document, environment)
    assert set(contents.verdicts) == {name for name, other in zip(keys, shuffled, strict=True) if name == other}
    assert len(contents.misses) == len(keys) - len(contents.verdicts) > 0
