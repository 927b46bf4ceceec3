"""What a run file tells at its beginning and its end, without reading what lies between."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from tunebook.book._light import header_of, open_run_file, read_light, read_line, verdict_lines
from tunebook.records import Footer, Header, Overall, Plan, PlanLine, Verdict

#: Plans and footer are looked for in so many bytes at the end of the file.
MAX_TAIL_BYTES = 16 << 20
_BLOCK = 1 << 16


class _Key(msgspec.Struct):
    problem: str


class _Verdict(msgspec.Struct):
    verdict: _Key


_verdict = msgspec.json.Decoder(_Verdict)


@dataclass(frozen=True, kw_only=True)
class Head:
    """A run by its header, its footer (None: it did not end by itself) and its last plan."""

    path: Path
    header: Header
    footer: Footer | None
    plan: Plan | None
    bytes: int
    changed: float

    @property
    def order(self) -> tuple[str, int, str]:
        """Sorts by age: the start, then the number that a name has where several began in one second."""
        number = self.path.stem.rpartition("-")[2]
        return (self.header.started, int(number) if number.isdecimal() else 0, self.path.name)

    @property
    def overall(self) -> Overall | None:
        """What the comparison on the whole model gave, if there was one."""
        return self.plan.overall if self.plan is not None and self.plan.verified else None

    def problems(self) -> tuple[str, ...]:
        """The keys of all problems that it has a verdict on, in order; this reads the whole file."""
        return tuple(dict.fromkeys(key for text in verdict_lines(self.path) if (key := _problem(text))))

    def verdicts(self) -> dict[str, Verdict]:
        """The verdicts by problem, the last of each, validated; those that cannot be read are left out."""
        light = read_light(self.path)
        return light.verdicts if light is not None else {}


def read_head(path: Path) -> Head | None:
    """The head of a run file; None for anything else, and for a run of another schema."""
    file = open_run_file(path)
    if file is None:
        return None
    with file:
        header = header_of(file)
        if header is None:
            return None
        status = os.fstat(file.fileno())
        footer: Footer | None = None
        plan: Plan | None = None
        for text in _backwards(file, file.tell(), status.st_size):
            line = read_line(text)
            if isinstance(line, Footer) and footer is None:
                footer = line
            elif isinstance(line, PlanLine):
                plan = plan or line.plan
            elif line is not None:
                break
    return Head(path=path, header=header, footer=footer, plan=plan, bytes=status.st_size, changed=status.st_mtime)


def _backwards(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    """The lines from the last one back, none before `begin`, and not more than `MAX_TAIL_BYTES` of them."""
    rest, place, block = b"", end, _BLOCK
    begin = max(begin, end - MAX_TAIL_BYTES)
    while place > begin:
        size = min(block, place - begin)
        place, block = place - size, 2 * block
        file.seek(place)
        rest = file.read(size) + rest
        rest, *complete = rest.split(b"\n")
        yield from (line for line in reversed(complete) if line.strip())
    if rest.strip():
        yield rest


def _problem(text: bytes) -> str:
    try:
        return _verdict.decode(text).verdict.problem
    except (ValueError, RecursionError):
        return ""
