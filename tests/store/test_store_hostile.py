"""Files from others: bounded memory and processor time for whatever they hold, and nothing written through planted links."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebook.errors import StoreError
from tunebook.records import Environment, Plan, Problem, Tactic, Verdict
from tunebook.store import MAX_CACHE_BYTES, Location, publish, read_cache
from tunebook.store.mixes import MAX_MIX_BYTES, read_mix
from tunebook.store.objects import MAX_ENTRY_BYTES

HERE = Environment(hard={"device": "cpu"})
ENVIRONMENT = '{"hard":{"device":"cpu"}}'
#: What reading may take beyond the interpreter itself, in bytes and in seconds of processor time: generous, and far below
#: what a file of this size can make a careless reader take.
MEMORY = 1 << 30
SECONDS = 60


def key(size: int) -> str:
    return f"o||f|M≤{size}"


def verdict(size: int, more: str = "") -> str:
    return (
        f'{{"problem":"{key(size)}","winner":"default","status":"proven","speedup":1,"low":1,"high":1,"seconds":1,'
        '"frontier":[{"tactic":"default","ratio":1,"low":1,"high":1}],'
        f'"offered":{{"default":{{"version":"1","space":""}}}}{more}}}'
    )


def document(verdicts: str, environment: str = ENVIRONMENT) -> str:
    return f'{{"schema":1,"environment":{environment},"verdicts":{verdicts}}}'


FULL = MAX_CACHE_BYTES - 4096


def lists(size: int) -> str:
    """A field of so many bytes that takes some thirty times as much once it is parsed."""
    return f',"x":[{"[]," * (size // 3)}0]'


def entries(some: Iterable[tuple[int, str]]) -> str:
    return "{" + ",".join(f'"{key(n)}":{text}' for n, text in some) + "}"


def numbered() -> str:
    return "{" + ",".join(f'"{n:x}":0' for n in range(FULL // 12)) + "}"


MEMBER = '{"tactic":"default","ratio":1,"low":1,"high":1},'
LONG_FRONTIER = verdict(1).replace('"frontier":[', '"frontier":[' + MEMBER * 80_000)
HUGE: dict[str, Callable[[], str]] = {
    "a value of lists": lambda: document(entries([(1, verdict(1, lists(FULL - 1000)))])),
    "an environment of lists": lambda: document("{}", ENVIRONMENT[:-1] + lists(FULL - 1000) + "}"),
    "many names": numbered,
    "many entries": lambda: document(numbered()),
    "a long name": lambda: document('{"' + "é" * (FULL // 2 - 200) + '":0}'),
    "a long number": lambda: document('{"x":' + "9" * (FULL - 200) + "}"),
    "nesting": lambda: document("[" * (FULL - 200)),
    "large entries": lambda: document(entries((n, verdict(n, lists(MAX_ENTRY_BYTES - 1000))) for n in range(3))),
    "a long frontier": lambda: document(entries([(1, LONG_FRONTIER)])),
}

READ = """
import resource, sys
from tunebook.records import Environment
from tunebook.store import read_cache
pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + int(sys.argv[2]),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[3]),) * 2)
contents = read_cache(sys.argv[1], Environment(hard={"device": "cpu"}))
print(len(contents.verdicts), len(contents.misses), all(str(miss).isprintable() for miss in contents.misses))
"""


@pytest.mark.parametrize("what", HUGE)
def test_no_file_takes_more_than_so_much_memory_and_time(tmp_path: Path, what: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(HUGE[what]())
    assert path.stat().st_size <= MAX_CACHE_BYTES
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path), str(MEMORY), str(SECONDS)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    path.unlink()
    assert done.returncode == 0, done.stderr[-2000:]
    served, misses, printable = done.stdout.split()
    assert printable == "True"
    assert int(served) + int(misses) > 0
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("size", [1 << 22, 1 << 24])
def test_a_name_that_is_too_long_is_refused_at_once(size: int) -> None:
    for text in ("a[" + "p=1," * (size // 4) + "]", "[" * size, "a[p=" + "[" * size, "a" * size):
        with pytest.raises(ValueError, match=f"{len(text)} characters"):
            Tactic.parse(text)
    for text in ("o||f|" + "M≤1," * (size // 4), "|" * size, "o|" + "a=1," * (size // 4) + "|f|", "o" * size):
        with pytest.raises(ValueError, match=f"{len(text)} characters"):
            Problem.parse(text)


# What is not checked by the parser but would be reckoned with later.
WRONG_PLANS: list[dict[str, object]] = [
    {"tactics": {"no key": "default"}},
    {"tactics": {key(1): "torch["}},
    {"tactics": {f"o||f|M≤{'9' * 400}": "default"}},
    {"tactics": {}, "reverted": {key(1): "a[b"}},
    {"tactics": {}, "bytes": -1},
    {"tactics": {}, "model_bytes": 10**30},
    {"tactics": {}, "left_out": -1},
    {"tactics": {}, "holdings": [{"family": "o||f", "layers": 1, "layouts": {}, "numerics": "x"}]},
    {"tactics": {}, "holdings": [{"family": "o||f", "layers": 1, "layouts": {}}] * 2},
    {"tactics": {}, "holdings": [{"family": "o||f", "layers": 10**30, "layouts": {}}]},
    {"tactics": {}, "holdings": [{"family": "o||f", "layers": 1, "layouts": {"x": 10**400}}]},
    {"tactics": {}, "mix": {"steps": {"decode 1": 1e300}}},
    {"tactics": {}, "mix": {"calls": {key(1): 10**30}}},
    {"tactics": {}, "profile": [{"phase": "x", "seconds": 1e300}]},
    {"tactics": {}, "profile": [{"phase": "x", "seconds": 1, "calls": {key(1): 10**400}, "taken": {key(1): 1}}]},
]


@pytest.mark.parametrize("wrong", WRONG_PLANS, ids=[json.dumps(wrong)[:70] for wrong in WRONG_PLANS])
def test_a_plan_that_nothing_can_serve_is_a_miss(tmp_path: Path, wrong: dict[str, object]) -> None:
    plans = json.dumps({"f00d": {"model": "m", "fingerprint": "f00d", **wrong}})
    (tmp_path / "c.json").write_text(f'{{"schema":1,"environment":{ENVIRONMENT},"plans":{plans}}}')
    contents = read_cache(tmp_path / "c.json", HERE)
    assert contents.plans.get("f00d") is None
    (miss,) = contents.misses
    assert miss.kind == "entry"
    assert "f00d" in miss.where
    assert len(str(miss)) < 2000


def test_numbers_that_look_alike_are_other_tactics() -> None:
    names = ["a[p=1]", "a[p=1.0]", "a[p=true]", "a[p='1']", "a[p=0]", "a[p=false]", "a[p=0.0]", "a[p=-0.0]"]
    tactics = [Tactic.parse(name) for name in names]
    assert len(set(tactics)) == len(names)
    assert [tactics.index(Tactic.parse(name)) for name in names] == list(range(len(names)))
    assert tactics[0] != "a[p=1]"


# ------------------------------------------------------------------------------------------------------ recorded calls

MIX = f'{{"model":"m","fingerprint":"f","calls":{{"{key(1)}":3}},"schema":1}}'


def test_recorded_calls_are_read(tmp_path: Path) -> None:
    (tmp_path / "mix.json").write_text(MIX)
    assert read_mix(tmp_path / "mix.json").calls == {key(1): 3}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file"),
        ("", "empty"),
        (MIX[:-1] + ',"x":' + "[" * 100_000, "nested too deeply"),
        (MIX[:-3], "truncated"),
        (MIX.replace(":3", ":0"), "positive"),
        (MIX.replace(":3", ":" + "9" * 400), "positive"),
        (MIX.replace(":3", ":NaN"), "malformed"),
        (MIX.replace("M≤1", "M≤" + "9" * 400), "size"),
        (MIX.replace('"schema":1', '"schema":2'), "schema 2 is newer"),
        (MIX.replace('"schema":1', '"schema":"1"'), "schema"),
        (MIX.replace('"model"', '"model":"x","model"'), "model occurs twice"),
        (MIX.replace('"calls"', '"calls":{},"calls"'), "calls occurs twice"),
        (MIX + " " * MAX_MIX_BYTES, str(MAX_MIX_BYTES)),
    ],
)
def test_recorded_calls_that_are_none_are_one_line(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "mix.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StoreError, match=r"mix\.json") as caught:
        read_mix(path)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()
    assert caught.value.__cause__ is None


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data, put = MIX.encode(), draw(st.binary(max_size=4))
    start = draw(st.integers(0, len(data)))
    return data[:start] + put + data[start + len(put) :]


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=80) | damaged())
def test_any_bytes_are_calls_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "mix.json"
    path.write_bytes(data)
    calls: dict[str, int] = {}
    with suppress(StoreError):
        calls = read_mix(path).calls
    assert all(count > 0 and Problem.parse(name) for name, count in calls.items())


# ------------------------------------------------------------------------------------------------------- planted links


def planted(folder: Path) -> tuple[Path, Path]:
    """A cache's directory, and a place outside of it with a file."""
    inside, outside = folder / "cache", folder / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "file").write_text("theirs")
    return inside, outside


