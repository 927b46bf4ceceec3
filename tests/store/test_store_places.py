"""Places in which nothing can be kept: what a publish says there, and that reading goes on. The places are real ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tunebook.records import Environment, Verdict
from tunebook.store import Location, publish, read_cache

Make = Callable[..., Verdict]
Done = Callable[[subprocess.Popen[str]], str]
Mount = Callable[..., Path]

NOBODY = "os.setgroups([]); os.setgid(65534); os.setuid(65534)"
#: What a child says of a publish: what it could not keep, and what there is to read.
SAY = "print(published.problem or 'kept', '|', published.note, '|', len(read_cache(location.cache, environment).verdicts))"


def keyed(*verdicts: Verdict) -> dict[str, Verdict]:
    return {verdict.problem: verdict for verdict in verdicts}


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """``mount(options)``: a small file system of its own in memory, which only root may make."""
    made: list[Path] = []

    def make(options: str) -> Path:
        folder = tmp_path / f"mount{len(made)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
            pytest.skip("a file system of a chosen size can only be mounted by root")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", str(folder)], check=True)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")} - {"tuned.json.lock"}


def test_a_disk_that_is_full(mount: Mount, environment: Environment, make_verdict: Make) -> None:
    folder = mount("size=64k")
    location = Location.of(environment, folder / "tuned.json")
    assert publish(location, environment, keyed(make_verdict(1)), {}).problem is None
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    published = publish(location, environment, keyed(make_verdict(2)), {})
    assert published.problem is not None
    assert f"{location.cache} was not updated: No space left on device (free some space" in published.problem
    assert "--cache or TUNEBOOK_CACHE_DIR" in published.problem
    assert (published.verdicts, published.written, published.shard) == (0, False, None)
    assert names(folder) == {"tuned.json", "filler"}
    assert read_cache(location.cache, environment).verdicts == keyed(make_verdict(1))
    filler.unlink()
    assert publish(location, environment, keyed(make_verdict(2)), {}).problem is None
    assert read_cache(location.cache, environment).verdicts == keyed(make_verdict(1), make_verdict(2))


def test_a_disk_with_room_for_what_is_new_alone_keeps_that(
    tmp_path: Path, mount: Mount, environment: Environment, make_verdict: Make
) -> None:
    folder = mount("size=128k")
    location, elsewhere = (Location.of(environment, at / "tuned.json") for at in (folder, tmp_path))
    publish(elsewhere, environment, keyed(*(make_verdict(size) for size in range(1, 120))), {})
    shutil.copy(elsewhere.cache, location.cache)
    assert location.cache.stat().st_size > 64 * 1024, "there is no room for a second one"
    published = publish(location, environment, keyed(make_verdict(128)), {})
    assert published.problem is None
    assert published.shard is not None
    assert published.note is not None
    assert "No space left on device" in published.note
    assert len(read_cache(location.cache, environment).verdicts) == 120


def test_a_disk_without_free_inodes(mount: Mount, environment: Environment, make_verdict: Make) -> None:
    folder = mount("size=1m,nr_inodes=2")
    location = Location.of(environment, folder / "tuned.json")
    published = publish(location, environment, keyed(make_verdict(2)), {})
    assert published.problem is not None
    assert "No space left on device" in published.problem
    assert "df -i" in published.problem
    assert not location.cache.exists()


def test_a_read_only_file_system(mount: Mount, environment: Environment, make_verdict: Make) -> None:
    folder = mount("size=1m")
    location = Location.of(environment, folder / "tuned.json")
    assert publish(location, environment, keyed(make_verdict(1)), {}).problem is None
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    published = publish(location, environment, keyed(make_verdict(2)), {})
    assert published.problem is not None
    assert "Read-only file system" in published.problem
    assert read_cache(location.cache, environment).verdicts == keyed(make_verdict(1))
    # What is known already needs no place to write to.
    assert publish(location, environment, keyed(make_verdict(1)), {}).problem is None


def test_files_may_not_be_that_large(tmp_path: Path, child: Any, done: Done) -> None:
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (256, 256))
published = put(1)
{SAY}
"""
    said = done(child(code, tmp_path / "tuned.json"))
    assert "was not updated: File too large (raise the limit on the size of files, ulimit -f" in said
    assert said.endswith("| 0\n")
    assert names(tmp_path) == set()


@pytest.fixture
def open_to_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that other users can reach; those of pytest are its user's alone."""
    folder = Path("/tmp") / f"tunebook-test-{os.getpid()}-{tmp_path_factory.mktemp('x').name}"
    folder.mkdir()
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def may_not(folder: Path) -> str:
    """Python that makes this process one that may not write to `folder`: root may everything."""
    if os.geteuid() == 0:
        return NOBODY
    folder.chmod(0o555)
    return "pass"


