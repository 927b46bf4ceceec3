"""Reading run files: JSON Lines of which the last may be torn, because the writer was killed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final

import msgspec

from tunebook.errors import StoreError
from tunebook.records import SCHEMA, Footer, Header, Plan, ResumedLine, RunLine, TrialLine, Verdict
from tunebook.store._recorded import Reading, Recorded
from tunebook.store._text import one_line
from tunebook.store.files import read_bounded
from tunebook.store.misses import Miss
from tunebook.store.objects import read_record

#: The largest run file that is read: some ten thousand problems with ten tactics each and all their samples.
MAX_RUN_BYTES: Final = 256 * 2**20
#: The most lines and values in it: a short value takes some thirty times its length once it is read.
MAX_RUN_LINES: Final = 1_000_000
MAX_RUN_VALUES: Final = 24_000_000
#: So many bad lines are named; the rest are counted.
MAX_LINE_MISSES: Final = 100
# So many bytes of lines are decoded at once, and each line by itself where something is the matter with one of them.
_BLOCK: Final = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One tuning session as its file tells it.

    `trials` are in the order in which each began: a race's samples of one tactic are one trial. `verdicts` are by problem
    key and `plans` by model fingerprint, the last one counts; `footer` is None where the session did not end by itself;
    `torn` says that the last line was cut off, which costs that line alone; `misses` names other lines that could not be
    read. `resumed` are the times at which the tuning went on, and `problems` tells how far each came.
    """

    path: Path
    header: Header
    trials: tuple[TrialLine, ...]
    verdicts: dict[str, Verdict]
    plans: dict[str, Plan]
    footer: Footer | None
    torn: bool
    misses: tuple[Miss, ...]
    resumed: tuple[ResumedLine, ...] = ()
    problems: dict[str, Recorded] = field(default_factory=dict, repr=False, compare=False)


class _Shell(msgspec.Struct):
    """What every version's lines and documents have: enough to tell a run from a cache, and a schema from another."""

    type: str = ""
    #: A line written before there was a second schema need not say that it is of the first.
    schema: int = 1


_shell = msgspec.json.Decoder(_Shell)
_line: msgspec.json.Decoder[RunLine] = msgspec.json.Decoder(RunLine)
_encoder = msgspec.json.Encoder(order="deterministic")


def read_run(path: Path | str) -> Run:
    """Read a run file. Raises ``StoreError``, in one line, unless it begins with a header of this schema."""
    path = Path(path)
    data = read_bounded(path, MAX_RUN_BYTES)
    if isinstance(data, Miss):
        raise StoreError(str(data))
    return parse_run(path, data)


def looks_like_run(data: bytes) -> bool:
    """Whether `data` begins with the header of a run file, of whatever schema."""
    try:
        return _shell.decode(_first_line(data)).type == "header"
    except (ValueError, RecursionError):
        return False


@contextmanager
def _uncollected() -> Iterator[None]:
    """What is read here stays and has no cycles: looking for some over and over would take a quarter of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@_uncollected()
def parse_run(path: Path, data: bytes) -> Run:
    """The run in `data`; `path` is for messages. Raises ``StoreError`` as `read_run` does."""
    where, first = one_line(path), _first_line(data)
    header = _header(where, first)
    if data.count(b"\n") > MAX_RUN_LINES or data.count(b",") > MAX_RUN_VALUES:
        raise StoreError(f"{where}: more than {MAX_RUN_LINES} lines, or {MAX_RUN_VALUES} values, are not read")
    if torn := _torn(data):
        data = data[: data.rfind(b"\n") + 1]
    reading = Reading()
    misses: list[Miss] = []
    more = 0
    takes: Mapping[type, Callable[[Any], None]] = {**reading.takes, str: _refuse, type(None): lambda blank: None}
    for number, line in enumerate(chain.from_iterable(_pieces(data, len(first) + 1)), 2):
        try:
            takes[type(line)](line)
        except ValueError as error:
            if len(misses) < MAX_LINE_MISSES:
                misses.append(Miss(kind="entry", where=f"{where}, line {number}", detail=one_line(error)))
            else:
                more += 1
    if more:
        misses.append(Miss(kind="entry", where=where, detail=f"{more} more lines cannot be read"))
    return Run(
        path=path,
        header=header,
        trials=tuple(reading.trials),
        verdicts=reading.verdicts,
        plans=reading.plans,
        footer=reading.footer,
        torn=torn,
        misses=tuple(misses),
        resumed=tuple(reading.resumed),
        problems=reading.problems,
    )


def _pieces(data: bytes, begin: int) -> Iterator[Sequence[RunLine | str | None]]:
    """The lines from `begin` on, some at a time: the record of each, or what is wrong with it; None for a blank one."""
    while begin < len(data):
        end = data.rfind(b"\n", begin, begin + _BLOCK) + 1 or data.find(b"\n", begin) + 1 or len(data)
        block = data[begin:end]
        yield _at_once(block) or [_read(t) if t.strip() else None for t in block.removesuffix(b"\n").split(b"\n")]
        begin = end


def _at_once(block: bytes) -> list[RunLine] | None:
    """The records of lines as tunebook writes them; None for any others, such as bad ones.

    What is written again as it was has a record on every line, and repeats no name.
    """
    try:
        lines = _line.decode_lines(block)
    except (ValueError, RecursionError):
        return None
    return lines if _encoder.encode_lines(lines) == block else None


def _read(text: bytes) -> RunLine | str:
    """The record of one line, or what is wrong with it."""
    try:
        return read_record(text, _line)
    except (ValueError, RecursionError) as error:
        return str(error)


def _refuse(trouble: str) -> None:
    """Take a line that cannot be read as one that does not fit."""
    raise ValueError(trouble)


def _torn(data: bytes) -> bool:
    """Whether the last line was cut off: it lacks its line break, and more than that."""
    last = data[data.rfind(b"\n") + 1 :]
    return bool(last.strip()) and isinstance(_read(last), str)


def _first_line(data: bytes) -> bytes:
    end = data.find(b"\n")
    return data if end < 0 else data[:end]


def _header(where: str, text: bytes) -> Header:
    try:
        shell = _shell.decode(text)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{where}: not a run file: its first line is not a header ({one_line(error)})") from None
    if shell.type != "header":
        raise StoreError(f"{where}: not a run file: its first line is not a header")
    if shell.schema != SCHEMA:
        raise StoreError(f"{where}: {other_schema(shell.schema)}")
    line = _read(text)
    if isinstance(line, str):
        raise StoreError(f"{where}: not a run file: its header cannot be read ({one_line(line)})")
    assert isinstance(line, Header)
    return line


def other_schema(schema: int) -> str:
    """How a file of another schema is refused."""
    if schema > SCHEMA:
        return f"schema {schema} is newer than {SCHEMA}, the one this version reads; update tunebook to read it"
    return f"schema {schema} is older than {SCHEMA}, the one this version reads; tune again to replace it"