@pytest.mark.parametrize("target", ["file", "new"])
def test_links_in_the_cache_directory_are_not_written_through(
    tmp_path: Path, make_verdict: Callable[..., Verdict], make_plan: Callable[..., Plan], target: str
) -> None:
    inside, outside = planted(tmp_path)
    for name in ("c.json.lock", ".c.json.tmp", "environment.json"):
        (inside / name).symlink_to(outside / target)
    location = Location(
        cache=inside / "c.json", runs=inside / "runs", environment_file=inside / "environment.json", explicit=False
    )
    publish(location, HERE, {make_verdict().problem: make_verdict()}, {"f00d": make_plan()})
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"file": "theirs"}
    assert len(read_cache(inside / "c.json", HERE).verdicts) == 1


def test_another_name_of_the_same_file_keeps_what_it_held(tmp_path: Path, make_verdict: Callable[..., Verdict]) -> None:
    inside, outside = planted(tmp_path)
    os.link(outside / "file", inside / "c.json")
    publish(Location.of(HERE, inside / "c.json"), HERE, {make_verdict().problem: make_verdict()}, {})
    assert (outside / "file").read_text() == "theirs"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_readable_file_of_another_owner_is_used(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(document(f'{{"{key(1)}":{verdict(1)}}}'))
    os.chown(tmp_path / "c.json", 65534, 65534)
    contents = read_cache(tmp_path / "c.json", HERE)
    assert (list(contents.verdicts), contents.misses) == ([key(1)], ())


def test_the_limits_are_stated() -> None:
    text = (Path(__file__).parents[2] / "docs" / "files.md").read_text()
    for name in (
        "MAX_CACHE_BYTES",
        "MAX_ENTRY_BYTES",
        "MAX_RUN_BYTES",
        "MAX_PINS_BYTES",
        "MAX_MIX_BYTES",
        "MAX_KEY",
        "MAX_NAME",
    ):
        assert name in text
