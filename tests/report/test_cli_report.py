"""`tunebook report`: where it reads, where it writes, and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

Cli = Callable[..., CompletedProcess[str]]


def test_a_run_and_a_comparison_are_written(cli_inside: Cli, two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    said = cli_inside(tmp_path, "report", two_runs[0], "-o", out).stdout
    assert said.startswith(f"{out}: ")
    assert "<h1>a-model</h1>" in out.read_text()
    told = json.loads(cli_inside(tmp_path, "report", *two_runs, "-o", out, "--json").stdout)
    assert told == {"page": str(out), "bytes": out.stat().st_size, "of": [str(path) for path in two_runs]}
    assert "B against A" in out.read_text()


def test_latest_previous_and_cache_stand_for_files(
    cli_inside: Cli, written: Any, cache_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    for number in (1, 2):
        started = f"2026-01-0{number}T00:00:00"
        written.run([], name=f"runs/winners.2026010{number}_000000.jsonl", started=started, note=f"run {number}")
    out = tmp_path / "out.html"
    for names, told in ((("latest",), "run 2"), (("previous", "latest"), "run 1"), (("cache",), "report of a cache")):
        cli_inside(tmp_path, "report", *names, "--cache", cache_path, "-o", out)
        assert told in out.read_text()


def test_errors_are_one_line_and_nothing_is_lost(cli_inside: Cli, two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    run = two_runs[0]
    before = run.read_bytes()
    cases = [
        (("report", run, "-o", run), 2, "would be lost"),
        (("report", run, two_runs[1], "-o", two_runs[1]), 2, "would be lost"),
        (("report", run, "-o", tmp_path), 2, "not a file"),
        (("report", run, "-o", tmp_path / "none" / "x.html"), 1, "cannot be written"),
        (("report", tmp_path / "none.jsonl", "-o", tmp_path / "x.html"), 1, "there is no such file"),
        (("report", run, "--model", "m", "-o", tmp_path / "x.html"), 2, "--model"),
        (("report", "latest", "latest", "-o", tmp_path / "x.html"), 2, "are the same"),
    ]
    for arguments, code, told in cases:
        done = cli_inside(tmp_path, *arguments, code=code)
        assert done.stdout == ""
        assert done.stderr.startswith("tunebook: error: ")
        assert done.stderr.count("\n") == 1
        assert told in done.stderr
    assert run.read_bytes() == before
    assert not (tmp_path / "x.html").exists()
