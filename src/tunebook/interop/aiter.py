"""AITER's tuned configurations, ``*_tuned_gemm.csv`` and ``tuned_fmoe.csv``: one line a shape, or one a candidate.

The columns differ from op to op. Those before the first that says what was chosen are the key, as in the lists of keys of
AITER's tuners (``aiter/utility/base_tuner.py``), and ``_tag`` wherever it stands. ``us`` is microseconds a call. In a file
of all results (``-o2``) several lines have one key; the fastest is then the choice, as where AITER merges files.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunebook.errors import UsageError
from tunebook.interop._format import Entry, Fidelity, ForeignBook, Format, Loss, Trial
from tunebook.interop._pieces import lines_of, merged, own, seconds
from tunebook.interop._reading import MAX_ENTRIES, canonical, refuse, replace
from tunebook.store import Miss
from tunebook.store._text import one_line
from tunebook.store.misses import Misses

#: The first of these ends the key.
_CHOSEN: Final = frozenset(
    {"libtype", "kernelId", "solidx", "splitK", "ksplit", "block_m", "tile_m", "us", "us1", "kernelName", "kernelName1"}
)
#: What was measured, and is neither key nor choice.
_MEASURED: Final = frozenset({"us", "us1", "us2", "tflops", "bw", "errRatio", "err_ratio", "err1", "err2"})
#: Which machine a line is for.
_MACHINE: Final = ("gfx", "cu_num")


@dataclass(frozen=True, slots=True)
class _Content:
    """The header and the lines as they stand in the file; each line with the key of its entry, None for a blank one."""

    header: str
    lines: tuple[tuple[str, str | None], ...]


class Aiter:
    """Lines are kept as they are, so that what is written again is what was read."""

    name: Final = "aiter"
    title: Final = "AITER tuned configurations (CSV)"
    fidelity: Fidelity = "bytes"
    lost: tuple[Loss, ...] = (Loss("a mark of the byte order"),)

    def detects(self, path: Path, head: bytes) -> bool:
        """By the names of its columns."""
        columns = _columns(head.decode("utf-8-sig", "ignore").partition("\n")[0])
        return "us" in columns and "cu_num" in columns and not _CHOSEN.isdisjoint(columns) and columns[0] not in _CHOSEN

    def read(self, path: Path) -> ForeignBook:
        """Read it. Raises ``StoreError`` for a line that has not the header's columns, or a time that is none."""
        header, *rest = lines_of(path)
        columns = _columns(header)
        if "us" not in columns or _CHOSEN.isdisjoint(columns) or columns[0] in _CHOSEN:
            refuse(path, "no column us, or none before it that names the problem", "line 1")
        if twice := [name for name in columns if name and columns.count(name) > 1]:
            refuse(path, f"column {twice[0]} occurs twice", "line 1")
        places = _key_places(columns)
        rows: dict[str, dict[str, _Row]] = {}
        lines: list[tuple[str, str | None]] = []
        misses = Misses(one_line(path))
        for number, text in enumerate(rest, 2):
            if not text.strip():
                lines.append((text, None))
                continue
            row = _row(path, columns, places, text, number)
            lines.append((text, row.key))
            if len(lines) > MAX_ENTRIES:
                refuse(path, f"more than {MAX_ENTRIES} lines are not read", f"line {number}")
            known = rows.setdefault(row.key, {})
            if before := known.get(row.trial.tactic):
                said = f"it has key and choice of line {before.number}, which counts"
                misses.add(Miss(kind="entry", where=f"{one_line(path)}, line {number}", detail=said))
                continue
            known[row.trial.tactic] = row
        return ForeignBook(
            path=path,
            format=self.name,
            facts=_facts(row for known in rows.values() for row in known.values()),
            entries={key: _entry([*known.values()]) for key, known in rows.items()},
            misses=misses.known(),
            content=_Content(header, tuple(lines)),
        )

    def write(self, book: ForeignBook, path: Path) -> None:
        """Write the lines again."""
        content: _Content = own(book, self.name)
        replace(path, "\n".join((content.header, *(text for text, _ in content.lines))).encode())

    def merge(self, first: ForeignBook, second: ForeignBook) -> ForeignBook:
        """Raises ``UsageError`` unless both have the same columns; lines tell the machine that they are for."""
        mine, theirs = own(first, self.name), own(second, self.name)
        if _columns(mine.header) != _columns(theirs.header):
            raise UsageError(f"{one_line(first.path)} and {one_line(second.path)} have different columns")
        lines = tuple(line for line in mine.lines if line[0].strip())
        more = tuple(line for line in theirs.lines if line[1] is not None and line[1] not in first.entries)
        return merged(first, second, _Content(mine.header, (*lines, *more, ("", None))))


