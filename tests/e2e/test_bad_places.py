"""Tunings whose results cannot be kept: they serve all the same, and say what is not kept, why, and what to do."""

from __future__ import annotations

import logging
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

Cli = Callable[..., subprocess.CompletedProcess[str]]

TUNE = (
    "tune",
    "tiny-moe",
    "--decode",
    "1",
    "--prefill",
    "2",
    "--budget",
    "2",
    "--op",
    "experts",
    "--only-runner",
    "torch",
)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system without a free byte, which only root can have made."""
    folder = tmp_path / "full"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("a small file system can only be mounted by root")
    with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def not_kept(demo: Any, cache: Path, words: str, caplog: pytest.LogCaptureFixture) -> None:
    """A tuning whose cache is to be `cache` serves what it found, and says why nothing is kept."""
    scale = demo.op()
    with caplog.at_level(logging.WARNING, "tunebook"):
        block = scale.tune(cache=cache)
    assert block.outcome.tuned == 3
    assert scale() == "quick"
    assert not block.outcome.published
    logged = [record.getMessage() for record in caplog.records]
    (run,) = (text for text in logged if "run file" in text)
    (published,) = (text for text in logged if "the cache was not written" in text)
    for text in (block.outcome.not_published, run, published):
        assert words in text
        assert "choose another place with --cache or TUNEBOOK_CACHE_DIR" in text
    assert str(cache) in block.outcome.not_published


def test_a_path_through_a_file(demo: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    not_kept(demo, tmp_path / "file" / "tuned.json", "Not a directory", caplog)
    assert (tmp_path / "file").read_text() == ""


def test_a_full_disk(demo: Any, full_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    not_kept(demo, full_disk / "tuned.json", "No space left on device", caplog)
    assert {path.name for path in full_disk.rglob("*")} <= {"filler", "runs", "tuned.json.lock"}


def test_a_directory_that_is_deleted_during_the_tuning(
    demo: Any, tmp_path: Path, restart: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "kept" / "tuned.json"

    def delete(*_: object) -> None:
        shutil.rmtree(cache.parent, ignore_errors=True)

    scale = demo.op()
    with caplog.at_level(logging.WARNING, "tunebook"):
        block = scale.tune(cache=cache, progress=delete)
    assert scale() == "quick"
    assert (block.outcome.published, block.outcome.not_published) == (True, "")
    assert any("deleted while it was written" in record.getMessage() for record in caplog.records)
    restart()
    again = demo.op()
    assert again.tune(cache=cache).outcome.tuned == 0, "the cache was made again"
    assert again() == "quick"


def test_the_command_line_ends_with_3_and_says_what_is_not_kept(tmp_path: Path, cli_inside: Cli) -> None:
    (tmp_path / "file").write_text("")
    cache = tmp_path / "file" / "tuned.json"
    done = cli_inside(tmp_path / "home", *TUNE, "--cache", cache, code=3)
    assert re.search(rf"^cache: {re.escape(str(cache))} \(not written: .*Not a directory", done.stdout, re.MULTILINE)
    assert re.search(r"^run: +none, see below$", done.stdout, re.MULTILINE)
    assert re.search(r"^problem: no run file could be created in .*TUNEBOOK_CACHE_DIR", done.stdout, re.MULTILINE)
    assert "Verdicts" in done.stdout, "the tuning itself is reported"
    assert not (tmp_path / "home").exists()
