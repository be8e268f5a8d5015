"""How a result is written: as JSON, CSV, Markdown, and as tables for a terminal. Once, for all results.

A result names its figures, and this module writes them: the one version of the schema, the one escaping and the
one layout of tables are here. Nothing here knows what a figure means.

This module is plain Python: counting needs neither NumPy nor the C extension.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

__all__ = ["SCHEMA_VERSION", "Figure", "Result", "Table", "aligned", "figure_text", "printable"]

#: Of the JSON of every result.
SCHEMA_VERSION = 1
#: An average per step may be a fraction; every other count is an int.
Figure: TypeAlias = int | Fraction


@dataclass(frozen=True)
class Table:
    """A table for people.

    Attributes
    ----------
    caption
        What stands above it.
    header
        Names of the columns.
    rows
        Texts, one per column. Names in them may be any text.
    numbers
        The columns that are figures: they are aligned to the right.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()


class Result(ABC):
    """Figures that can be written in four formats. A subclass says what they are."""

    @abstractmethod
    def _title(self) -> str:
        """The first line for people; "" for none."""

    @abstractmethod
    def _document(self) -> Mapping[str, Any]:
        """All figures, as JSON has them; fractions may be among them."""

    @abstractmethod
    def _records(self) -> Sequence[Mapping[str, Any]]:
        """The lines of the CSV file, each by its columns. A column may be missing in some."""

    @abstractmethod
    def _tables(self) -> Iterable[Table]:
        """The tables for people."""

    def _lead(self) -> Iterable[str]:
        """Paragraphs for people between the title and the tables."""
        return ()

    def _notes(self) -> Iterable[str]:
        """Paragraphs for people below the tables."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain, unrounded numbers, with what they mean in words."""
        document: dict[str, Any] = _plain(self._document())
        return {"schema_version": SCHEMA_VERSION, **document}

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON text, in ASCII."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """A line for each row and, in most results, one for all of them; several names in a field are joined by +."""
        records = self._records()
        columns = dict.fromkeys(name for record in records for name in record)
        lines = [_csv_line(columns)]
        lines += [_csv_line(map(record.get, columns)) for record in records]
        return "".join(lines)

    def to_markdown(self) -> str:
        """The tables of ``str()`` in Markdown."""
        parts = [f"## {markdown_text(title)}"] if (title := self._title()) else []
        parts += [_lines(markdown_text, text) for text in self._lead()]
        for table in self._tables():
            parts += [f"**{markdown_text(table.caption)}**", markdown_table(table)]
        parts += [_lines(markdown_text, text) for text in self._notes()]
        return "\n\n".join(parts) + "\n"

    def __str__(self) -> str:
        parts = [printable(title)] if (title := self._title()) else []
        parts += [_lines(printable, text) for text in self._lead()]
        for table in self._tables():
            rows = aligned([table.header, *table.rows], numbers=table.numbers)
            parts.append(f"{printable(table.caption)}\n{rows}")
        parts += [_lines(printable, text) for text in self._notes()]
        return "\n\n".join(parts)


def figure_text(figure: float | Fraction | None) -> str:
    """A figure for people; integers keep every digit."""
    if figure is None:
        return "-"
    if isinstance(figure, int):
        return f"{figure:,}"
    return f"{float(figure):,.3f}" if isinstance(figure, Fraction) else f"{figure:,.6g}"


# ---- text of any kind ----------------------------------------------------------------------------


def printable(text: str) -> str:
    """Text on one line that does nothing to a terminal: what cannot be printed is shown as Python writes it."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "backslashreplace").decode()
        for one in text
    )


def display_width(text: str) -> int:
    """How many columns of a terminal a printable text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):  # a mark on the character before
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def aligned(rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """Rows of text in columns: those of ``numbers`` to the right, the others to the left."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(display_width, column)) for column in zip(*shown, strict=True)]

    def padded(column: int, cell: str) -> str:
        space = " " * (widths[column] - display_width(cell))
        return space + cell if column in numbers else cell + space

    return "\n".join(
        "  ".join(padded(column, cell) for column, cell in enumerate(row)).rstrip() for row in shown
    )


#: What Markdown takes for more than a character: no underscore within a word, no star between spaces.
_MARKDOWN = re.compile(r"[\\|<>`\[\]~$]|&(?=[#\w])|(?<![^\W_])_|_(?![^\W_])|(?<! )\*|\*(?! )")


def markdown_text(text: str) -> str:
    """Any text as words on one line of Markdown, or in one cell of a table."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))


def markdown_table(table: Table) -> str:
    """A table in Markdown."""
    rule = ["--:" if column in table.numbers else ":--" for column in range(len(table.header))]
    header, *rows = ([markdown_text(cell) for cell in row] for row in (table.header, *table.rows))
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def _lines(escape: Callable[[str], str], paragraph: str) -> str:
    return "\n".join(map(escape, paragraph.split("\n")))


# ---- plain values --------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """A value as JSON has it: fractions as floats."""
    if isinstance(value, Fraction):
        return float(value)
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def _csv_line(values: Iterable[Any]) -> str:
    """A line of CSV; a field with a line break or a carriage return in it is quoted."""
    text = io.StringIO()
    # The writer quotes what is in its own line end: both characters, therefore.
    csv.writer(text, lineterminator="\r\n").writerow(map(_field, values))
    return text.getvalue().removesuffix("\r\n") + "\n"


def _field(value: Any) -> Any:
    """A value as CSV has it, in text that UTF-8 can encode."""
    plain = "+".join(value) if isinstance(value, (list, tuple)) else _plain(value)
    return plain.encode("utf-8", "backslashreplace").decode() if isinstance(plain, str) else plain
