"""The git commit of the working directory, read from the repository's own files."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tunebook.tuner._commit import working_commit

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def git(tmp_path: Path) -> Path:
    """A repository without anything in it but HEAD, which points at the branch main."""
    folder = tmp_path / "repository" / ".git"
    write(folder / "HEAD", "ref: refs/heads/main\n")
    return folder


def commit_of(folder: Path) -> str:
    return working_commit(folder)[0]


def test_a_branch(git: Path) -> None:
    assert commit_of(git.parent) == "", "nothing is committed yet"
    write(git / "refs/heads/main", f"{COMMIT}\n")
    assert commit_of(git.parent) == COMMIT
    inside = git.parent / "src" / "deep"
    inside.mkdir(parents=True)
    assert commit_of(inside) == COMMIT


def test_a_detached_head_of_either_length(git: Path) -> None:
    for commit in (COMMIT, COMMIT + "f" * 24):
        write(git / "HEAD", f"{commit}\n")
        assert commit_of(git.parent) == commit


def test_a_packed_reference_and_a_loose_one_that_is_newer(git: Path) -> None:
    write(
        git / "packed-refs", f"# pack-refs with: peeled\n{OTHER} refs/heads/other\n{COMMIT} refs/heads/main\n^{OTHER}\n"
    )
    assert commit_of(git.parent) == COMMIT
    write(git / "refs/heads/main", f"{OTHER}\n")
    assert commit_of(git.parent) == OTHER


def test_a_symbolic_reference_and_one_that_goes_round_in_a_circle(git: Path) -> None:
    write(git / "refs/heads/main", "ref: refs/heads/trunk\n")
    write(git / "refs/heads/trunk", f"{COMMIT}\n")
    assert commit_of(git.parent) == COMMIT
    write(git / "refs/heads/trunk", "ref: refs/heads/main\n")
    assert commit_of(git.parent) == ""


def test_a_worktree_has_a_head_of_its_own(git: Path, tmp_path: Path) -> None:
    write(git / "refs/heads/main", f"{OTHER}\n")
    write(git / "refs/heads/side", f"{COMMIT}\n")
    write(git / "worktrees/side/HEAD", "ref: refs/heads/side\n")
    write(git / "worktrees/side/commondir", "../..\n")
    tree = tmp_path / "side"
    write(tree / ".git", f"gitdir: {git / 'worktrees/side'}\n")
    assert commit_of(tree) == COMMIT
    relative = os.path.relpath(git / "worktrees/side", tree)
    write(tree / ".git", f"gitdir: {relative}\n")
    assert commit_of(tree) == COMMIT


@pytest.mark.parametrize(
    "head",
    ["", "hello", "ref: ../../secret", "ref: refs/../../secret", "ref: /etc/passwd", "ref: refs/heads/a b", "\0" * 50],
    ids=repr,
)
def test_a_head_that_is_none(git: Path, head: str) -> None:
    write(git / "HEAD", head)
    write(git.parent.parent / "secret", COMMIT)
    assert working_commit(git.parent) == ("", None)


def test_outside_of_a_repository_and_where_nothing_is(tmp_path: Path) -> None:
    assert working_commit(tmp_path) == ("", None)
    assert working_commit(tmp_path / "absent") == ("", None)
    (tmp_path / ".git").mkdir()
    assert working_commit(tmp_path) == ("", None)


def test_what_git_cannot_tell_is_not_known(git: Path) -> None:
    write(git / "HEAD", COMMIT)  # no repository that git itself would take
    assert working_commit(git.parent) == (COMMIT, None)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_as_git_says(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    assert working_commit(tmp_path) == ("", None)
    write(tmp_path / "kernel.py", "one")
    git("add", ".")
    git("commit", "-qm", "one")
    first = git("rev-parse", "HEAD")
    assert working_commit(tmp_path) == (first, False)
    write(tmp_path / "new.py", "a file that git does not know changes nothing that it does")
    assert working_commit(tmp_path) == (first, False)
    write(tmp_path / "kernel.py", "two")
    assert working_commit(tmp_path) == (first, True)
    git("commit", "-qam", "two")
    git("pack-refs", "--all")
    assert working_commit(tmp_path) == (git("rev-parse", "HEAD"), False)
    git("worktree", "add", "-q", str(tmp_path / "tree"), first)
    assert working_commit(tmp_path / "tree") == (first, False)
