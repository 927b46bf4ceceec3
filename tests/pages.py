"""The pages of the documentation, and what stands in them: prose, code blocks, commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
DOCS = tuple(sorted((ROOT / "docs").glob("*.md")))
PAGES = (README, CHINESE, *DOCS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md")

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return [body for _, kind, body in _FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True)
class Command:
    """A line of a shell: the variables set before it, the program, and its arguments."""

    variables: tuple[str, ...]
    program: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join([*self.variables, shlex.join([self.program, *self.arguments])])


def commands(page: Path) -> Iterator[Command]:
    """Each line of a page's sh blocks."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            count = next((i for i, word in enumerate(words) if not _ASSIGNMENT.fullmatch(word)), len(words))
            if count < len(words):
                yield Command(variables=tuple(words[:count]), program=words[count], arguments=tuple(words[count + 1 :]))
