"""Results as a workbook."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_results import NOTES, exported, failure, outbox, success

from obatchd.cli.obatchctl import main
from obatchd.errors import ResultsError
from obatchd.results import workbook

openpyxl = pytest.importorskip("openpyxl", reason="the extra xlsx is not installed")


def sheet(content: bytes) -> list[dict[str, Any]]:
    """The rows of a workbook by heading, and a check that no cell is a formula."""
    book = openpyxl.load_workbook(io.BytesIO(content))
    rows = list(book.active.iter_rows())
    assert not [cell.coordinate for row in rows for cell in row if cell.data_type == "f"]
    headings = [cell.value for cell in rows[0]]
    return [dict(zip(headings, (cell.value for cell in row), strict=True)) for row in rows[1:]]


def test_a_workbook_has_types_and_the_same_rows(tmp_path: Path) -> None:
    rows = [
        *NOTES,
        success(5, "vector", embeddings=[0.5, 1]),
        success(6, '{"n": true}'),
        success(7, f'{{"big": [{10**400}], "long": {2**60}}}', input={"é\x01": "米🦙"}),
        failure(8),
    ]
    written, tally = exported(outbox(tmp_path / "o", rows, {}), "xlsx")
    table = sheet(written)
    assert [row["line"] for row in table] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["age"] for row in table[:3]] == [40.0, None, 40.5]
    assert table[4]["embeddings"] == "[0.5, 1]" and table[5]["n"] is True
    assert (table[6]["big"], table[6]["long"]) == (f"[{10**400}]", str(2**60))
    assert table[6]["é\N{REPLACEMENT CHARACTER}"] == "米🦙"
    assert (table[7]["outcome"], table[7]["code"]) == ("failed", "context_exceeded")
    assert tally.outcomes.total() == 8 and tally.cut == 0


@pytest.mark.parametrize(
    "answer", ['=HYPERLINK("http://x")', "+1+1", "-2", "@SUM(A1)", "\t=1", "007", "1e5", "TRUE", " "]
)
def test_an_answer_stays_text_whatever_it_looks_like(tmp_path: Path, answer: str) -> None:
    written, _ = exported(outbox(tmp_path / "o", [success(1, answer)], {}), "xlsx")
    assert sheet(written)[0]["response"] == answer


def test_what_is_too_long_for_a_cell_is_cut_and_told(tmp_path: Path) -> None:
    rows = [success(1, "x" * 40_000), success(2, "🦙" * 20_000), success(3, "y" * 32_767)]
    source = outbox(tmp_path / "o", rows, {"requests": 3})
    said = CliRunner().invoke(main, ["results", str(source), "-o", str(tmp_path / "table.xlsx")])
    assert said.exit_code == 0
    words = "Cut: 2 texts, too long for a cell of a workbook; .csv and .json have all."
    assert words in said.stdout and f"written to {tmp_path / 'table.xlsx'}" in said.stdout
    table = sheet((tmp_path / "table.xlsx").read_bytes())
    assert [len(row["response"].encode("utf-16-le")) // 2 for row in table] == [32_767, 32_766, 32_767]


def test_too_many_rows_or_columns_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = outbox(tmp_path / "o", NOTES, {})
    with monkeypatch.context() as small:
        small.setattr(workbook, "_ROWS", 3)
        with pytest.raises(ResultsError, match=r"at most 2 rows below its header: use \.csv or \.parquet"):
            exported(source, "xlsx")
    monkeypatch.setattr(workbook, "_COLUMNS", 3)
    with pytest.raises(ResultsError, match=r"at most 3 columns, and these are .*: use \.csv"):
        exported(source, "xlsx")


def test_where_the_library_is_missing_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    source = outbox(tmp_path / "o", NOTES, {})
    said = CliRunner().invoke(main, ["results", str(source), "-o", str(tmp_path / "table.xlsx")])
    assert (said.exit_code, said.stderr.count("a workbook needs the library openpyxl")) == (1, 1)
    assert not list(tmp_path.glob("*.xlsx*"))
