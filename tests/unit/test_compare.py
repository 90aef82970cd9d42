"""The same prompts under two models, compared: figures, the table of both, and the page."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from test_results import Document, failure, outbox, success

from obatchd.cli.obatchctl import main
from obatchd.client.control import ControlClient
from obatchd.errors import ResultsError
from obatchd.results.compare import Comparison
from obatchd.results.rates import Rate, likeness
from obatchd.results.rows import ResultSet


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_wilsons(count: int, of: int, low: float, high: float) -> None:
    """Figures: R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3."""
    assert Rate(count, of).interval == pytest.approx((low, high), abs=0.00005)
    assert Rate(of - count, of).interval == pytest.approx((1 - high, 1 - low), abs=0.00005)


def test_a_rate_in_words() -> None:
    assert Rate(31, 40).text == "31 of 40, 78 % (62–88 %)"
    assert Rate(0, 0).text == "0 of 0"
    assert Rate(0, 0).document() == {"count": 0, "of": 0, "rate": None, "low": None, "high": None}


@pytest.mark.parametrize(
    ("answer", "other", "how"),
    [
        ("Paris", "Paris\n", "exact"),
        ("PARIS", "paris", "folded"),
        ("New  York", "new york", "folded"),
        ("STRASSE", "straße", "folded"),
        ("42", "42.0", "numeric"),
        (42, "42", "exact"),
        ("1,234.50", 1234.5, "numeric"),
        ("-3e2", "-300", "numeric"),
        (True, "true", "exact"),
        ("12345678901234567890", "12345678901234567891", ""),
        ("1,23", "123", ""),
        (".", "0", ""),
        ("", "0", ""),
        ("Paris.", "Paris", ""),
        ("4 2", "42", ""),
    ],
)
def test_answers_are_alike_by_their_letters_their_words_or_their_number(answer: Any, other: Any, how: str) -> None:
    assert likeness(answer, other) == likeness(other, answer) == how


def answered(line: int, response: str, label: Any = None, **more: Any) -> Document:
    given = {"input": {"label": label, "ward": "w"}} if label is not None else {}
    return success(line, response, response_tokens=line, tokens_per_s=10.0 * line, **given, **more)


A = [
    answered(1, "Yes", "yes", model="small"),
    answered(2, "41", "42"),
    answered(3, "no", "no"),
    failure(4, input={"label": "yes"}),
    answered(5, "alone"),
]
B = [
    answered(3, "No", "no", model="large"),
    answered(1, "yes", "yes"),
    answered(2, "42.0", "42"),
    answered(4, "yes", "yes"),
    answered(6, "alone"),
]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    first = outbox(tmp_path / "first", A, {"job": "20261128-101112-aaaa", "tokens_per_s": 123.4})
    second = outbox(tmp_path / "second", sorted(B, key=lambda row: row["line"]), {"job": "20261128-101113-bbbb"})
    return first, second


def compared(first: Path, second: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["compare", str(first), str(second), *options])


def test_agreement_lengths_speed_and_right_answers(two: tuple[Path, Path]) -> None:
    run = compared(*two, "--gold", "label", "--json")
    document = json.loads(run.stdout)
    assert (document["joined"], document["both_answered"]) == (4, 3)
    assert document["agreement"]["count"] == 2 and document["agreement_exact"]["count"] == 0
    a, b = document["a"], document["b"]
    assert (a["name"], a["models"], a["rows"], a["answered"]) == ("20261128-101112-aaaa", ["small"], 5, 4)
    assert (a["characters_median"], a["tokens_median"], a["tokens_per_s_median"]) == (2.5, 2.5, 25.0)
    assert (a["job_tokens_per_s"], b["job_tokens_per_s"]) == (123.4, None)
    assert document["known"] == 4
    assert [rate["count"] for rate in a["right"].values()] == [1, 2, 2]
    assert [rate["count"] for rate in b["right"].values()] == [2, 3, 4]
    assert (document["right_in_a_alone"], document["right_in_b_alone"]) == (0, 2)


def test_the_figures_for_people(two: tuple[Path, Path]) -> None:
    shown = compared(*two, "--gold", "label").stdout
    assert re.search(r"^ +20261128-101112-aaaa +20261128-101113-bbbb$", shown, re.MULTILINE)
    assert re.search(r"^model +small +large$", shown, re.MULTILINE)
    assert "in 20261128-101112-aaaa alone: 1 row\n" in shown
    assert "same answer: 2 of 3, 67 % (21–94 %)\n" in shown
    rows = [re.split(r" {2,}", line.strip()) for line in shown.splitlines() if line.startswith(("right", "  or"))]
    assert rows == [
        ["right of 4, letter for letter", "25 % (5–70 %)", "50 % (15–85 %)"],
        ["or but for case and spaces", "50 % (15–85 %)", "75 % (30–95 %)"],
        ["or as a number", "50 % (15–85 %)", "100 % (51–100 %)"],
        ["right by the column label in 20261128-101112-aaaa alone: 0; in 20261128-101113-bbbb alone: 2"],
    ]
    assert shown.endswith("In brackets stands the 95 % interval (Wilson's score).\n")


def test_json_answers_agree_by_their_data_and_their_fields(tmp_path: Path) -> None:
    first = [success(1, '{"age": 40, "sex": "F"}', input={"age": 40}), success(2, '{"age": 1}', input={"age": 2})]
    second = [success(1, '```json\n{"sex": "f", "age": 40.0}\n```', input={"age": 40}), success(2, '{"age": "2"}')]
    comparison = Comparison(
        ResultSet(outbox(tmp_path / "a", first, {})), ResultSet(outbox(tmp_path / "b", second, {})), "age"
    )
    figures = comparison.figures()
    assert figures.agreement == Rate(0, 2)  # an object is the same when each of its values is
    assert {name: dict(same) for name, same in figures.fields.items()} == {
        "age": {True: 1, False: 1}, "sex": {True: 1},
    }  # fmt: skip
    assert [side.json for side in figures.sides] == [2, 2]
    assert [rate.count for rate in figures.sides[1].rights(2).values()] == [1, 1, 2]
    named = Comparison(*comparison.sources, "age", "sex").figures()
    assert [rate.count for side in named.sides for rate in side.rights(2).values()] == [0] * 6


def test_true_is_not_the_number_one_and_a_list_not_its_text(tmp_path: Path) -> None:
    values = [({"x": True}, {"x": 1}), ({"x": 1}, {"x": 1.0}), ([1], "[1]"), ({"x": [1]}, {"x": "[1]"})]
    a, b = (
        ResultSet(outbox(tmp_path / str(side), [success(n, "", data=pair[side]) for n, pair in enumerate(values)], {}))
        for side in (0, 1)
    )
    assert [row.record["same"] for row in Comparison(a, b).rows()] == ["no", "exact", "no", "no"]


def test_nothing_in_common_and_no_such_column(two: tuple[Path, Path], tmp_path: Path) -> None:
    other = outbox(tmp_path / "other", [success(77, "x")], {"job": "20261128-101114-cccc"})
    run = compared(two[0], other)
    assert run.exit_code == 1
    assert run.stderr == (
        "no id of 20261128-101112-aaaa (5 rows) is in 20261128-101114-cccc (1 row); compare jobs of the same prompts\n"
    )
    run = compared(*two, "--gold", "truth")
    assert run.stderr == "no row has a known answer in the column truth; the columns of the input are label, ward\n"
    with pytest.raises(ResultsError, match="the input has no columns"):
        Comparison(*(ResultSet(outbox(tmp_path / name, [success(1, "x")], {})) for name in "xy"), "truth").figures()
    assert "--answer goes with --gold" in compared(*two, "--answer", "x").stderr


@pytest.mark.parametrize("name", ["x.pdf", "x.txt", "x"])
def test_a_file_that_compare_cannot_write_is_told_the_endings_that_it_can(two: tuple[Path, Path], name: str) -> None:
    run = compared(*two, "-o", name)
    endings = "with .html for a page, with .csv, .xlsx, .parquet, .json, .jsonl for a table"
    assert (run.exit_code, run.stderr.splitlines()[-1]) == (2, f"Error: --output {name}: end its name {endings}")


def test_the_table_has_both_beside_each_other_joined_by_id(two: tuple[Path, Path], tmp_path: Path) -> None:
    table = tmp_path / "both.csv"
    assert compared(*two, "--gold", "label", "-o", str(table)).exit_code == 0
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [(row["id"], row["answered_by"]) for row in rows] == [
        ("n1", "both"), ("n2", "both"), ("n3", "both"), ("n4", "b"), ("n5", "a"), ("n6", "b"),
    ]  # fmt: skip
    assert [row["same"] for row in rows] == ["folded", "no", "folded", "", "", ""]
    assert [row["right_a"] for row in rows] == ["folded", "no", "exact", "no", "", ""]
    assert [row["right_b"] for row in rows] == ["exact", "numeric", "folded", "exact", "", ""]
    assert (rows[1]["label"], rows[1]["response_a"], rows[1]["response_b"]) == ("42", "41", "42.0")
    assert rows[3]["code_a"] == "context_exceeded" and rows[3]["outcome_a"] == "failed"
    assert "outcome" not in rows[0]


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet", "xlsx"])
def test_what_is_wrong_and_what_nobody_knows_are_told_apart_in_every_table(
    two: tuple[Path, Path], tmp_path: Path, ending: str
) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    if ending == "xlsx":
        pytest.importorskip("openpyxl", reason="the extra xlsx is not installed")
    table = tmp_path / f"both.{ending}"
    assert compared(*two, "--gold", "label", "-o", str(table)).exit_code == 0
    rows = [{name: value for name, value in row.items() if value not in (None, "")} for row in read_table(table)]
    assert [row.get("right_a") for row in rows] == ["folded", "no", "exact", "no", None, None]
    assert [row.get("same") for row in rows] == ["folded", "no", "folded", None, None, None]


def read_table(path: Path) -> list[Document]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        found: list[Document] = pyarrow.parquet.read_table(path).to_pylist()
        return found
    if path.suffix == ".xlsx":
        import openpyxl

        headings, *rows = openpyxl.load_workbook(path).active.iter_rows(values_only=True)
        return [dict(zip(headings, row, strict=True)) for row in rows]
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_text())))
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines] if path.suffix == ".jsonl" else json.loads("".join(lines))


def test_a_request_that_a_job_never_had_is_not_wrong_in_it(tmp_path: Path) -> None:
    a, b = [answered(1, "x", "x"), answered(2, "x", "x")], [answered(1, "y", "x")]
    paths = (outbox(tmp_path / name, rows, {}) for name, rows in (("a", a), ("b", b)))
    rows = [row.record for row in Comparison(*map(ResultSet, paths), "label").rows()]
    assert [(row["right_a"], row["right_b"]) for row in rows] == [("exact", "no"), ("exact", None)]


def test_a_workbook_of_both_says_what_it_cut(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl", reason="the extra xlsx is not installed")
    paths = [outbox(tmp_path / name, [success(1, letter * 40_000)], {}) for name, letter in (("a", "x"), ("b", "y"))]
    table = tmp_path / "both.xlsx"
    said = compared(*paths, "-o", str(table)).stdout
    assert "Cut: 2 texts, too long for a cell of a workbook; .csv and .json have all.\n" in said
    assert said.endswith(f"written to {table}\n")


def test_fields_of_json_stand_beside_each_other_too(tmp_path: Path) -> None:
    rows = [[success(1, f'{{"age": {age}, "response": "r", "{extra}": 1}}')] for age, extra in ((1, "x"), (2, "y"))]
    a, b = (ResultSet(outbox(tmp_path / name, given, {})) for name, given in zip("ab", rows, strict=True))
    [row] = Comparison(a, b).rows()
    record = row.record
    assert (record["age_a"], record["age_b"], record["x_a"], record["x_b"], record["y_b"]) == (1, 2, 1, None, 1)
    assert record["data.response_a"] == "r" and record["response_a"].startswith("{")


def test_the_page_shows_both_and_runs_nothing(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    a = [success(1, evil, input={"label": evil}, model="<b>"), success(2, '{"x": 1, "y": "s"}'), failure(3)]
    b = [success(1, "x"), success(2, '{"x": 2, "y": "s"}'), success(3, "ok")]
    page = tmp_path / "page.html"
    run = compared(
        outbox(tmp_path / "a", a, {}), outbox(tmp_path / "b", b, {}), "--gold", "label", "-o", str(page)
    )  # fmt: skip
    assert run.exit_code == 0
    text = page.read_text()
    assert "<script" not in text and "script-src" not in text
    assert text.count("<article") == 3 and "FAILED context_exceeded" in text
    assert '<td><span class="differs">2</span></td>' in text and "<td>s</td>" in text
    assert "✓ right" in text and "✗ wrong" in text
    few = [compared(tmp_path / "a", tmp_path / "b", "-o", str(page), "--rows", "2", "--seed", "5") for _ in range(2)]
    assert few[0].exit_code == 0 and "2 of 3 requests, chosen at random." in page.read_text()


def _study(tmp_path: Path, name: str, template: str, **more: Any) -> Path:
    settings = {
        "template": template,
        "options": {"temperature": more.pop("temperature", 0)},
        "context_sha256": template,
    }
    rows = [success(line, "up", prompt=template.format(line), model="tiny") for line in (1, 2)]
    summary = {"job": f"20261128-101112-{name}", "settings": settings, "name": "notes.csv", **more}
    return outbox(tmp_path / name, rows, summary)


def test_what_both_were_asked_is_told_where_it_differs(tmp_path: Path) -> None:
    long = "Summarise for a nurse in two sentences: {}"
    a, b = _study(tmp_path, "aaaa", "Short: {}", label="study 1"), _study(tmp_path, "bbbb", long, temperature=0.7)
    shown = compared(a, b).stdout
    assert re.search(r"^ +study 1 +notes\.csv$", shown, re.MULTILINE)
    assert "job of study 1: 20261128-101112-aaaa\njob of notes.csv: 20261128-101112-bbbb\n" in shown
    assert re.search(r"^temperature +0 +0\.7$", shown, re.MULTILINE) and "sha256" not in shown
    assert f"template of study 1: Short: {{}}\ntemplate of notes.csv: {long}\nprompts that differ: 2 of 2\n" in shown
    document = json.loads(compared(a, b, "--json").stdout)
    assert document["settings"]["template"] == {"a": "Short: {}", "b": long} and document["prompts_differ"] == 2
    page = tmp_path / "page.html"
    compared(a, b, "-o", str(page))
    assert "<title>study 1 and notes.csv</title>" in page.read_text()
    told = (
        'Prompt of study 1</h3><div class="source">Short: 1<',
        f'Prompt of notes.csv</h3><div class="source">{long[:-2]}1<',
    )
    assert all(words in page.read_text() for words in told)
    compared(a, b, "-o", str(tmp_path / "t.json"))
    first = json.loads((tmp_path / "t.json").read_text())[0]
    assert (first["prompt"], first["prompt_a"], first["prompt_b"]) == ("Short: 1", "Short: 1", f"{long[:-2]}1")


def test_the_same_prompts_and_names_are_not_told_twice(tmp_path: Path) -> None:
    a, b = (_study(tmp_path, name, "Short: {}") for name in ("aaaa", "bbbb"))
    shown = compared(a, b).stdout
    assert re.search(r"^ +notes\.csv aaaa +notes\.csv bbbb$", shown, re.MULTILINE)
    assert "template" not in shown and "differ" not in shown
    document = json.loads(compared(a, b, "--json").stdout)
    assert (document["settings"], document["prompts_differ"], document["a"]["complete"]) == ({}, 0, True)


def test_a_job_that_still_runs_is_told(tmp_path: Path) -> None:
    whole = _study(tmp_path, "aaaa", "Short: {}", label="study 1")
    more = {"job": "20261128-101112-bbbb", "label": "study 2", "requests": 30}
    part = outbox(tmp_path / "part", [success(1, "up")], **more)
    run = compared(whole, part)
    assert "study 2 is still running: 1 of 30 requests answered\n" in run.stdout
    assert json.loads(compared(whole, part, "--json").stdout)["b"]["complete"] is False
    none = compared(whole, outbox(tmp_path / "none", [], **more))
    assert (none.exit_code, none.stderr) == (
        1, "study 2 is still running: 0 of 30 requests answered; compare them later\n"
    )  # fmt: skip


def test_a_job_that_has_just_begun_has_no_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = {"job": "20261128-101112-bbbb", "name": "notes.csv", "label": "study 2", "state": "running"}
    monkeypatch.setattr(ControlClient, "get", lambda *_: {**begun, "outbox": str(tmp_path / "none"), "retries": None})
    run = CliRunner().invoke(main, ["compare", str(_study(tmp_path, "aaaa", "{}")), "study-2"])
    told = "study 2 is still running: no request is answered yet; see:  obatchctl job 20261128-101112-bbbb\n"
    assert (run.exit_code, run.stderr) == (1, told)


def test_what_one_of_both_does_not_know_of_a_request_the_other_tells(tmp_path: Path) -> None:
    crashed = {name: value for name, value in failure(1, "poison").items() if name != "prompt"}
    a = [crashed, success(2, "no", input={"ward": "w"}), success(3, "x", input={"label": " "})]
    b = [answered(1, "yes", "yes"), answered(2, "no", "no"), success(3, "x", input={"label": " "})]
    comparison = Comparison(
        *(ResultSet(outbox(tmp_path / name, rows, {})) for name, rows in (("a", a), ("b", b))), "label"
    )
    figures = comparison.figures()
    assert figures.known == 2
    assert [side.right["exact"] for side in figures.sides] == [1, 2]
    first = next(comparison.rows()).record
    assert (first["prompt"], first["input"]) == ("note 1", {"label": "yes", "ward": "w"})
    page = tmp_path / "page.html"
    assert compared(tmp_path / "a", tmp_path / "b", "--gold", "label", "-o", str(page)).exit_code == 0
    assert '<div class="source">note 1</div>' in page.read_text()
    assert page.read_text().count("<small>label: ") == 2


def test_vectors_and_calls_of_functions_are_compared_as_well(tmp_path: Path) -> None:
    def call(city: str) -> list[Document]:
        return [{"function": {"name": "weather", "arguments": {"city": city}}}]

    a = [success(1, "", embedding=[1.0, 2.0]), success(2, "", embedding=[1.0]), success(3, "", tool_calls=call("Bern"))]
    b = [success(1, "", embedding=[1.0, 2.0]), success(2, "", embedding=[2.0]), success(3, "", tool_calls=call("Oslo"))]
    figures = Comparison(
        *(ResultSet(outbox(tmp_path / name, rows, {})) for name, rows in (("a", a), ("b", b)))
    ).figures()
    assert (figures.both, figures.agreement, figures.sides[0].characters) == (3, Rate(1, 3), [])


def test_an_id_that_is_used_twice_is_compared_once(tmp_path: Path) -> None:
    first = outbox(tmp_path / "a", [success(1, "x"), {**failure(2), "id": "n1", "code": "duplicate_id"}], {})
    second = outbox(tmp_path / "b", [success(1, "x"), {**failure(2), "id": "n1", "code": "duplicate_id"}], {})
    figures = Comparison(ResultSet(first), ResultSet(second)).figures()
    assert (figures.joined, figures.agreement) == (1, Rate(1, 1))
