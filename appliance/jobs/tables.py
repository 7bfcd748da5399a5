"""Tables that a stage says, laid out for the reader's width.

Where whole words do not fit next to each other, a table becomes a list: a block of lines a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from appliance.jobs.words import clean, figure

GAP = 3  # columns between two cells of a table, as rich lays it out
CROWDED = 1.25  # of the width: what a table may need before it is a list


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], width: int) -> RenderableType:
    """A table within `width` columns. A column in which no row says anything is left out."""
    shown = [i for i in range(len(columns)) if any(row[i] not in (None, "") for row in rows)]
    names = [columns[i] for i in shown]
    cells = [[cell_text(row[i]) for i in shown] for row in rows]
    if fits(names, cells, width):
        return side_by_side(names, cells)
    return listed(names, cells)


def fits(names: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> bool:
    """Whether no word need be broken, and hardly a line, with all columns side by side."""
    columns = list(zip(names, *cells, strict=True))
    room = width - GAP * len(columns)
    words = sum(max(map(longest_word, column)) for column in columns)
    lines = sum(max(map(longest_line, column)) for column in columns)
    return words <= room and lines <= CROWDED * room


def longest_word(text: str) -> int:
    """Columns of a terminal that the longest word takes."""
    return max(map(cell_len, text.split()), default=0)


def longest_line(text: str) -> int:
    """Columns of a terminal that the longest line takes."""
    return max(map(cell_len, text.splitlines()), default=0)


def side_by_side(names: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    """One line a row, or a few where a cell is broken between its words."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, *column in zip(names, *cells, strict=True):
        number = bool(column) and all(map(is_number, column))
        least = max(map(longest_word, (name, *column)))
        shown.add_column(name, justify="right" if number else "left", min_width=least)
    for row in cells:
        shown.add_row(*map(Text, row))
    return shown


def listed(names: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    """A block of lines for each row: a column's name, and beside it all that the cell says."""
    shown = Table.grid(padding=(0, 2))
    shown.add_column(style="dim", no_wrap=True)
    shown.add_column(overflow="fold")
    for row in cells:
        shown.add_row()
        for name, cell in zip(names, row, strict=True):
            shown.add_row(Text(f" {name}"), Text(cell))
    shown.add_row()
    return shown


def cell_text(cell: Any) -> str:
    """One cell of a table, as text without empty lines."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return figure(cell)
    return "\n".join(line.strip() for line in clean(str(cell)).splitlines() if line.strip())


def is_number(text: str) -> bool:
    """Whether a cell holds a figure."""
    try:
        float(text.replace(",", ""))
    except ValueError:
        return text in ("", "–")
    return True
