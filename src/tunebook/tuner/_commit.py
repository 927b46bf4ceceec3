"""The git commit of the working directory: what a run file's header says about the code that was tuned."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

#: No file of a repository is read further than this.
_MOST_BYTES = 8 << 20
#: How long git may take to say whether files differ from the commit, in seconds.
_GIT_TIMEOUT_S = 2.0
_HASH = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_REF = re.compile(r"refs/[^\x00-\x20\x7f~^:?*\[\\]+")
_LINKS = 5


def working_commit(folder: Path) -> tuple[str, bool | None]:
    """The commit that `folder` is checked out at, in hexadecimal, and whether tracked files differ from it (None: not known).

    Empty outside of a repository, before the first commit, and where the repository keeps its references in another way than
    in files. The commit is read from the files themselves; git is asked for the rest, without hooks and within
    two seconds. Never raises.
    """
    try:
        found = _repository(folder)
        commit = _commit(*found) if found is not None else ""
    except (OSError, ValueError, RuntimeError):
        return "", None
    return commit, _differs(folder) if commit else None


def _repository(folder: Path) -> tuple[Path, Path] | None:
    """The directory that holds HEAD, and the one that holds the references: a worktree has one of its own for HEAD alone."""
    folder = folder.resolve()
    for place in (folder, *folder.parents):
        git = place / ".git"
        if git.is_file():
            named = _read(git).removeprefix("gitdir:").strip()
            git = (place / named).resolve()
        if (git / "HEAD").is_file():
            common = git / "commondir"
            return git, (git / _read(common).strip()).resolve() if common.is_file() else git
    return None


def _commit(git: Path, common: Path) -> str:
    text = _read(git / "HEAD").strip()
    for _ in range(_LINKS):
        if _HASH.fullmatch(text):
            return text
        name = text.removeprefix("ref:").strip()
        if not _REF.fullmatch(name) or ".." in name:
            return ""
        loose = next((place / name for place in (git, common) if (place / name).is_file()), None)
        if loose is None:
            return _packed(common / "packed-refs", name)
        text = _read(loose).strip()
    return ""


def _packed(file: Path, name: str) -> str:
    if not file.is_file():
        return ""
    for line in _read(file).splitlines():
        commit, _, packed = line.partition(" ")
        if packed == name and _HASH.fullmatch(commit):
            return commit
    return ""


def _read(file: Path) -> str:
    with file.open("rb") as stream:
        return stream.read(_MOST_BYTES).decode(errors="replace")


def _differs(folder: Path) -> bool | None:
    quiet = ("--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
    status = ("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *quiet, *status],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return bool(done.stdout) if done.returncode == 0 else None
