"""Shards: what is published where there is no lock, or one that not everybody sees, and how files become one cache."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebook.records import SCHEMA, Environment, Plan, Verdict
from tunebook.store import Location, better_supported, publish, read_any, read_cache
from tunebook.store._places import filesystem_of, may_be_shared

Make = Callable[..., Verdict]
Done = Callable[[subprocess.Popen[str]], str]


def keyed(*verdicts: Verdict) -> dict[str, Verdict]:
    return {verdict.problem: verdict for verdict in verdicts}


def sizes(verdicts: Mapping[str, Verdict]) -> set[int]:
    return {int(key.rpartition("≤")[2]) for key in verdicts}


@pytest.fixture
def location(tmp_path: Path, environment: Environment) -> Location:
    return Location.of(environment, tmp_path / "tuned.json")


@pytest.fixture
def add_shard(location: Location, environment: Environment) -> Callable[..., Path]:
    """``add_shard(name, *verdicts, at=…)``: a shard as another host would leave it, dated so many seconds after 2001."""

    def add(name: str, *verdicts: Verdict, at: float = 0, plans: Mapping[str, Plan] | None = None) -> Path:
        return shard_at(location.cache, environment, name, keyed(*verdicts), at, plans or {})

    return add


def shard_at(
    cache: Path, environment: Environment, name: str, verdicts: Any, at: float, plans: Mapping[str, Plan]
) -> Path:
    folder = Path(f"{cache}.d")
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as elsewhere:
        made = Location.of(environment, Path(elsewhere) / "made.json")
        publish(made, environment, verdicts, plans)
        shutil.copy(made.cache, folder / f"{name}.json")
    date(folder / f"{name}.json", at)
    return folder / f"{name}.json"


def date(path: Path, at: float) -> None:
    os.utime(path, ns=(10**18 + int(at * 10**9),) * 2)


# Where there are no locks.


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_without_locks_a_process_keeps_one_shard_and_the_next_lock_merges_it(
    code: int, location: Location, environment: Environment, make_verdict: Make, child: Any, done: Done
) -> None:
    said = done(child("for n in (1, 2, 3): print(put(n))", location.cache, flock=code)).splitlines()
    assert len(said) == 3
    for line in said:
        assert "problem=None" in line
        assert f"{location.cache}.lock cannot be locked: {os.strerror(code)}" in line
    assert not location.cache.exists()
    (shard,) = Path(f"{location.cache}.d").iterdir()
    assert str(shard) in said[-1]
    for found in (read_cache(location.cache, environment), read_any(location.cache)):
        assert sizes(found.verdicts) == {1, 2, 3}
        assert found.misses == ()
    assert sizes(read_cache(shard, environment).verdicts) == {1, 2, 3}, "a shard is a cache like any other"

    published = publish(location, environment, keyed(make_verdict(16)), {})
    assert (published.problem, published.note, published.shard) == (None, None, None)
    assert sizes(json.loads(location.cache.read_bytes())["verdicts"]) == {1, 2, 3, 16}
    assert not shard.parent.exists()


def test_many_processes_without_locks_lose_nothing(
    location: Location, environment: Environment, child: Any, done: Done
) -> None:
    code = "for n in range(4): assert put(int(sys.argv[4]) * 10 + n).problem is None"
    for process in [child(code, location.cache, w, flock=errno.ENOLCK) for w in range(1, 6)]:
        done(process)
    assert len(list(Path(f"{location.cache}.d").iterdir())) == 5
    contents = read_cache(location.cache, environment)
    assert sizes(contents.verdicts) == {w * 10 + n for w in range(1, 6) for n in range(4)}
    assert contents.misses == ()


def test_a_lock_file_that_cannot_be_opened_is_no_lock(
    location: Location, environment: Environment, make_verdict: Make
) -> None:
    Path(f"{location.cache}.lock").mkdir()
    published = publish(location, environment, keyed(make_verdict(1)), {})
    assert published.problem is None
    assert published.note is not None
    assert "cannot be locked: Is a directory" in published.note
    assert read_cache(location.cache, environment).verdicts == keyed(make_verdict(1))


def test_what_changes_nothing_is_not_written_again(
    location: Location, environment: Environment, make_verdict: Make, add_shard: Callable[..., Path]
) -> None:
    shard = add_shard("other-1-a-0", make_verdict(1))
    published = publish(location, environment, keyed(make_verdict(1)), {})
    assert (published.written, published.problem) == (False, None)
    assert shard.exists()
    assert not location.cache.exists()


# Where locks do not reach other hosts.

#: Every place counts as shared: the file systems that are cannot be mounted here.
SHARED = "import tunebook.store._places; tunebook.store._places.LOCAL = frozenset()\n"


def test_hosts_that_do_not_see_each_others_locks_lose_nothing(
    location: Location, environment: Environment, make_verdict: Make, child: Any, done: Done
) -> None:
    code = f"{SHARED}for n in range(20): assert put(int(sys.argv[4]) * 100 + n).problem is None"
    for process in [child(code, location.cache, host, flock=0) for host in range(1, 5)]:
        done(process)
    contents = read_cache(location.cache, environment)
    assert sizes(contents.verdicts) == {host * 100 + n for host in range(1, 5) for n in range(20)}
    assert contents.misses == ()
    # Here, where the directory is this host's alone, all of it is merged at once.
    assert publish(location, environment, keyed(make_verdict(16)), {}).problem is None
    assert not Path(f"{location.cache}.d").exists()
    assert len(json.loads(location.cache.read_bytes())["verdicts"]) == 81


def test_in_a_shared_directory_a_shard_outlives_a_cache_that_is_replaced_without_it(
    location: Location, environment: Environment, make_verdict: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunebook.store._places.LOCAL", frozenset())
    publish(location, environment, keyed(make_verdict(1)), {})
    before = location.cache.read_bytes()
    publish(location, environment, keyed(make_verdict(2)), {})
    location.cache.write_bytes(before)  # a host that had read the cache before replaces it after
    assert sizes(read_cache(location.cache, environment).verdicts) == {1, 2}
    publish(location, environment, keyed(make_verdict(4)), {})
    assert sizes(json.loads(location.cache.read_bytes())["verdicts"]) == {1, 2, 4}
    # It goes once it was seen merged, ten minutes after it was written.
    (shard,) = Path(f"{location.cache}.d").iterdir()
    os.utime(shard, (shard.stat().st_mtime - 700,) * 2)
    other = shard.with_name("other-1-a-0.json")
    shard.rename(other)
    publish(location, environment, keyed(make_verdict(8)), {})
    assert not other.exists()
    assert len(list(shard.parent.iterdir())) == 1


def replacing(cache: Path, other: Callable[[int], Verdict], times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a new cache is brought to the disk, somebody who sees no lock replaces the old one, so many times."""
    real, count = os.fsync, itertools.count(1)

    def fsync(fd: int) -> None:
        real(fd)
        if "/.tuned.json." in os.readlink(f"/proc/self/fd/{fd}") and (n := next(count)) <= times:
            document = json.loads(cache.read_bytes())
            document["verdicts"] |= {other(n).problem: msgspec.to_builtins(other(n))}
            new = cache.with_name("new")
            new.write_text(json.dumps(document))
            new.replace(cache)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_cache_that_is_replaced_while_ours_is_written_is_merged_again(
    location: Location, environment: Environment, make_verdict: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(location, environment, keyed(make_verdict(1)), {})
    replacing(location.cache, lambda n: make_verdict(100 + n), 2, monkeypatch)
    published = publish(location, environment, keyed(make_verdict(2)), {})
    assert (published.problem, published.note, published.written) == (None, None, True)
    assert sizes(json.loads(location.cache.read_bytes())["verdicts"]) == {1, 2, 101, 102}


def test_a_cache_that_is_replaced_all_the_time_leaves_ours_in_a_shard(
    location: Location, environment: Environment, make_verdict: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(location, environment, keyed(make_verdict(1)), {})
    replacing(location.cache, lambda n: make_verdict(100 + n), 10**6, monkeypatch)
    published = publish(location, environment, keyed(make_verdict(2)), {})
    assert published.problem is None
    assert published.note is not None
    assert "another host" in published.note
    assert 2 not in sizes(json.loads(location.cache.read_bytes())["verdicts"])
    assert {1, 2, 101} <= sizes(read_cache(location.cache, environment).verdicts)


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/home/me", "ext4"),
        ("/mnt/nfs", "nfs4"),
        ("/mnt/nfs/deep/er", "nfs4"),
        ("/mnt/nfs2", "ext4"),
        ("/mnt/with blank/x", "9p"),
        ("/over/x", "tmpfs"),
    ],
)
def test_the_file_system_of_a_directory(directory: str, kind: str) -> None:
    mounts = (
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "30 22 0:50 / /mnt/nfs rw shared:2 master:1 - nfs4 server:/export rw,vers=4.2\n"
        "31 22 0:51 / /mnt/with\\040blank rw - 9p host rw\n"
        "32 22 0:52 / /over rw - ext4 /dev/vdb rw\n"
        "33 32 0:53 / /over rw - tmpfs none rw\n"
        "a line that is none\n"
    )
    assert filesystem_of(directory, mounts) == kind


