"""A table as text cells, written as Markdown, and how a number is written in one."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from rmadapter.reports.escape import markdown, paragraph


@dataclass(frozen=True)
class Table:
    """Rows of cells under headings, in plain text. Columns that are empty throughout are left out when it is written.

    Args:
        title: stands above; empty for none
        headings: one a column
        rows: as many cells each
        words: numbers of the columns that hold words, which are set to the left; numbers are set to the right
        note: stands below; empty for none
        aligned: whether Markdown pads the cells, so that it reads as a table where it is not rendered; unpadded, a
            row that changes changes no other, which is what results that are kept under version control want
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Container[int] = (0,)
    note: str = ""
    aligned: bool = True

    @property
    def shown(self) -> list[int]:
        """The numbers of the columns that are not empty throughout."""
        return [n for n in range(len(self.headings)) if any(row[n] for row in self.rows)]

    def markdown(self) -> str:
        """Title, table and note, as far as there are any."""
        shown = self.shown
        lines = [[markdown(line[n]) for n in shown] for line in (self.headings, *self.rows)]
        words = [place for place, n in enumerate(shown) if n in self.words]
        if self.aligned:
            found = _aligned(lines, words)
        else:
            found = [compact_heading(lines[0], words), *map(compact_row, lines[1:])]
        title = f"## {markdown(self.title)}" if self.title else ""
        parts = [title, "\n".join(found) if shown else "", paragraph(self.note)]
        return "\n\n".join(part for part in parts if part)


def compact_heading(headings: Sequence[str], words: Container[int]) -> str:
    """The first two lines of an unpadded table, of which the columns ``words`` hold words."""
    return compact_row(headings) + "\n|" + "".join("---|" if n in words else "--:|" for n in range(len(headings)))


def compact_row(cells: Sequence[str]) -> str:
    """A line of an unpadded table; for tables that are printed while they are measured."""
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def _aligned(lines: Sequence[Sequence[str]], words: Container[int]) -> list[str]:
    """Headings, rule and rows with the cells of a column padded to one width."""
    columns = []
    for n, (heading, *cells) in enumerate(zip(*lines, strict=True)):
        width = max(map(len, [heading, *cells, "--:"]))
        align = str.ljust if n in words else str.rjust
        rule = "-" * width if n in words else "-" * (width - 1) + ":"
        columns.append([align(heading, width), rule, *(align(cell, width) for cell in cells)])
    return ["| " + " | ".join(parts) + " |" for parts in zip(*columns, strict=True)]


def number(value: float | None, form: str = ".2f") -> str:
    """The number, or nothing for None."""
    return "" if value is None else format(value, form)


def difference(value: float | None, published: float | None) -> str:
    """``value - published`` with its sign, or nothing where one is unknown."""
    return "" if value is None or published is None else f"{value - published:+.2f}"


def joined(values: Sequence[float | None]) -> str:
    """Numbers with slashes between them, or nothing where one is unknown."""
    return "" if any(value is None for value in values) else " / ".join(f"{value:.2f}" for value in values)
