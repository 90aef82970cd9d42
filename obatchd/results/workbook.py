"""Results as a workbook for Excel and its like, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from obatchd.errors import ResultsError
from obatchd.installation import lacks
from obatchd.results.table import Column, as_text

# Excel's own limits: support.microsoft.com, "Excel specifications and limits".
_ROWS, _COLUMNS, _CHARACTERS = 1_048_576, 16_384, 32_767
_DIGITS = 2**53  # numbers beyond lose digits in it


class Workbook:
    """One sheet with a header. ``cut`` counts texts that were longer than a cell may be."""

    def __init__(self, columns: list[Column]) -> None:
        """Raises ResultsError where the library is not installed, or there are too many columns."""
        try:
            import openpyxl
            from openpyxl.cell import WriteOnlyCell
            from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
        except ImportError:
            raise ResultsError(lacks("openpyxl", "a workbook"), code="no_openpyxl") from None
        if len(columns) > _COLUMNS:
            raise ResultsError(f"a workbook has at most {_COLUMNS:,} columns, and these are {len(columns):,}: use .csv")
        self._cell, self._illegal = WriteOnlyCell, ILLEGAL_CHARACTERS_RE
        self._columns = columns
        self.cut = 0
        self._book = openpyxl.Workbook(write_only=True)
        self._sheet = self._book.create_sheet("results")
        self._sheet.freeze_panes = "A2"
        self._sheet.append([self._text(column.heading) for column in columns])

    def write(self, rows: Iterable[list[Any]], target: BinaryIO) -> None:
        """All rows of cells. Raises ResultsError where there are more than a sheet has."""
        try:
            for number, row in enumerate(rows, 2):
                if number > _ROWS:
                    most = f"{_ROWS - 1:,} rows below its header"
                    raise ResultsError(f"a workbook has at most {most}: use .csv or .parquet")
                self._sheet.append(list(self._cells(row)))
        except BaseException:
            self._sheet.close()  # half a sheet would complain when it is collected
            raise
        self._book.save(target)

    def _cells(self, row: list[Any]) -> Iterator[Any]:
        for value, column in zip(row, self._columns, strict=True):
            if (
                value is None
                or (isinstance(value, bool) and column.kind == "bool")
                or (column.kind in ("int", "float") and abs(value) <= _DIGITS and math.isfinite(value))
            ):
                yield value
            else:
                yield self._text(as_text(value))

    def _text(self, text: str) -> Any:
        """A text that stays one, whatever it begins with: nothing in it is run as a formula."""
        if len(text.encode("utf-16-le", "replace")) > 2 * _CHARACTERS:
            text = text.encode("utf-16-le", "replace")[: 2 * _CHARACTERS].decode("utf-16-le", "ignore")
            self.cut += 1
        text = self._illegal.sub("\N{REPLACEMENT CHARACTER}", text.encode("utf-8", "replace").decode())
        cell = self._cell(self._sheet, text)
        cell.data_type = "s"
        return cell