def test_what_is_not_known_to_be_local_may_be_shared() -> None:
    assert filesystem_of("/x", "") == ""
    assert may_be_shared(Path("/proc/self"))


# Which result stays.


def test_a_better_supported_verdict_about_the_same_tactics_stays(make_verdict: Make) -> None:
    def v(status: str, **fields: Any) -> Verdict:
        return msgspec.structs.replace(make_verdict(), status=status, **fields)

    proven, likely, unresolved = v("proven"), v("likely"), v("unresolved", seen=4, space=8, rounds=10, loss=0.1)
    assert better_supported(proven, likely)
    assert better_supported(likely, unresolved)
    assert not better_supported(unresolved, likely)
    assert not better_supported(proven, v("proven", speedup=1.4))
    assert better_supported(unresolved, v("unresolved", seen=3, space=8, rounds=20))
    assert better_supported(unresolved, v("unresolved", seen=4, space=8, rounds=9, loss=0.1))
    assert not better_supported(unresolved, v("unresolved", seen=4, space=8, rounds=9, loss=0.05))
    other = {"onednn": msgspec.structs.replace(proven.offered["onednn"], version="2")}
    assert not better_supported(proven, v("unresolved", offered=other)), "what was offered has changed"


def test_a_lesser_verdict_of_a_process_that_comes_later_does_not_take_the_place_of_a_proven_one(
    location: Location, environment: Environment, make_verdict: Make
) -> None:
    proven = make_verdict(1)
    left_out = msgspec.structs.replace(proven, status="unresolved", note="left out: the budget was spent")
    publish(location, environment, keyed(proven), {})
    published = publish(location, environment, keyed(left_out, make_verdict(2)), {})
    assert (published.verdicts, published.replaced, published.problem) == (1, 0, None)
    assert published.note is not None
    assert "1 of the verdicts gave way" in published.note
    assert read_cache(location.cache, environment).verdicts == keyed(proven, make_verdict(2))


