"""Tables: plain columns when piped, drawn on a terminal, and a short paragraph for each row where the terminal is narrow."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunebook.cli._text import encodable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

#: A cell of up to this width is never folded, and a wider one gets at least as much room; else the table is not drawn.
UNFOLDED = 24
_BORDER = 3  # what a drawn column needs beside its cells
_SEPARATOR = " · "
_INDENT = 2
#: The colour of a cell that is exactly this: what went well, what did not, and what is open.
_COLOURS = {
    **dict.fromkeys(("faster", "proven", "arrived", "won", "same"), "green"),
    **dict.fromkeys(("slower", "lost", "rejected", "did not arrive", "different"), "red"),
    **dict.fromkeys(("unresolved", "no difference", "not settled"), "yellow"),
}


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a title. Columns that begin with ``>`` are right-aligned."""
    if not rows:
        return
    title, columns = encodable(title), [encodable(column) for column in columns]
    rows = [[encodable(cell) for cell in row] for row in rows]
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
    from rich.cells import cell_len  # a Chinese character takes two columns of a terminal

    return [max(cell_len(name.lstrip(">")), *(cell_len(row[i]) for row in rows)) for i, name in enumerate(columns)]


def _drawn(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    shown = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for column, width in zip(columns, _widths(columns, rows), strict=True):
        shown.add_column(
            column.lstrip(">"),
            justify="right" if column.startswith(">") else "left",
            overflow="fold",
            min_width=min(width, UNFOLDED),
        )
    for row in rows:
        shown.add_row(*map(_cell, row))
    console.print(shown)


def _cell(cell: str) -> Text:
    """Text of files is never read as markup."""
    from rich.text import Text

    return Text(cell, style=_COLOURS.get(cell, ""))


def _paragraphs(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.text import Text

    separator = encodable(_SEPARATOR)
    console.print(Text(f"\n{title}", style="bold"))
    for first, *rest in rows:
        console.print(Text(first), overflow="fold")
        line = Text()
        for column, cell in zip(columns[1:], rest, strict=True):
            if not cell:
                continue
            name = Text(column.lstrip(">") + " ", style="dim")
            *heads, last = _pieces(cell, console.width - _INDENT - name.cell_len)
            for head in heads:  # too long for a line: broken where a tactic's parameters end
                if line:
                    _indented(console, line)
                line = Text.assemble(name, head) if head is heads[0] else Text(head)
            if heads:
                _indented(console, line)
                line = Text(last)
                continue
            part = Text.assemble(name, _cell(cell))
            if line and line.cell_len + len(separator) + part.cell_len > console.width - _INDENT:
                _indented(console, line)
                line = Text()
            line = line + Text(separator) + part if line else part
        if line:
            _indented(console, line)


def _pieces(cell: str, width: int) -> list[str]:
    """A cell in pieces of at most `width`, broken after commas; a piece without any is as long as it is."""
    from rich.cells import cell_len

    pieces = [""]
    for part in re.findall(r"[^,]*,|[^,]+", cell) if cell_len(cell) > width else [cell]:
        if pieces[-1] and cell_len(pieces[-1]) + cell_len(part) > width:
            pieces.append("")
        pieces[-1] += part
    return pieces


def _indented(console: Console, line: Text) -> None:
    from rich.padding import Padding

    line.overflow = "fold"
    console.print(Padding(line, (0, 0, 0, _INDENT)))


def _plain(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.cells import cell_len

    names, widths = [column.lstrip(">") for column in columns], _widths(columns, rows)
    print(f"\n{title}")
    for row in [names, *rows]:
        cells = []
        for cell, width, column in zip(row, widths, columns, strict=True):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if column.startswith(">") else cell + space)
        print("  ".join(cells).rstrip())
