"""A table as text cells, written as Markdown or HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of cells under headings; the first ``words`` columns hold words, the others numbers.

    Columns that are empty throughout are left out when it is written.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    note: str = ""

    def _shown(self) -> list[int]:
        return [n for n in range(len(self.headings)) if any(row[n] for row in self.rows)]

    def markdown(self) -> str:
        """With aligned columns, title above, note below."""
        columns = []
        for n in self._shown():
            cells = [row[n] for row in self.rows]
            width = max(map(len, [self.headings[n], *cells, "--:"]))
            align = str.ljust if n < self.words else str.rjust
            rule = "-" * width if n < self.words else "-" * (width - 1) + ":"
            columns.append([align(self.headings[n], width), rule, *(align(cell, width) for cell in cells)])
        lines = ["| " + " | ".join(parts) + " |" for parts in zip(*columns, strict=True)]
        return "\n\n".join([f"## {self.title}", "\n".join(lines), *([self.note] if self.note else [])])

    def html(self) -> str:
        """A ``section`` with the title, the table in a scrolling box, and the note."""
        shown = self._shown()
        head = "".join(f"<th{self._kind(n)}>{html.escape(self.headings[n])}</th>" for n in shown)
        body = "".join(
            "<tr>" + "".join(f"<td{self._kind(n)}>{html.escape(row[n])}</td>" for n in shown) + "</tr>\n"
            for row in self.rows
        )
        note = f"<p>{html.escape(self.note)}</p>\n" if self.note else ""
        return (
            f"<section>\n<h2>{html.escape(self.title)}</h2>\n<div class='scroll'><table>\n"
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n{note}</section>\n"
        )

    def _kind(self, column: int) -> str:
        return "" if column < self.words else " class='number'"


def number(value: float | None, form: str = ".2f") -> str:
    """The number, or nothing for None."""
    return "" if value is None else format(value, form)


def difference(value: float | None, published: float | None) -> str:
    """``value - published`` with its sign, or nothing where one is unknown."""
    return "" if value is None or published is None else f"{value - published:+.2f}"


def joined(values: Sequence[float | None]) -> str:
    """Numbers with slashes between them, or nothing where one is unknown."""
    return "" if any(value is None for value in values) else " / ".join(f"{value:.2f}" for value in values)