STATUSES = ("proven", "likely", "unresolved")
FILES = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.dictionaries(
            st.integers(1, 3),
            st.tuples(st.sampled_from(STATUSES), st.sampled_from("12"), st.integers(1, 9)),
            min_size=1,
        ),
    ),
    min_size=1,
    max_size=5,
)


@given(FILES)
@settings(max_examples=40)
def test_readers_see_what_merging_will_give(
    environment: Environment, make_verdict: Make, files: list[tuple[int, dict[int, Any]]]
) -> None:
    """The first file is the cache, the others are shards; each has a date and, by size, a status, version and speed-up."""

    def one(size: int, status: str, version: str, speedup: int) -> Verdict:
        verdict = make_verdict(size, speedup=float(speedup))
        offered = {"onednn": msgspec.structs.replace(verdict.offered["onednn"], version=version)}
        return msgspec.structs.replace(verdict, status=status, offered=offered)

    with tempfile.TemporaryDirectory() as folder:
        location = Location.of(environment, Path(folder) / "tuned.json")
        read = [(at, keyed(*(one(size, *facts) for size, facts in found.items()))) for at, found in files]
        publish(location, environment, read[0][1], {})
        date(location.cache, read[0][0])
        for n, (at, verdicts) in enumerate(read[1:]):
            shard_at(location.cache, environment, f"{n}", verdicts, at, {})
        expected: dict[str, Verdict] = {}
        # as if they had been published one after another, in the order of their dates
        for _, verdicts in sorted(read, key=lambda file: file[0]):
            for key, verdict in verdicts.items():
                if key not in expected or not better_supported(expected[key], verdict):
                    expected[key] = verdict
        assert read_cache(location.cache, environment).verdicts == expected
        extra = make_verdict(64)
        assert publish(location, environment, keyed(extra), {}).problem is None
        assert not Path(f"{location.cache}.d").exists()
        assert read_cache(location.cache, environment).verdicts == {**expected, **keyed(extra)}


