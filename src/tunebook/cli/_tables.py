"""Tables: plain columns when piped, drawn on a terminal, and a short paragraph for each row where the terminal is narrow."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

#: A cell of up to this width is never folded, and a wider one gets at least as much room; else the table is not drawn.
UNFOLDED = 24
_BORDER = 3  # what a drawn column needs beside its cells
_SEPARATOR = " · "
_INDENT = 2


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a title. Columns that begin with ``>`` are right-aligned."""
    if not rows:
        return
    if not sys.stdout.isatty():
        _plain(title, columns, rows)
        return
    from rich.console import Console

    console = Console()
    if sum(min(width, UNFOLDED) + _BORDER for width in _widths(columns, rows)) + 1 <= console.width:
        _drawn(console, title, columns, rows)
    else:
        _paragraphs(console, title, columns, rows)


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(name.lstrip(">")), *(len(row[i]) for row in rows)) for i, name in enumerate(columns)]


def _drawn(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for column, width in zip(columns, _widths(columns, rows), strict=True):
        shown.add_column(
            column.lstrip(">"),
            justify="right" if column.startswith(">") else "left",
            overflow="fold",
            min_width=min(width, UNFOLDED),
        )
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))  # text of files is never read as markup
    console.print(shown)


def _paragraphs(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.text import Text

    console.print(Text(f"\n{title}", style="bold"))
    for first, *rest in rows:
        console.print(Text(first), overflow="fold")
        line = Text()
        for column, cell in zip(columns[1:], rest, strict=True):
            if not cell:
                continue
            *heads, cell = _pieces(cell, console.width - _INDENT - len(column) - 1)
            for head in heads:  # too long for a line: broken where a tactic's parameters end
                if line:
                    _indented(console, line)
                line = Text.assemble((column.lstrip(">") + " ", "dim"), head) if head is heads[0] else Text(head)
            if heads:
                _indented(console, line)
                line = Text(cell)
                continue
            part = Text.assemble((column.lstrip(">") + " ", "dim"), cell)
            if line and len(line) + len(_SEPARATOR) + len(part) > console.width - _INDENT:
                _indented(console, line)
                line = Text()
            line = line + Text(_SEPARATOR) + part if line else part
        if line:
            _indented(console, line)


def _pieces(cell: str, width: int) -> list[str]:
    """A cell in pieces of at most `width`, broken after commas; a piece without any is as long as it is."""
    pieces = [""]
    for part in re.findall(r"[^,]*,|[^,]+", cell) if len(cell) > width else [cell]:
        if pieces[-1] and len(pieces[-1]) + len(part) > width:
            pieces.append("")
        pieces[-1] += part
    return pieces


def _indented(console: Console, line: Text) -> None:
    from rich.padding import Padding

    line.overflow = "fold"
    console.print(Padding(line, (0, 0, 0, _INDENT)))


def _plain(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    names, widths = [column.lstrip(">") for column in columns], _widths(columns, rows)
    print(f"\n{title}")
    for row in [names, *rows]:
        cells = [
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        print("  ".join(cells).rstrip())
