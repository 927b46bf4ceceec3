"""Publishing: merged, atomic, and never in the way of a tuning."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from tunebook import records
from tunebook.envs import envs
from tunebook.records import SCHEMA, Environment, Header, Plan, Verdict
from tunebook.store import Location, Published, publish, read_cache
from tunebook.store import publish as publish_function

Make = Callable[..., Verdict]
publish_module = sys.modules[publish_function.__module__]


def keyed(*verdicts: Verdict) -> dict[str, Verdict]:
    return {verdict.problem: verdict for verdict in verdicts}


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


@pytest.fixture
def location(tmp_path: Path, environment: Environment) -> Location:
    return Location.of(environment, tmp_path / "tuned.json")


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def kept(published: Published) -> None:
    assert published.problem is None
    assert published.written


def test_the_first_publish_makes_directory_and_file(
    tmp_path: Path, environment: Environment, make_verdict: Make, make_plan: Callable[..., Plan]
) -> None:
    location = Location.of(environment, tmp_path / "a" / "b" / "tuned.json")
    published = publish(location, environment, keyed(make_verdict(1), make_verdict(16)), {"f00d": make_plan()})
    assert published == Published(path=location.cache, verdicts=2, replaced=0, written=True)
    assert leftovers(location.cache.parent) == ["tuned.json"]
    contents = read_cache(location.cache, environment)
    assert contents.verdicts == keyed(make_verdict(1), make_verdict(16))
    assert contents.plans == {"f00d": make_plan()}


def test_ours_replace_the_same_key_and_others_stay(
    location: Location, environment: Environment, make_verdict: Make, make_plan: Callable[..., Plan]
) -> None:
    publish(location, environment, keyed(make_verdict(1), make_verdict(16)), {"f00d": make_plan("f00d")})
    better = make_verdict(16, speedup=3.0)
    published = publish(
        location, environment, keyed(make_verdict(1), better, make_verdict(32)), {"beef": make_plan("beef")}
    )
    assert (published.verdicts, published.replaced) == (3, 1)
    contents = read_cache(location.cache, environment)
    assert contents.verdicts == keyed(make_verdict(1), better, make_verdict(32))
    assert set(contents.plans) == {"f00d", "beef"}


def test_the_file_is_sorted_readable_and_the_same_in_any_order(
    tmp_path: Path, environment: Environment, make_verdict: Make, make_plan: Callable[..., Plan]
) -> None:
    some = [make_verdict(size, op=op) for size in (1, 16) for op in ("linear", "experts")]
    plans = [make_plan("f00d"), make_plan("beef")]
    written = []
    for name, verdicts, planned in (("a", some, plans), ("b", some[::-1], plans[::-1])):
        location = Location.of(environment, tmp_path / name)
        kept(publish(location, environment, keyed(*verdicts), {plan.fingerprint: plan for plan in planned}))
        written.append(location.cache.read_bytes())
    # One after the other comes to the same as all at once.
    location = Location.of(environment, tmp_path / "c")
    for verdict in some:
        kept(publish(location, environment, keyed(verdict), {}))
    kept(publish(location, environment, {}, {plan.fingerprint: plan for plan in plans}))
    written.append(location.cache.read_bytes())
    assert written[0] == written[1] == written[2]
    text = written[0].decode()
    document = json.loads(text)
    assert document["schema"] == SCHEMA
    assert list(document["verdicts"]) == sorted(document["verdicts"])
    assert list(document["plans"]) == sorted(document["plans"])
    assert "M≤16" in text
    assert text.count("\n") > 50
    assert text.endswith("}\n")


def test_a_publish_that_changes_nothing_leaves_the_file_alone(
    location: Location, environment: Environment, make_verdict: Make, make_plan: Callable[..., Plan]
) -> None:
    some = keyed(make_verdict(1), make_verdict(16))
    publish(location, environment, some, {"f00d": make_plan()})
    before, status = location.cache.read_bytes(), location.cache.stat()
    warmer = Environment(hard=environment.hard, soft={"load": "9"})
    published = publish(location, warmer, keyed(make_verdict(16)), {"f00d": make_plan()})
    assert published == Published(path=location.cache, verdicts=1, replaced=0)
    after = location.cache.stat()
    assert location.cache.read_bytes() == before
    assert (after.st_mtime_ns, after.st_ino) == (status.st_mtime_ns, status.st_ino)


def test_nothing_to_publish_creates_nothing(location: Location, environment: Environment) -> None:
    assert publish(location, environment, {}, {}) == Published(path=location.cache, verdicts=0, replaced=0)
    assert list(location.cache.parent.iterdir()) == []


def test_an_empty_file_is_filled(location: Location, environment: Environment, make_verdict: Make) -> None:
    location.cache.touch()
    published = publish(location, environment, keyed(make_verdict()), {})
    kept(published)
    assert published.note is None
    assert leftovers(location.cache.parent) == ["tuned.json"]


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_permissions_follow_the_umask(
    location: Location, environment: Environment, make_verdict: Make, mask: int
) -> None:
    with umask(mask):
        kept(publish(location, environment, keyed(make_verdict(1)), {}))
        kept(publish(location, environment, keyed(make_verdict(2)), {}))
    assert stat.S_IMODE(location.cache.stat().st_mode) == 0o666 & ~mask


def test_the_default_place_describes_its_environment(
    tmp_path: Path, environment: Environment, make_verdict: Make
) -> None:
    with envs.TUNEBOOK_CACHE_DIR.override(tmp_path):
        location = Location.of(environment, None)
    path = location.environment_file
    assert path is not None
    publish(location, environment, keyed(make_verdict()), {})
    written = path.read_bytes()
    assert json.loads(written) == {"digest": environment.digest, "hard": environment.hard}
    inode = path.stat().st_ino
    publish(location, environment, keyed(make_verdict(2)), {})
    assert path.stat().st_ino == inode
    path.write_text("scribbled over")
    publish(location, environment, {}, {})
    assert path.read_bytes() == written
    assert leftovers(path.parent) == ["environment.json", "winners.json"]


def test_a_link_stays_a_link(tmp_path: Path, environment: Environment, make_verdict: Make) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "kept.json", tmp_path / "link.json"
    link.symlink_to(real)
    for size in (1, 2):
        kept(publish(Location.of(environment, link), environment, keyed(make_verdict(size)), {}))
        assert link.is_symlink()
    assert len(read_cache(real, environment).verdicts) == 2
    assert leftovers(tmp_path / "real") == ["kept.json"]
    assert not (tmp_path / "link.json.lock").exists()


# Files that are not ours to overwrite.


def refused(location: Location, environment: Environment, verdict: Verdict, *says: str) -> None:
    before = location.cache.read_bytes()
    names = leftovers(location.cache.parent)
    published = publish(location, environment, keyed(verdict), {})
    assert published.problem is not None
    assert published.problem.isprintable()
    for text in (str(location.cache), *says):
        assert text in published.problem
    assert (published.verdicts, published.written) == (0, False)
    assert location.cache.read_bytes() == before
    assert leftovers(location.cache.parent) == names


def test_another_environment_is_left_byte_for_byte(
    location: Location, environment: Environment, make_verdict: Make
) -> None:
    publish(location, environment, keyed(make_verdict(1)), {})
    here = Environment(hard={**environment.hard, "isa": "avx2", "cores": "16"})
    refused(location, here, make_verdict(2), "isa: avx2 ≠ avx512", "cores: 16 ≠ 8", "--cache")


def test_a_newer_schema_is_left_byte_for_byte(location: Location, environment: Environment, make_verdict: Make) -> None:
    location.cache.write_text(json.dumps({"schema": SCHEMA + 1, "verdicts": ["of a form to come"]}))
    refused(location, environment, make_verdict(), f"schema {SCHEMA + 1}", "newer")


def test_a_newer_schema_that_still_reads_is_left_too(
    location: Location, environment: Environment, make_verdict: Make
) -> None:
    publish(location, environment, keyed(make_verdict(1)), {})
    document = json.loads(location.cache.read_bytes())
    location.cache.write_text(json.dumps({**document, "schema": SCHEMA + 1}))
    refused(location, environment, make_verdict(2), "newer")


def test_a_run_file_is_left(location: Location, environment: Environment, make_verdict: Make, header: Header) -> None:
    location.cache.write_bytes(msgspec.json.encode(header) + b"\n")
    refused(location, environment, make_verdict(), "run file")


@pytest.mark.parametrize("content", ['{"name": "package"}', "[1, 2]"])
def test_a_file_of_another_program_is_left(
    location: Location, environment: Environment, make_verdict: Make, content: str
) -> None:
    location.cache.write_text(content)
    refused(location, environment, make_verdict(), "not a cache")


def test_a_file_that_is_too_large_is_left(location: Location, environment: Environment, make_verdict: Make) -> None:
    with location.cache.open("wb") as file:
        file.truncate(2**40)
    published = publish(location, environment, keyed(make_verdict()), {})
    assert published.problem is not None
    assert "more than" in published.problem
    assert location.cache.stat().st_size == 2**40


def test_a_result_that_would_be_too_large_to_read_is_not_written(
    location: Location, environment: Environment, make_verdict: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(location, environment, keyed(make_verdict(1)), {})
    monkeypatch.setattr("tunebook.store._fold.MAX_CACHE_BYTES", location.cache.stat().st_size + 10)
    refused(location, environment, make_verdict(2), "more than")


# Broken ones.


def aside(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.broken-*"))


def test_a_broken_file_is_kept_aside(location: Location, environment: Environment, make_verdict: Make) -> None:
    for n, content in enumerate([b'{"schema": 1, "verd', b"\x00\xff" * 100], start=1):
        location.cache.write_bytes(content)
        published = publish(location, environment, keyed(make_verdict()), {})
        kept(published)
        assert published.note is not None
        assert "not JSON" in published.note
        assert len(aside(location.cache.parent)) == n
        assert content in [path.read_bytes() for path in aside(location.cache.parent)]
        assert read_cache(location.cache, environment).verdicts == keyed(make_verdict())
    for path in aside(location.cache.parent):
        assert re.fullmatch(r"tuned\.json\.broken-\d{8}_\d{6}(-\d+)?", path.name)


def test_entries_that_cannot_be_read_are_kept_aside_and_the_rest_merged(
    location: Location, environment: Environment, make_verdict: Make
) -> None:
    publish(location, environment, keyed(make_verdict(1), make_verdict(2)), {})
    document = json.loads(location.cache.read_bytes())
    document["verdicts"][make_verdict(1).problem]["winner"] = 7
    location.cache.write_text(json.dumps(document))
    before = location.cache.read_bytes()
    published = publish(location, environment, keyed(make_verdict(4)), {})
    kept(published)
    assert published.note is not None
    (left,) = aside(location.cache.parent)
    assert left.name in published.note
    assert left.read_bytes() == before
    contents = read_cache(location.cache, environment)
    assert contents.verdicts == keyed(make_verdict(2), make_verdict(4))
    assert contents.misses == ()


@pytest.mark.parametrize("content", ['{"schema": 0}', '{"schema": 1, "environment": 5}', '{"schema": 1}'])
def test_an_older_schema_or_a_file_without_environment_is_kept_aside(
    location: Location, environment: Environment, make_verdict: Make, content: str
) -> None:
    location.cache.write_text(content)
    kept(publish(location, environment, keyed(make_verdict()), {}))
    (left,) = aside(location.cache.parent)
    assert left.read_text() == content


def test_where_links_do_not_work_a_broken_file_is_renamed(
    location: Location, environment: Environment, make_verdict: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    location.cache.write_text("broken")
    kept(publish(location, environment, keyed(make_verdict()), {}))
    (left,) = aside(location.cache.parent)
    assert left.read_text() == "broken"


# Bad places.


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permissions"),
        (errno.EIO, "--cache"),
    ],
)
@pytest.mark.parametrize("call", ["replace", "fsync", "open"])
def test_a_failing_disk_is_a_problem_in_words_and_changes_nothing(
    location: Location,
    environment: Environment,
    make_verdict: Make,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    code: int,
    says: str,
) -> None:
    publish(location, environment, keyed(make_verdict(1)), {})
    real = os.open

    def fail(*arguments: object, **__: object) -> int:
        if call == "open" and not str(arguments[0]).endswith(".tmp"):
            return real(*arguments)  # type: ignore[arg-type]
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        refused(location, environment, make_verdict(2), os.strerror(code), says)
    kept(publish(location, environment, keyed(make_verdict(2)), {}))


def test_what_cannot_be_merged_stays_in_a_shard_and_is_served_from_there(
    location: Location, environment: Environment, make_verdict: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a broken cache that can neither be linked nor renamed, so that nothing can take its place."""
    location.cache.write_text("broken")

    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", fail)
        patched.setattr(os, "rename", fail)
        published = publish(location, environment, keyed(make_verdict(1)), {})
    assert published.problem is None
    assert published.note is not None
    assert published.shard is not None
    for text in (str(published.shard), str(location.cache), os.strerror(errno.EPERM), "permissions"):
        assert text in published.note
    assert location.cache.read_text() == "broken"
    assert read_cache(location.cache, environment).verdicts == keyed(make_verdict(1))
    kept(publish(location, environment, keyed(make_verdict(2)), {}))
    assert read_cache(location.cache, environment).verdicts == keyed(make_verdict(1), make_verdict(2))
    assert len(aside(location.cache.parent)) == 1
    assert not published.shard.parent.exists()


