"""The lines of a run file that tell of verdicts, plans and refusals; the many that hold samples are passed over unread."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from tunebook.records import SCHEMA, Footer, Header, Plan, PlanLine, Rejected, RunLine, TrialLine, Verdict, VerdictLine
from tunebook.store import MAX_RUN_BYTES

#: The longest header that is read.
MAX_HEADER_BYTES: Final = 1 << 20
_line: msgspec.json.Decoder[RunLine] = msgspec.json.Decoder(RunLine)
_TYPE: Final = b'{"type":"'
_VERDICT: Final = b'"verdict"'
_BLOCK: Final = 1 << 22
_WANTED: Final = ("verdict", "plan", "footer", "trial")


class _Kind(msgspec.Struct):
    type: str = ""


_kind = msgspec.json.Decoder(_Kind)


@dataclass
class Light:
    """A run without its samples. `rejected` are by problem and tactic, `unreadable` is how many lines could not be read."""

    header: Header
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    rejected: dict[str, dict[str, Rejected]] = field(default_factory=dict)
    footer: Footer | None = None
    unreadable: int = 0


def read_light(path: Path) -> Light | None:
    """The run in a file; None for what is no run of this schema, and for one that is too large (`read_any` says why)."""
    file = open_run_file(path)
    if file is None:
        return None
    with file:
        header = header_of(file)
        if header is None or os.fstat(file.fileno()).st_size > MAX_RUN_BYTES:
            return None
        light = Light(header)
        for text in file:
            if _kind_of(text) in _WANTED:
                _take(light, text)
    return light


def verdict_lines(path: Path) -> Iterator[bytes]:
    """The lines of a run file that hold a verdict, as they are. An OSError is the caller's."""
    with path.open("rb") as file:
        rest = b""
        while block := file.read(_BLOCK):
            block = rest + block
            end = block.rfind(b"\n") + 1
            yield from _holding(block, end)
            rest = block[end:]
        yield from _holding(rest, len(rest))


def _holding(text: bytes, end: int) -> Iterator[bytes]:
    """The verdicts among the lines of `text` up to `end`: most lines hold samples, and searching passes over them at once."""
    place = text.find(_VERDICT, 0, end)
    while place >= 0:
        begin, stop = text.rfind(b"\n", 0, place) + 1, text.find(b"\n", place, end)
        stop = end if stop < 0 else stop
        line = text[begin:stop]
        if _kind_of(line) == "verdict":
            yield line
        place = text.find(_VERDICT, stop, end)


def open_run_file(path: Path) -> BinaryIO | None:
    """A regular file, open for reading; None for anything else. A named pipe does not hold the reader up."""
    try:
        file = open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")  # noqa: SIM115 - the caller closes it
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    return None


def header_of(file: BinaryIO) -> Header | None:
    """The header that a file of this schema begins with."""
    header = read_line(file.readline(MAX_HEADER_BYTES))
    return header if isinstance(header, Header) and header.schema == SCHEMA else None


def read_line(text: bytes) -> RunLine | None:
    """The validated record of a line; None where it is none."""
    try:
        return _line.decode(text)
    except (ValueError, RecursionError):
        return None


def _kind_of(text: bytes) -> str:
    """The type of a line. Lines as tunebook writes them begin with it, so that most are told apart at a glance."""
    if text.startswith(_TYPE):
        return text[len(_TYPE) : text.find(b'"', len(_TYPE))].decode(errors="replace")
    try:
        return _kind.decode(text).type
    except (ValueError, RecursionError):
        return ""


def _take(light: Light, text: bytes) -> None:
    if b'"rejected"' not in text and _kind_of(text) == "trial":
        return
    line = read_line(text)
    if isinstance(line, VerdictLine):
        light.verdicts[line.verdict.problem] = line.verdict
    elif isinstance(line, PlanLine):
        light.plans[line.plan.fingerprint] = line.plan
    elif isinstance(line, Footer):
        light.footer = line
    elif isinstance(line, TrialLine):
        if isinstance(line.trial, Rejected):
            light.rejected.setdefault(line.problem, {})[line.trial.tactic] = line.trial
    elif text.endswith(b"\n"):  # else it is the last one, which was cut off
        light.unreadable += 1