def test_a_read_only_directory(
    open_to_all: Path, environment: Environment, make_verdict: Make, child: Any, done: Done
) -> None:
    location = Location.of(environment, open_to_all / "tuned.json")
    publish(location, environment, keyed(make_verdict(16)), {})
    before = names(open_to_all)
    said = done(child(f"{may_not(open_to_all)}; published = put(2)\n{SAY}", location.cache))
    assert f"{location.cache} was not updated" in said
    assert "Permission denied (check the permissions of the directory" in said
    assert "--cache or TUNEBOOK_CACHE_DIR" in said
    assert said.endswith("| 1\n"), "what is there is read"
    assert names(open_to_all) == before
    said = done(child(f"{may_not(open_to_all)}; published = put(16)\n{SAY}", location.cache))
    assert said == "kept | None | 1\n"


def test_a_directory_in_which_another_user_may_only_add_files(
    open_to_all: Path, environment: Environment, make_verdict: Make, child: Any, done: Done
) -> None:
    """With the sticky bit, as /tmp has it: another user's cache cannot be replaced, and ours is kept beside it."""
    if os.geteuid() != 0:
        pytest.skip("takes two users")
    open_to_all.chmod(0o1777)
    location = Location.of(environment, open_to_all / "tuned.json")
    publish(location, environment, keyed(make_verdict(16)), {})
    said = done(child(f"{NOBODY}; published = put(2)\n{SAY}", location.cache))
    assert said.startswith("kept | ")
    assert f"could not be merged into {location.cache} yet" in said
    assert said.endswith("| 2\n")
    assert len(read_cache(location.cache, environment).verdicts) == 2
    assert publish(location, environment, keyed(make_verdict(1)), {}).problem is None
    assert not Path(f"{location.cache}.d").exists()


@pytest.mark.parametrize("user", [65534, 54321])
def test_a_user_without_a_home(user: int, tmp_path: Path, child: Any, done: Done) -> None:
    """One has a home that does not exist, the other is not known to the system at all."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    code = f"""
import platformdirs
for name in ("HOME", "XDG_CACHE_HOME", "TUNEBOOK_CACHE_DIR"):
    os.environ.pop(name, None)
os.setgroups([]); os.setgid({user}); os.setuid({user})
location = Location.of(environment)
published = put(1)
{SAY}
"""
    said = done(child(code, tmp_path / "unused.json"))
    assert re.search(r"winners\.json (was not updated|cannot be read, so it is not updated): ", said)
    assert "choose another place with --cache or TUNEBOOK_CACHE_DIR" in said
    assert said.endswith("| 0\n")
    if user == 54321:
        assert "no-home-directory-is-known" in said


@pytest.mark.parametrize("moment", ["shard", "lock", "cache"])
def test_a_directory_that_is_deleted_while_it_is_written_to_is_made_again(
    moment: str, tmp_path: Path, environment: Environment, make_verdict: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = Location.of(environment, tmp_path / "a" / "tuned.json")
    ends = {"shard": (".d", ".tmp"), "lock": ("a", ".lock"), "cache": ("a", ".tmp")}[moment]
    real = os.open
    deleted: list[Path] = []

    def delete(path: Any, *arguments: Any, **named: Any) -> int:
        at = Path(os.fsdecode(path))
        if not deleted and at.parent.name.endswith(ends[0]) and at.name.endswith(ends[1]):
            shutil.rmtree(tmp_path / "a")
            deleted.append(at)
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "open", delete)
    published = publish(location, environment, keyed(make_verdict(1)), {})
    assert deleted
    assert (published.problem, published.written) == (None, True)
    assert read_cache(location.cache, environment).verdicts == keyed(make_verdict(1))
    assert names(tmp_path / "a") == {"tuned.json"}


def test_a_directory_that_is_deleted_again_and_again_is_told_of(
    tmp_path: Path, environment: Environment, make_verdict: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = Location.of(environment, tmp_path / "a" / "tuned.json")
    real = os.fsync

    def delete(fd: int) -> None:
        real(fd)
        shutil.rmtree(tmp_path / "a", ignore_errors=True)

    monkeypatch.setattr(os, "fsync", delete)
    published = publish(location, environment, keyed(make_verdict(1)), {})
    assert published.problem is not None
    assert str(location.cache) in published.problem
    assert (published.verdicts, published.written) == (0, False)


def test_no_cache_of_a_path_that_goes_through_a_file_or_a_device(environment: Environment, make_verdict: Make) -> None:
    for place in ("/dev/null/tuned.json", "/dev/full/deeper/tuned.json"):
        published = publish(Location.of(environment, place), environment, keyed(make_verdict()), {})
        assert published.problem is not None
        assert place in published.problem
        assert "Not a directory; choose another place with --cache or TUNEBOOK_CACHE_DIR" in published.problem