def test_of_two_plans_the_later_one_stays(
    location: Location, environment: Environment, make_plan: Callable[..., Plan], add_shard: Callable[..., Path]
) -> None:
    add_shard("b", at=2, plans={"f00d": make_plan(limit="2x")})
    add_shard("a", at=5, plans={"f00d": make_plan(limit="5x")})
    add_shard("c", at=3, plans={"f00d": make_plan(limit="3x"), "beef": make_plan("beef")})
    contents = read_cache(location.cache, environment)
    assert (contents.plans["f00d"].limit, set(contents.plans)) == ("5x", {"f00d", "beef"})
    assert (len(contents.plans), len(contents.verdicts)) == (2, 0)
    assert "files" in repr(contents.plans)
    assert "nothing" not in contents.plans


@pytest.mark.parametrize("code", [None, errno.ENOSYS])
def test_a_clock_that_is_put_back_does_not_bring_an_old_result_back(
    code: int | None, location: Location, environment: Environment, make_verdict: Make, child: Any, done: Done
) -> None:
    publish(location, environment, keyed(make_verdict(7, speedup=3.0)), {})
    ahead = location.cache.stat().st_mtime + 10**6
    os.utime(location.cache, (ahead, ahead))
    assert "problem=None" in done(child("print(put(7))", location.cache, flock=code))
    assert read_cache(location.cache, environment).verdicts == keyed(make_verdict(7, speedup=1.5))
    publish(location, environment, keyed(make_verdict(1)), {})
    assert read_cache(location.cache, environment).verdicts == keyed(make_verdict(7, speedup=1.5), make_verdict(1))


# Bounds, and files that are no good.