@dataclass(frozen=True, slots=True)
class _Row:
    key: str
    op: str
    fields: tuple[tuple[str, str], ...]
    trial: Trial
    number: int


def _columns(header: str) -> list[str]:
    """The names; AITER reads over white space around them."""
    return [name.strip() for name in header.split(",")]


def _key_places(columns: Sequence[str]) -> list[int]:
    """Which columns are the key."""
    end = next(place for place, name in enumerate(columns) if name in _CHOSEN)
    return [place for place, name in enumerate(columns) if name and (place < end or name == "_tag")]


def _row(path: Path, columns: Sequence[str], places: Sequence[int], text: str, number: int) -> _Row:
    place = f"line {number}"
    try:
        values = [value.strip() for value in next(csv.reader([text], strict=True))]
    except csv.Error as error:
        refuse(path, f"not CSV: {error}", place)
    if len(values) != len(columns):
        refuse(path, f"{len(values)} columns, and the header has {len(columns)}", place)
    fields = tuple((columns[i], values[i]) for i in places)
    of = dict(zip(columns, values, strict=True))
    chosen = {
        name: value
        for i, (name, value) in enumerate(zip(columns, values, strict=True))
        if i not in places and name and value and name not in _MEASURED
    }
    op = _op(columns)
    return _Row(
        key=f"{op}|{','.join(f'{name}={value}' for name, value in fields)}",
        op=op,
        fields=fields,
        trial=_trial(path, canonical(chosen), of, place),
        number=number,
    )


def _trial(path: Path, tactic: str, of: dict[str, str], place: str) -> Trial:
    us = _number(path, of["us"], "us", place)
    if us == 0 and of.get("us1"):  # a line by hand: only its stages have times
        us = _number(path, of["us1"], "us1", place) + _number(path, of.get("us2") or "0", "us2", place)
    if us == -1:
        return Trial(tactic=tactic, reason="us is -1: not supported, or an error")
    if us == math.inf:
        return Trial(tactic=tactic, reason="us is inf: it failed")
    return Trial(tactic=tactic, seconds=seconds(path, us, 1e-6, place, "us") or None)


def _number(path: Path, text: str, name: str, place: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        refuse(path, f"{name} {one_line(text, 60)!r} is not a number", place)
    return number


def _op(columns: Sequence[str]) -> str:
    """What is tuned, by its columns: the file names no op."""
    if "token" in columns:
        return "fused_moe"
    if "kT" in columns:
        return "conv3d"
    return "bmm" if "B" in columns else "gemm"


def _facts(rows: Iterable[_Row]) -> dict[str, str]:
    """The machines that the lines are for."""
    found: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.fields:
            if name in _MACHINE:
                found.setdefault(name, set()).add(value)
    return {name: ", ".join(sorted(found[name])) for name in _MACHINE if name in found}


def _entry(rows: list[_Row]) -> Entry:
    first = rows[0]
    best = min(rows, key=lambda row: math.inf if row.trial.seconds is None else row.trial.seconds)
    return Entry(
        key=first.key,
        op=first.op,
        problem=",".join(f"{name}={value}" for name, value in first.fields if name not in _MACHINE),
        choice=best.trial.tactic,
        seconds=best.trial.seconds,
        trials=tuple(row.trial for row in rows) if len(rows) > 1 or best.trial.seconds is None else (),
    )


FORMAT: Format = Aiter()
