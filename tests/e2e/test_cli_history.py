"""`tunebook history` and its pruning, on the command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Complaint = Callable[["subprocess.CompletedProcess[str]"], str]


@pytest.fixture
def runs(tuned: tuple[Path, dict[str, Any]]) -> tuple[Path, list[str]]:
    """One tuning's home, with two older runs that are copies of its own: their names, the newest first."""
    home, document = tuned
    path = Path(document["run"])
    names = [path.name]
    for year in ("2019", "2018"):
        header, rest = path.read_bytes().split(b"\n", 1)
        fields = {**json.loads(header), "started": f"{year}-05-06T07:08:09", "note": f"of {year}\x1b[31m"}
        name = f"winners.{year}0506_070809.jsonl"
        (path.parent / name).write_bytes(json.dumps(fields).encode() + b"\n" + rest)
        names.append(name)
    return home, names


def test_runs_are_listed_newest_first_with_what_they_gained(
    runs: tuple[Path, list[str]], first: tuple[Path, dict[str, Any], str], cli_inside: Cli
) -> None:
    home, names = runs
    done = cli_inside(home, "history")
    head, title, columns, *rows = [line for line in done.stdout.splitlines() if line]
    assert head.endswith(": 3 runs, 1 threads")
    assert title == "Runs, newest first"
    assert columns.split() == [
        "run",
        "when",
        "model",
        "policy",
        "problems",
        "seconds",
        "whole",
        "model",
        "commit",
        "note",
    ]
    assert [row.split()[0] for row in rows] == names
    assert "tiny-moe" in rows[0]
    assert "the first" in rows[0]
    overall = first[1]["overall"]
    assert (f"{overall['speedup']:.2f}×" if overall else " - ") in rows[0]
    assert "\x1b" not in done.stdout, "a note does not colour the terminal"
    assert "of 2019" in rows[1]


def test_the_document_has_every_field(runs: tuple[Path, list[str]], cli_inside: Cli) -> None:
    home, names = runs
    document = json.loads(cli_inside(home, "history", "--json").stdout)
    assert [Path(run["path"]).name for run in document["runs"]] == names
    newest = document["runs"][0]
    assert newest["model"] == "tiny-moe"
    assert newest["policy"] == "reuse"
    assert newest["note"] == "the first"
    assert newest["seconds"] > 0
    assert newest["problems"] > 0
    assert newest["finished"] is True


def test_models_and_ops_narrow(runs: tuple[Path, list[str]], cli_inside: Cli) -> None:
    home, names = runs

    def listed(*arguments: str) -> list[str]:
        return [
            Path(run["path"]).name
            for run in json.loads(cli_inside(home, "history", "--json", *arguments).stdout)["runs"]
        ]

    assert listed("--model", "tiny-moe", "--op", "experts") == names
    assert listed("--model", "granite-1b-moe") == []
    assert listed("--op", "no_such_op") == []
    assert "0 runs" in cli_inside(home, "history", "--op", "no_such_op").stdout


def test_pruning_says_first_what_it_would_remove(runs: tuple[Path, list[str]], cli_inside: Cli) -> None:
    home, names = runs
    folder = next(home.glob("autotune/*/runs"))
    for arguments in (("--keep", "1"), ("--keep", "1", "--dry-run"), ("--older-than", "365")):
        done = cli_inside(home, "history", "--prune", *arguments)
        assert done.stdout.count("would remove: ") == 2
        assert "nothing was removed: say --yes" in done.stdout
        assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    document = json.loads(cli_inside(home, "history", "--prune", "--keep", "1", "--json").stdout)
    assert [Path(path).name for path in document["would_remove"]] == names[1:]


def test_pruning_removes_with_yes_and_spares_what_the_cache_rests_on(
    runs: tuple[Path, list[str]], cli_inside: Cli
) -> None:
    home, names = runs
    folder = next(home.glob("autotune/*/runs"))
    done = cli_inside(home, "history", "--prune", "--keep", "0", "--yes")
    assert [path.name for path in folder.iterdir()] == names[:1]
    assert f"{names[0]}: the cache names it" in done.stdout
    assert "2 runs" in done.stdout.splitlines()[-1]
    assert "nothing to remove" in cli_inside(home, "history", "--prune", "--keep", "0").stdout
    document = json.loads(
        cli_inside(home, "history", "--prune", "--keep", "0", "--include-named", "--yes", "--json").stdout
    )
    assert len(document["removed"]) == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prune",), ("--keep N", "--older-than")),
        (("--keep", "3"), ("--keep", "--prune")),
        (("--yes",), ("--yes", "--prune")),
        (("--prune", "--keep", "1", "--yes", "--dry-run"), ("--dry-run", "--yes")),
        (("--prune", "--keep", "-1"), ("--keep -1",)),
        (("--prune", "--keep", "1", "--op", "linear"), ("--op", "--model")),
    ],
    ids=" ".join,
)
def test_a_wrong_argument_is_one_line(
    arguments: tuple[str, ...], words: tuple[str, ...], tmp_path: Path, cli_inside: Cli, complaint: Complaint
) -> None:
    line = complaint(cli_inside(tmp_path / "home", "history", "--cache", tmp_path / "c.json", *arguments, code=2))
    assert all(word in line for word in words), line


def test_where_nothing_was_tuned(tmp_path: Path, cli_inside: Cli, complaint: Complaint) -> None:
    assert "`tunebook tune`" in complaint(cli_inside(tmp_path / "home", "history", code=1))
    assert "0 runs" in cli_inside(tmp_path / "home", "history", "--cache", tmp_path / "c.json").stdout


def test_the_commit_of_the_working_directory_is_kept(
    tmp_path: Path, cli_inside: Cli, demo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    (repository / ".git").mkdir(parents=True)
    (repository / ".git" / "HEAD").write_text("ab" * 20 + "\n", encoding="utf-8")
    monkeypatch.chdir(repository)
    block = demo.op().tune(cache=tmp_path / "own.json")
    assert block.run
    done = cli_inside(tmp_path / "home", "history", "--cache", tmp_path / "own.json")
    assert "ababababab" in done.stdout
    (run,) = json.loads(cli_inside(tmp_path / "home", "history", "--cache", tmp_path / "own.json", "--json").stdout)[
        "runs"
    ]
    assert run["commit"] == "ab" * 20
