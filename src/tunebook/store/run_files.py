"""Reading run files: JSON Lines of which the last may be torn, because the writer was killed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from tunebook.errors import StoreError
from tunebook.records import (
    SCHEMA,
    Footer,
    Header,
    Plan,
    PlanLine,
    ResumedLine,
    RunLine,
    TrialLine,
    Verdict,
    VerdictLine,
)
from tunebook.store._recorded import Reading, Recorded
from tunebook.store._text import one_line
from tunebook.store.files import read_bounded
from tunebook.store.misses import Miss

#: The largest run file that is read: some ten thousand problems with ten tactics each and all their samples.
MAX_RUN_BYTES: Final = 256 * 2**20
#: The most lines and values in it: a short value takes some thirty times its length once it is read.
MAX_RUN_LINES: Final = 1_000_000
MAX_RUN_VALUES: Final = 24_000_000
#: So many bad lines are named; the rest are counted.
MAX_LINE_MISSES: Final = 100


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


def parse_run(path: Path, data: bytes) -> Run:
    """The run in `data`; `path` is for messages. Raises ``StoreError`` as `read_run` does."""
    where = one_line(path)
    header = _header(where, _first_line(data))
    if data.count(b"\n") > MAX_RUN_LINES or data.count(b",") > MAX_RUN_VALUES:
        raise StoreError(f"{where}: more than {MAX_RUN_LINES} lines, or {MAX_RUN_VALUES} values, are not read")
    reading = Reading()
    resumed: list[ResumedLine] = []
    verdicts: dict[str, Verdict] = {}
    plans: dict[str, Plan] = {}
    footer: Footer | None = None
    bad: list[Miss] = []
    more = 0
    torn = False
    for number, text, whole in _lines(data):
        line = _read(text)
        if isinstance(line, str) and not whole:
            torn = True
            continue
        if isinstance(line, Header):
            trouble = None if number == 1 else "a second header"
        elif isinstance(line, str):
            trouble = line
        else:
            trouble = _taken(reading, line)
        if trouble is not None:
            if len(bad) < MAX_LINE_MISSES:
                bad.append(Miss(kind="entry", where=f"{where}, line {number}", detail=trouble))
            else:
                more += 1
        elif isinstance(line, VerdictLine):
            verdicts[line.verdict.problem] = line.verdict
        elif isinstance(line, PlanLine):
            plans[line.plan.fingerprint] = line.plan
        elif isinstance(line, ResumedLine):
            resumed.append(line)
        elif isinstance(line, Footer):
            footer = line
    if more:
        bad.append(Miss(kind="entry", where=where, detail=f"{more} more lines cannot be read"))
    return Run(
        path=path,
        header=header,
        trials=tuple(reading.trials),
        verdicts=verdicts,
        plans=plans,
        footer=footer,
        torn=torn,
        misses=tuple(bad),
        resumed=tuple(resumed),
        problems=reading.problems,
    )


def _read(text: bytes) -> RunLine | str:
    """The record of one line, or what is wrong with it."""
    try:
        return _line.decode(text)
    except (ValueError, RecursionError) as error:
        return one_line(error)


def _taken(reading: Reading, line: RunLine) -> str | None:
    """What is wrong with a line that can be read, beside those before it, or None."""
    try:
        reading.take(line)
    except ValueError as error:
        return one_line(error)
    return None


def _first_line(data: bytes) -> bytes:
    end = data.find(b"\n")
    return data if end < 0 else data[:end]


def _lines(data: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """Each line that is not blank, with its number and whether its line break was written too."""
    number, start = 0, 0
    while start < len(data):
        end = data.find(b"\n", start)
        whole = end >= 0
        text = data[start:end] if whole else data[start:]
        number += 1
        if text.strip():
            yield number, text, whole
        start = end + 1 if whole else len(data)


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
        raise StoreError(f"{where}: not a run file: its header cannot be read ({line})")
    assert isinstance(line, Header)
    return line


def other_schema(schema: int) -> str:
    """How a file of another schema is refused."""
    if schema > SCHEMA:
        return f"schema {schema} is newer than {SCHEMA}, the one this version reads; update tunebook to read it"
    return f"schema {schema} is older than {SCHEMA}, the one this version reads; tune again to replace it"
