"""PyTorch TunableOp's results, ``tunableop_results0.csv``: validators, then one line an op and its sizes.

As ``aten/src/ATen/cuda/tunable/Tunable.cpp`` reads and writes it: fields are split at commas, nothing is quoted. The time is
milliseconds a call and may be missing; of two lines for the same sizes PyTorch takes the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunebook.interop._format import Entry, Fidelity, ForeignBook, Format, Loss
from tunebook.interop._pieces import lines_of, merged, own, same, seconds
from tunebook.interop._reading import MAX_ENTRIES, refuse, replace
from tunebook.store import Miss
from tunebook.store._text import one_line
from tunebook.store.misses import Misses


@dataclass(frozen=True, slots=True)
class _Line:
    """A line as it stands in the file; `key` is that of its entry, None for a validator and a blank line."""

    text: str
    key: str | None = None


class TunableOp:
    """Lines are kept as they are, so that what is written again is what was read."""

    name: Final = "tunableop"
    title: Final = "PyTorch TunableOp results (CSV)"
    fidelity: Fidelity = "bytes"
    lost: tuple[Loss, ...] = (Loss("a mark of the byte order"),)

    def detects(self, path: Path, head: bytes) -> bool:
        """By the validator that every such file begins with."""
        return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"Validator,")

    def read(self, path: Path) -> ForeignBook:
        """Read it. Raises ``StoreError`` for a line with too few columns or a time that is none."""
        lines: list[_Line] = []
        facts: dict[str, str] = {}
        entries: dict[str, Entry] = {}
        places: dict[str, int] = {}
        misses = Misses(one_line(path))
        for number, text in enumerate(lines_of(path), 1):
            place = f"line {number}"
            parts = text.rstrip("\r").split(",")
            if parts == [""]:
                lines.append(_Line(text))
                continue
            if len(parts) < 3 or not all(parts[:3]):
                refuse(path, f"{one_line(text, 80)!r} is not operator,parameters,solution[,time]", place)
            if parts[0] == "Validator":
                facts[parts[1]] = parts[2]
                lines.append(_Line(text))
                continue
            entry = _entry(path, parts, place)
            lines.append(_Line(text, entry.key))
            if entry.key in entries:
                said = f"{entry.key} is in line {places[entry.key]} too, which is the one that PyTorch uses"
                misses.add(Miss(kind="entry", where=f"{one_line(path)}, {place}", detail=one_line(said)))
                continue
            if len(entries) >= MAX_ENTRIES:
                refuse(path, f"more than {MAX_ENTRIES} entries are not read", place)
            entries[entry.key], places[entry.key] = entry, number
        return ForeignBook(
            path=path, format=self.name, facts=facts, entries=entries, misses=misses.known(), content=tuple(lines)
        )

    def write(self, book: ForeignBook, path: Path) -> None:
        """Write the lines again."""
        lines: tuple[_Line, ...] = own(book, self.name)
        replace(path, "\n".join(line.text for line in lines).encode())

    def merge(self, first: ForeignBook, second: ForeignBook) -> ForeignBook:
        """Raises ``UsageError`` unless their validators agree: PyTorch would refuse the file."""
        same(first, second, sorted({*first.facts, *second.facts}))
        mine, theirs = own(first, self.name), own(second, self.name)
        while mine and not mine[-1].text:
            mine = mine[:-1]
        more = tuple(line for line in theirs if line.key is not None and line.key not in first.entries)
        return merged(first, second, (*mine, *more, _Line("")))


def _entry(path: Path, parts: list[str], place: str) -> Entry:
    op, sizes, solution = parts[:3]
    taken = None
    if len(parts) > 3:
        try:
            time: object = float(parts[3])
        except ValueError:
            time = parts[3]
        # PyTorch writes 0 where it did not measure.
        taken = seconds(path, time, 1e-3, place) or None
    return Entry(key=f"{op},{sizes}", op=op, problem=sizes, choice=solution, seconds=taken)


FORMAT: Format = TunableOp()