@pytest.mark.parametrize("links", [True, False])
def test_a_broken_file_is_back_in_its_place_when_the_new_one_cannot_be_written(
    location: Location, environment: Environment, make_verdict: Make, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    location.cache.write_text("broken")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    if not links:
        monkeypatch.setattr(os, "link", fail)
    refused(location, environment, make_verdict(), "No space left")


def test_no_directory_can_be_made(tmp_path: Path, environment: Environment, make_verdict: Make) -> None:
    (tmp_path / "file").write_text("")
    places = [
        tmp_path / "file" / "tuned.json",
        tmp_path / "file" / "deeper" / "tuned.json",
        Path("/proc/none/tuned.json"),
    ]
    for place in places:
        published = publish(Location.of(environment, place), environment, keyed(make_verdict()), {})
        assert published.problem is not None
        assert str(place) in published.problem
        assert "TUNEBOOK_CACHE_DIR" in published.problem


def test_the_default_place_cannot_be_made(tmp_path: Path, environment: Environment, make_verdict: Make) -> None:
    (tmp_path / "file").write_text("")
    with envs.TUNEBOOK_CACHE_DIR.override(tmp_path / "file"):
        published = publish(Location.of(environment, None), environment, keyed(make_verdict()), {})
    assert published.problem is not None
    assert "winners.json" in published.problem


def test_a_directory_deleted_meanwhile_is_made_again(
    tmp_path: Path, environment: Environment, make_verdict: Make
) -> None:
    location = Location.of(environment, tmp_path / "a" / "tuned.json")
    publish(location, environment, keyed(make_verdict(1)), {})
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    (tmp_path / "a").rmdir()
    kept(publish(location, environment, keyed(make_verdict(2)), {}))


def test_a_lock_that_is_held_is_waited_for_and_then_the_shard_stays(
    location: Location, environment: Environment, make_verdict: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(location, environment, keyed(make_verdict(1)), {})
    before = location.cache.read_bytes()
    monkeypatch.setattr(publish_module, "LOCK_TIMEOUT_S", 0.1)
    lock = f"{location.cache}.lock"
    command = [sys.executable, "-c", HOLD, lock]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        for size in (2, 3):
            published = publish(location, environment, keyed(make_verdict(size)), {})
            assert (published.problem, published.written, published.verdicts) == (None, True, 1)
            assert published.note is not None
            assert f"another process has held {lock}" in published.note
            assert published.shard is not None
            assert str(published.shard) in published.note
        assert location.cache.read_bytes() == before
        assert published.shard is not None
        assert list(published.shard.parent.iterdir()) == [published.shard], "a process keeps one shard"
        assert read_cache(location.cache, environment).verdicts == keyed(*map(make_verdict, (1, 2, 3)))
        # What changes nothing does not wait.
        assert publish(location, environment, keyed(make_verdict(1), make_verdict(2)), {}).note is None
        # A process that dies holding the lock does not block the others.
        process.kill()
        process.wait()
    kept(publish(location, environment, keyed(make_verdict(4)), {}))
    assert leftovers(location.cache.parent) == ["tuned.json"]
    assert read_cache(location.cache, environment).verdicts == keyed(*map(make_verdict, (1, 2, 3, 4)))


def test_who_has_little_patience_leaves_a_shard_sooner(
    location: Location, environment: Environment, make_verdict: Make
) -> None:
    command = [sys.executable, "-c", HOLD, f"{location.cache}.lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        published = publish(location, environment, keyed(make_verdict(1)), {}, patience=0.25)
        process.kill()
    assert (published.problem, published.written, published.shard is None) == (None, True, False)
    assert published.note is not None
    assert f"another process has held {location.cache}.lock for 0.25 s" in published.note
    assert read_cache(location.cache, environment).verdicts == keyed(make_verdict(1))


HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_what_killed_writers_left_is_swept_after_a_while(
    location: Location, environment: Environment, make_verdict: Make
) -> None:
    old, new = location.cache.with_name(".tuned.json.1-a.tmp"), location.cache.with_name(".tuned.json.2-b.tmp")
    other = location.cache.with_name(".other.json.1-a.tmp")
    for path in (old, new, other):
        path.write_text("half")
    ahead = location.cache.with_name(".tuned.json.3-c.tmp")  # it was written before the clock was set back
    ahead.write_text("half")
    for path, age in ((old, 7200), (other, 7200), (ahead, -7200)):
        os.utime(path, (time.time() - age,) * 2)
    kept(publish(location, environment, keyed(make_verdict()), {}))
    assert [path.exists() for path in (old, ahead, new, other)] == [False, False, True, True]


# What must not get into a file.


def test_a_result_that_does_not_read_back_is_named_and_the_rest_kept(
    location: Location, environment: Environment, make_verdict: Make, make_plan: Callable[..., Plan]
) -> None:
    good = make_verdict(1)
    torn = msgspec.structs.replace(make_verdict(4), note="\udc80")
    verdicts = {**keyed(good, torn), "elsewhere": make_verdict(8)}
    published = publish(location, environment, verdicts, {"beef": make_plan("f00d")})
    assert published.verdicts == 1
    assert published.problem is not None
    assert "3 of the results" in published.problem
    assert torn.problem in published.problem
    contents = read_cache(location.cache, environment)
    assert (contents.verdicts, contents.plans, contents.misses) == (keyed(good), {}, ())


# Many at once.

WRITER = """
import sys
from pathlib import Path
import msgspec
from tunebook.records import Environment, Verdict
from tunebook.store import Location, publish, read_cache

path, environment, template, number = sys.argv[1:]
environment = msgspec.json.decode(environment, type=Environment)
template = msgspec.json.decode(template, type=Verdict)
for n in range(10):
    key = f"linear|writer={number}|bf16|M\\u2264{n}"
    published = publish(
        Location.of(environment, path), environment, {key: msgspec.structs.replace(template, problem=key)}, {}
    )
    assert published.problem is None and published.written, published
    contents = read_cache(Path(path), environment)
    assert contents.misses == (), contents.misses
    assert key in contents.verdicts
"""


def test_eight_processes_lose_nothing(location: Location, environment: Environment, make_verdict: Make) -> None:
    source = Path(records.__file__).parents[2]
    arguments = [
        str(location.cache),
        msgspec.json.encode(environment).decode(),
        msgspec.json.encode(make_verdict()).decode(),
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, *arguments, str(number)],
            env={**os.environ, "PYTHONPATH": str(source)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    contents = read_cache(location.cache, environment)
    assert contents.misses == ()
    assert set(contents.verdicts) == {f"linear|writer={w}|bf16|M≤{n}" for w in range(8) for n in range(10)}
    assert leftovers(location.cache.parent) == ["tuned.json"]