def test_the_number_of_shards_that_are_read_is_bounded(
    location: Location,
    environment: Environment,
    make_verdict: Make,
    add_shard: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tunebook.store._shards.MAX_SHARDS", 3)
    for n in range(1, 8):
        add_shard(f"{n}", make_verdict(n), at=n)
    contents = read_cache(location.cache, environment)
    assert sizes(contents.verdicts) == {5, 6, 7}, "the newest are read"
    (miss,) = contents.misses
    assert (miss.kind, "4 of its files are not read" in miss.detail) == ("entry", True)
    seen = [sizes(contents.verdicts)]
    for n in range(8, 11):
        publish(location, environment, keyed(make_verdict(n)), {})
        seen.append(sizes(json.loads(location.cache.read_bytes())["verdicts"]))
    assert seen[1:] == [{1, 2, 3, 8}, {*range(1, 7), 8, 9}, {*range(1, 11)}], "the oldest are merged first"


def test_the_bytes_of_shards_that_are_read_are_bounded(
    location: Location,
    environment: Environment,
    make_verdict: Make,
    add_shard: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = add_shard("1", make_verdict(1), at=1)
    add_shard("2", make_verdict(2), at=2)
    with one.with_name("3.json").open("wb") as file:
        file.truncate(2**40)
    monkeypatch.setattr("tunebook.store._shards.MAX_SHARD_BYTES", one.stat().st_size + 10)
    contents = read_cache(location.cache, environment)
    assert sizes(contents.verdicts) == {2}
    assert "2 of its files are not read" in contents.misses[0].detail


def test_what_is_wrong_with_a_shard_is_named_and_the_rest_is_served(
    location: Location, environment: Environment, make_verdict: Make, add_shard: Callable[..., Path], tmp_path: Path
) -> None:
    publish(location, environment, keyed(make_verdict(1)), {})
    good = add_shard("good", make_verdict(2), at=1)
    folder = good.parent
    (folder / "torn.json").write_bytes(good.read_bytes()[:-40])
    (folder / "empty.json").touch()
    document = json.loads(good.read_bytes())
    (folder / "newer.json").write_text(json.dumps({**document, "schema": SCHEMA + 1}))
    elsewhere = {**document, "environment": {"hard": {"device": "other"}, "soft": {}}}
    (folder / "elsewhere.json").write_text(json.dumps(elsewhere))
    document["verdicts"]["linear|N=64,K=32|bf16|M≤4"] = {"winner": 7}
    (folder / "half.json").write_text(json.dumps(document))
    outside = tmp_path / "outside.json"
    outside.write_bytes(good.read_bytes().replace(b"M\xe2\x89\xa42", b"M\xe2\x89\xa464"))
    (folder / "link.json").symlink_to(outside)
    os.mkfifo(folder / "pipe.json")
    (folder / "directory.json").mkdir()
    (folder / "notes.txt").write_text("not a shard")
    (folder / ".hidden.json").write_text("not a shard")

    contents = read_cache(location.cache, environment)
    assert sizes(contents.verdicts) == {1, 2}, "a link out of the directory is not followed"
    said = {Path(miss.where.partition(",")[0]).name: miss for miss in contents.misses}
    assert set(said) == {"torn.json", "empty.json", "newer.json", "elsewhere.json", "half.json"}
    assert {miss.kind for miss in contents.misses} == {"entry"}
    assert "isa" in said["elsewhere.json"].detail
    assert "newer" in said["newer.json"].detail

    published = publish(location, environment, keyed(make_verdict(16)), {})
    assert published.problem is None
    assert published.note is not None
    for name in ("torn", "half", "empty"):
        assert f"{name}.json.broken" in published.note
    assert sizes(json.loads(location.cache.read_bytes())["verdicts"]) == {1, 2, 16}
    assert {path.name for path in folder.iterdir()} == {
        "torn.json.broken", "half.json.broken", "empty.json.broken", "newer.json", "elsewhere.json",
        "link.json", "pipe.json", "directory.json", "notes.txt", ".hidden.json",
    }  # fmt: skip
    assert len(read_cache(location.cache, environment).misses) == 2


def test_what_killed_writers_of_shards_left_is_swept(
    location: Location, environment: Environment, make_verdict: Make, add_shard: Callable[..., Path]
) -> None:
    folder = add_shard("1", make_verdict(1), at=1).parent
    left = folder / ".host-1-a-0.json.1-b.tmp"
    left.write_text("half")
    os.utime(left, (0, 0))
    assert read_cache(location.cache, environment).misses == ()
    publish(location, environment, keyed(make_verdict(2)), {})
    assert not folder.exists()


def test_a_process_killed_while_it_kept_a_broken_cache_aside_leaves_one_copy(
    location: Location, environment: Environment, make_verdict: Make
) -> None:
    location.cache.write_text("broken")
    os.link(location.cache, f"{location.cache}.broken-20200102_030405")
    assert publish(location, environment, keyed(make_verdict(1)), {}).problem is None
    (aside,) = location.cache.parent.glob("*.broken-*")
    assert (aside.name, aside.read_text()) == ("tuned.json.broken-20200102_030405", "broken")
    assert read_cache(location.cache, environment).verdicts == keyed(make_verdict(1))


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="takes a file system that keeps any date")
def test_a_date_beyond_all_others_costs_nothing(environment: Environment, make_verdict: Make) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        location = Location.of(environment, Path(folder) / "tuned.json")
        publish(location, environment, keyed(make_verdict(1)), {})
        os.utime(location.cache, (2**62, 2**62))
        assert publish(location, environment, keyed(make_verdict(2)), {}).problem is None
        assert read_cache(location.cache, environment).verdicts == keyed(make_verdict(1), make_verdict(2))
