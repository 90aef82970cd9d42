"""Results read, exported and summed up: from an outbox, and from directories made by anything."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from obatchd.cli.obatchctl import main
from obatchd.client.control import ControlClient
from obatchd.errors import NotFoundError, ResultsError
from obatchd.results.answers import parse_answer
from obatchd.results.export import Format, export
from obatchd.results.rates import Z_95
from obatchd.results.repeats import Prompts
from obatchd.results.rows import ResultSet
from obatchd.results.tally import Tally
from obatchd.words import counted

Document = dict[str, Any]


def outbox(directory: Path, rows: list[Document], summary: Document | None = None, **status: Any) -> Path:
    """An outbox as the daemon leaves it; without ``summary`` the job still runs."""
    (directory / "responses").mkdir(parents=True)
    (directory / "status.json").write_text(json.dumps({"job": "20261123-133648-darg", "requests": len(rows), **status}))
    if summary is None:
        for row in rows:
            (directory / "responses" / f"{row['id']}.json").write_text(json.dumps(row))
            (directory / "responses" / f"{row['id']}.txt").write_text("not read")
        return directory
    for name, good in (("results.jsonl", True), ("errors.jsonl", False)):
        wanted = [row for row in rows if (row["outcome"] == "succeeded") is good]
        (directory / name).write_text("".join(json.dumps(row) + "\n" for row in wanted))
    (directory / "summary.json").write_text(json.dumps({"job": "20261123-133648-darg", **summary}))
    return directory


def success(line: int, response: str, **more: Any) -> Document:
    return {
        "id": f"n{line}",
        "line": line,
        "outcome": "succeeded",
        "prompt": f"note {line}",
        "response": response,
        **more,
    }


def failure(line: int, code: str = "context_exceeded", **more: Any) -> Document:
    return {"id": f"n{line}", "line": line, "outcome": "failed", "code": code, "message": "too\nlong", **more}


def test_every_exported_row_is_one_line_to_any_reader(tmp_path: Path) -> None:
    row = success(1, "before\u2028\u2029\x85after", input={"\x85": "\u2028"})
    outbox(tmp_path / "o", [row], {"requests": 1})
    [line] = exported(tmp_path / "o", "jsonl")[0].decode().splitlines()
    assert json.loads(line) == row


NOTES = [
    success(1, '{"mrn": "17", "age": 40}', input={"ward": "A", "mrn": "0017"}),
    failure(2, input={"ward": "B"}),
    success(3, 'Here it is:\n```json\n{"mrn": "18", "age": 40.5, "drugs": ["x"]}\n```\n', input={"ward": "C"}),
    success(4, "I cannot do that."),
]


def exported(path: Path, form: Format, **options: Any) -> tuple[bytes, Tally]:
    target = io.BytesIO()
    tally = export(ResultSet(path), form, target, **options)
    return target.getvalue(), tally


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ('{"a": 1}', {"a": 1}),
        (' [1, "two"]\n', [1, "two"]),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('```\n{"a": 1}\n```', {"a": 1}),
        ('Sure!\n\n```JSON\n{"a": "```"}\n```\nAnything else?', {"a": "```"}),
        ('The data: {"a": {"b": 2}}. Done.', {"a": {"b": 2}}),
        ('<think>maybe {"a": 0}?</think>\n{"a": 1}', {"a": 1}),
    ],
)
def test_data_is_found_in_an_answer(text: str, data: Any) -> None:
    assert parse_answer(text) == (data, "")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("42", "bare value"),
        ('"word"', "bare value"),
        ("Paris, as [1] says", "not JSON"),
        ('{"a": 1', "not JSON"),
        ('{"a": NaN}', "NaN"),
        ('```json\n{"a": 1}\n```\nor\n```json\n{"a": 2}\n```', "2 JSON blocks"),
        ("[" * 200_000, "deep"),
        ("9" * 5000, "not JSON"),
    ],
)
def test_an_answer_that_is_no_json_says_why(text: str, why: str) -> None:
    parsed = parse_answer(text)
    assert not parsed.found
    assert why in parsed.problem


def test_csv_has_a_row_per_request_in_order_and_every_column_of_the_input(tmp_path: Path) -> None:
    written, tally = exported(outbox(tmp_path / "o", NOTES, {"requests": 4}), "csv")
    rows = list(csv.DictReader(io.StringIO(written.decode(), newline="")))
    assert [row["id"] for row in rows] == ["n1", "n2", "n3", "n4"]
    assert [row["ward"] for row in rows] == ["A", "B", "C", ""]
    assert [row["age"] for row in rows] == ["40", "", "40.5", ""]
    assert (rows[0]["mrn"], rows[0]["data.mrn"]) == ("0017", "17")
    assert rows[2]["drugs"] == '["x"]'
    assert rows[3]["response"] == "I cannot do that."
    assert (rows[1]["outcome"], rows[1]["code"]) == ("failed", "context_exceeded")
    assert tally.not_json == [("n4", "it is not JSON: expecting value in column 1")]


def test_csv_runs_nothing_in_a_spreadsheet_and_numbers_stay(tmp_path: Path) -> None:
    texts = [
        '=HYPERLINK("http://x")',
        "+1+cmd|' /C calc'!A0",
        "-2+3",
        "@SUM(1)",
        "\t=1",
        "- a list",
        "-1.5e3",
        "-7",
        "a=b",
    ]
    rows = [success(line, text, input={"=1+1": -line}) for line, text in enumerate(texts, 1)]
    written, _ = exported(outbox(tmp_path / "o", rows, {}), "csv")
    read = list(csv.DictReader(io.StringIO(written.decode(), newline="")))
    assert [row["response"] for row in read] == [f"'{text}" for text in texts[:6]] + texts[6:]
    assert [row["'=1+1"] for row in read] == [str(-line) for line in range(1, 10)]
    assert [json.loads(line)["response"] for line in exported(tmp_path / "o", "jsonl")[0].splitlines()] == texts


def test_text_commands_no_terminal(tmp_path: Path) -> None:
    rows = [success(1, "a\x1b]52;c;eA==\x07\tb\nc\x9b2J"), failure(2) | {"message": "\x1b[2J"}]
    written, _ = exported(outbox(tmp_path / "o", rows, {}), "text")
    assert "a]52;c;eA==\tb\nc2J\n" in written.decode()
    assert "\x1b" not in written.decode()


def test_json_is_one_array_of_all_rows_or_of_their_data(tmp_path: Path) -> None:
    path = outbox(tmp_path / "o", NOTES, {})
    rows = json.loads(exported(path, "json")[0])
    assert [row["line"] for row in rows] == [1, 2, 3, 4]
    assert rows[2]["data"] == {"mrn": "18", "age": 40.5, "drugs": ["x"]}
    assert rows[2]["input"] == {"ward": "C"}
    assert "data" not in rows[3]
    merged, tally = exported(path, "json", data_only=True)
    assert json.loads(merged) == [{"mrn": "17", "age": 40}, rows[2]["data"]]
    assert [name for name, _ in tally.not_json] == ["n4"]
    assert [json.loads(line) for line in exported(path, "jsonl")[0].splitlines()] == rows


def test_parquet_without_its_library_says_what_installs_it_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ResultsError) as error:
        exported(outbox(tmp_path / "o", NOTES, {}), "parquet")
    assert error.value.message == (
        "Parquet needs the library pyarrow, and that is not installed. To install it: "
        f"{sys.executable} -m pip install pyarrow"
    )


def test_parquet_has_types_and_the_same_rows(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra parquet is not installed")
    rows = [
        *NOTES,
        success(5, "vector", embeddings=[0.5, 1]),
        success(6, '{"n": true}'),
        success(7, f'{{"big": [{10**400}]}}'),
    ]
    written, _ = exported(outbox(tmp_path / "o", rows, {}), "parquet")
    table = parquet.read_table(io.BytesIO(written))
    assert table.column("line").to_pylist() == [1, 2, 3, 4, 5, 6, 7]
    assert table.column("age").to_pylist() == [40.0, None, 40.5, None, None, None, None]
    assert table.column("big").to_pylist()[6] == f"[{10**400}]"
    assert table.column("embeddings").to_pylist()[4] == [0.5, 1.0]
    assert table.column("n").to_pylist()[5] is True
    assert table.column("ward").to_pylist()[:3] == ["A", "B", "C"]


def test_all_answers_of_a_request_are_in_its_text(tmp_path: Path) -> None:
    choices = [{"index": 0, "response": "Rhine"}, {"index": 1, "response": "Elbe"}]
    written, _ = exported(outbox(tmp_path / "o", [success(1, "Rhine", choices=choices)], {}), "text")
    assert b"\n\n[0] Rhine\n\n[1] Elbe\n\n" in written


def test_an_answer_of_another_program_is_its_one_choice(tmp_path: Path) -> None:
    (tmp_path / "openai.json").write_text(json.dumps({"choices": [{"index": 0, "message": {"content": "Rhine"}}]}))
    written, _ = exported(tmp_path, "text")
    assert b"\n\nRhine\n\n" in written
    prompts = Prompts(ResultSet(tmp_path), majority=True)
    assert [row.record["response"] for row in prompts.rows()] == ["Rhine"]
    assert prompts.agreement.lines() == []


def test_answers_to_repeated_prompts_are_in_order_while_their_job_runs(tmp_path: Path) -> None:
    rows = [success(line, "a", id=f"{name}#{k}", repeat=k) for line, name in ((1, "z"), (2, "a")) for k in (10, 2, 1)]
    names = [row.name for row in ResultSet(outbox(tmp_path / "o", rows)).rows()]
    assert names == ["z#1", "z#2", "z#10", "a#1", "a#2", "a#10"]


def test_vectors_are_no_text_that_should_be_json(tmp_path: Path) -> None:
    rows = [success(1, "", embedding=[0.5, 0.25]), success(2, "", embeddings=[[1.0], [2.0]])]
    path = outbox(tmp_path / "o", rows, {})
    printed, tally = exported(path, "text")
    assert b"[0.5, 0.25]" in printed and b"[[1.0], [2.0]]" in printed
    assert tally.lines(ResultSet(path)) == ["2 requests = 2 answered + 0 failed"]


def test_the_sum_counts_everything_and_groups_failures(tmp_path: Path) -> None:
    rows = [success(line, "words") for line in range(1, 4931)]
    rows += [failure(line, "timeout" if line % 7 else "bad_json") for line in range(4931, 5001)]
    source = ResultSet(outbox(tmp_path / "o", rows, {}))
    lines = export(source, "jsonl", io.BytesIO()).lines(source)
    assert lines == [
        "5,000 requests = 4,930 answered + 70 failed",
        "  60 timeout: too long",
        "  10 bad_json: too long",
        "  try these again:  obatchctl retry 20261123-133648-darg",
        "  10 cannot be retried: mend lines 4935, 4942, 4949, 4956, 4963, 4970, 4977, 4984, 4991, 4998 of the drop and"
        " submit them",
    ]


@pytest.mark.parametrize(
    ("form", "answers", "told"),
    [
        ("", ["Paris", "42"], ""),
        ("", ["Paris", "[1, 2]"], ""),
        (None, ["Paris", "42"], ""),
        (None, ["Paris", "London", "[1, 2]"], "Not JSON: 2 answers"),
        ("", ["Paris", "[1]", "[2]"], "Not JSON: 1 answer,"),  # the prompt asked for it
        ("json", ["Paris", "42"], "No answer is JSON: 2 texts instead."),
        ({"type": "object"}, ["Paris", "{}"], "Not JSON: 1 answer,"),
    ],
)
def test_that_answers_are_no_json_is_told_where_json_was_asked_for(
    tmp_path: Path, form: Any, answers: list[str], told: str
) -> None:
    rows = [success(line, answer) for line, answer in enumerate(answers, start=1)]
    path = outbox(tmp_path / "o", rows, {} if form is None else {"settings": {"format": form}})
    said, page = obatchctl(path).stderr, tmp_path / "page.html"
    assert (
        (told in said)
        if told
        else said.splitlines() == [f"{counted(len(answers), 'request')} = {len(answers)} answered + 0 failed"]
    )
    assert obatchctl(path, "--review", "9", "-o", page).exit_code == 0
    marks = [words in page.read_text() for words in ("<p>No data: ", "Not JSON: ", "No answer is JSON: ")]
    assert marks == [bool(told), told.startswith("Not"), told.startswith("No ")]


def test_answers_that_are_left_out_because_they_are_no_json_are_always_told(tmp_path: Path) -> None:
    path = outbox(tmp_path / "o", [success(1, "Paris")], {"settings": {"format": ""}})
    assert "No answer is JSON: 1 text instead." in obatchctl(path, "--format", "json", "--data-only").stderr


def test_a_running_job_shows_what_it_has(tmp_path: Path) -> None:
    source = ResultSet(outbox(tmp_path / "o", [NOTES[2], NOTES[0]], requests=10))
    assert [row.name for row in source.rows()] == ["n1", "n3"]
    assert ResultSet(tmp_path / "o" / "responses").job == source.job
    assert export(source, "json", io.BytesIO()).lines(source) == [
        "10 requests = 2 answered + 0 failed + 8 not answered yet"
    ]


def test_a_directory_made_by_anything(tmp_path: Path) -> None:
    files = {
        "10.json": {"prompt": "p10", "response": '{"a": 1}'},
        "9.json": {"prompt": "p9", "response": "x", "extra": 1},
        "ollama.json": {"model": "m", "message": {"content": "native", "thinking": "hm"}, "done": True},
        "openai.json": {"choices": [{"message": {"content": "chat"}}]},
        "several.json": [{"response": {"b": 2}}, {"response": "two"}],
        "none.json": {"prompt": "p"},
    }
    for name, document in files.items():
        (tmp_path / name).write_text(json.dumps(document))
    (tmp_path / "torn.json").write_text('{"prompt": "p", "resp')
    (tmp_path / "9.txt").write_text("x")
    (tmp_path / "alone.md").write_text("only text")
    (tmp_path / ".hidden.json").write_text("{}")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    batch = {"custom_id": "c1", "response": {"status_code": 200, "body": {"choices": [{"message": {"content": "ok"}}]}}}
    bad = {"custom_id": "c2", "response": None, "error": {"code": "batch_expired", "message": "late"}}
    (tmp_path / "batch.jsonl").write_text(f"{json.dumps(batch)}\n\n{json.dumps(bad)}\nnot json\n")
    source = ResultSet(tmp_path)
    rows = {row.name: row for row in source.rows()}
    assert list(rows) == [
        "9", "10", "alone", "c1", "c2", "batch#4", "none", "ollama", "openai", "several#1", "several#2", "torn",
    ]  # fmt: skip
    assert rows["ollama"].record["response"] == "native"
    assert rows["ollama"].record["think"] == "hm"
    assert rows["openai"].record["response"] == "chat"
    assert rows["several#1"].record["data"] == {"b": 2}
    assert rows["c1"].record["response"] == "ok"
    failed = {name: row.record["code"] for name, row in rows.items() if not row.succeeded}
    assert failed == {"c2": "batch_expired", "batch#4": "bad_json", "none": "no_response", "torn": "bad_json"}
    tally = export(source, "csv", io.BytesIO())
    assert "12 requests = 8 answered + 4 failed" in tally.lines(source)
    assert not any("retry" in line for line in tally.lines(source))


def test_nothing_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        ResultSet(tmp_path / "nowhere")


def obatchctl(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["results", *map(str, arguments)])


def test_the_command_prints_writes_and_sums_up(tmp_path: Path) -> None:
    path = outbox(tmp_path / "notes.20261123-133648-darg", NOTES, {})
    printed = obatchctl(path)
    assert printed.exit_code == 0
    assert "Prompt: note 1\n" in printed.stdout
    assert "FAILED context_exceeded" in printed.stdout
    assert "4 requests = 3 answered + 1 failed\n" in printed.stderr
    assert "  n4: it is not JSON" in printed.stderr
    table = tmp_path / "table.csv"
    assert "4 requests = 3 answered + 1 failed\n" in obatchctl(path, "-o", table).stdout
    headings = "id,line,ward,mrn,outcome,prompt,response,data.mrn,age,drugs,code,message"
    assert table.read_bytes().splitlines()[0].decode() == headings
    document = json.loads(obatchctl(path, "-o", table, "--json").stdout)
    assert (document["in"], document["succeeded"], document["failed"]) == (4, 3, 1)
    assert document["retry"] == "obatchctl retry 20261123-133648-darg"
    by_id = CliRunner().invoke(main, ["--spool", str(tmp_path), "results", "20261123"])
    assert by_id.exit_code == 3  # no daemon and no outbox there
    (tmp_path / "outbox").mkdir()
    path.rename(tmp_path / "outbox" / path.name)
    by_id = CliRunner().invoke(main, ["--spool", str(tmp_path), "results", "20261123"])
    assert by_id.exit_code == 0, by_id.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--json", "--format", "csv"],
        ["--json", "--only", "failed"],
        ["-o", "x.odd"],
        ["--format", "csv", "--data-only"],
        ["--format", "xml"],
    ],
)
def test_wrong_usage_is_explained(tmp_path: Path, arguments: list[str]) -> None:
    assert obatchctl(outbox(tmp_path / "o", NOTES, {}), *arguments).exit_code == 2


def test_json_alone_is_one_document_with_the_sums_and_the_place_of_the_answers(tmp_path: Path) -> None:
    path = outbox(tmp_path / "o", NOTES, {})
    run = obatchctl(path, "--json")
    document = json.loads(run.stdout)
    assert (run.exit_code, document["in"], document["failed"], document["output"]) == (0, 4, 1, None)
    assert document["path"] == str(path)


@pytest.mark.parametrize(
    ("name", "prompts"),
    [
        ("prompts.csv", b"id,text\n1,Why?\n"),
        ("prompts.jsonl", b'{"prompt": "Why?"}\n{"custom_id": "a", "url": "/v1/chat/completions", "body": {}}\n'),
        ("prompts.json", b'[{"prompt": "Why?"}]'),
        ("prompts.xlsx", b"PK\x03\x04\xff"),
    ],
)
def test_a_file_of_prompts_has_no_answers_and_is_told_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, prompts: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(prompts)
    down = CliRunner().invoke(main, ["--spool", str(tmp_path), "results", name, "-o", "table.csv"])
    assert down.exit_code == 3 and not Path("table.csv").exists()
    assert down.stderr.startswith(
        f"there is no response in {name}. If it is a file of prompts, its answers are in a spool.\n"
        f"obatchd is not running on {tmp_path}."
    )
    named = obatchctl(f"./{name}")
    words = f"If it is a file of prompts, its job has the answers:  obatchctl results {name}"
    assert (named.exit_code, named.stderr) == (1, f"there is no response in {name}. {words}\n")
    monkeypatch.setattr(ControlClient, "get", lambda *_, **__: raising(NotFoundError("no such job")))
    other = obatchctl(name)
    assert other.exit_code == 1
    assert other.stderr.endswith("it has no job with its name yet; obatchctl jobs lists the jobs\n")


def raising(error: Exception) -> None:
    raise error


def test_failures_of_a_job_are_results_also_where_every_line_of_it_was_broken(tmp_path: Path) -> None:
    path = outbox(tmp_path / "o", [failure(1, "bad_json"), failure(2, "no_response")], {}) / "errors.jsonl"
    assert obatchctl(path).exit_code == 0
    assert obatchctl(outbox(tmp_path / "running", [], requests=3)).exit_code == 0


def test_a_folder_without_responses_is_said_to_have_none(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    run = obatchctl(tmp_path)
    assert (run.exit_code, run.stderr) == (1, f"there are no response files in {tmp_path}\n")


def test_an_ending_that_says_no_format_is_told_those_that_do(tmp_path: Path) -> None:
    said = obatchctl(outbox(tmp_path / "o", NOTES, {}), "-o", "x.odd").stderr
    assert said.endswith("end its name with .csv, .xlsx, .parquet, .json, .jsonl or .txt, or give --format as well\n")


def test_the_review_page_shows_source_and_data_side_by_side(tmp_path: Path) -> None:
    text = "Patient <b>Jane</b>, MRN 4711, age 3"
    rows = [
        success(1, '{"mrn": "4711", "name": "John", "drugs": ["x", {"dose": 5}], "fit": true}') | {"prompt": text},
        success(2, "no data & no JSON"),
        failure(3),
    ]
    page = tmp_path / "page.html"
    result = obatchctl(outbox(tmp_path / "o", rows, {}), "--review", "50", "-o", page)
    assert result.exit_code == 0, result.output
    shown = page.read_text()
    assert "2 of 2 answers" in shown
    assert "&lt;b&gt;Jane&lt;/b&gt;" in shown and "<b>Jane" not in shown
    assert "<mark>4711</mark>" in shown
    assert '<span class="missing">John</span>' in shown
    assert "<td>drugs[2].dose</td>" in shown
    assert "no data &amp; no JSON" in shown
    deep = outbox(tmp_path / "deep", [success(1, "[" * 2000 + "1" + "]" * 2000)], {})  # data, from Python 3.13 on
    assert obatchctl(deep, "--review", "1", "-o", tmp_path / "deep.html").exit_code == 0
    one = [obatchctl(tmp_path / "o", "--review", "1", "--seed", "7", "-o", page) and page.read_text() for _ in range(2)]
    assert one[0] == one[1]
    assert "1 of 2 answers" in one[0]


def test_a_page_explains_only_what_is_on_it(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    for number, (answer, has) in enumerate((("words", False), ('{"note": 1}', True))):
        path = outbox(tmp_path / str(number), [success(1, answer), success(2, answer)], {"name": "notes.csv"})
        told = obatchctl(path, "--review", "500", "-o", page)
        assert told.stdout.endswith(f"written to {page}: 2 of 2 answers\n")
        assert ("those that do not are" in page.read_text()) is has
        assert "<title>Review of notes.csv (20261123-133648-darg)</title>" in page.read_text()
        assert "<kbd>r</kbd> right, <kbd>w</kbd> wrong, and on to the next" in page.read_text()
        assert CliRunner().invoke(main, ["compare", str(path), str(path), "-o", str(page)]).exit_code == 0
        assert ("Fields that differ" in page.read_text()) is has


@pytest.mark.parametrize("name", ["rev.csv", "rev"])
def test_a_page_is_not_written_under_the_name_of_a_table(tmp_path: Path, name: str) -> None:
    path = outbox(tmp_path / "o", [success(1, "words")], {})
    told = obatchctl(path, "--review", "5", "-o", tmp_path / name)
    assert told.exit_code == 2 and "--review writes a page; end its name with .html" in told.stderr
    assert not (tmp_path / name).exists()


def test_the_review_page_takes_marks_and_runs_no_script_but_its_own(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>'
    rows = [success(1, evil) | {"id": evil, "prompt": evil}, success(2, "x")]
    page = tmp_path / "page.html"
    assert obatchctl(outbox(tmp_path / "o", rows, {}), "--review", "9", "-o", page).exit_code == 0
    text = page.read_text()
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    [allowed] = re.findall(r"script-src 'sha256-([^']+)'", text)
    assert b64decode(allowed) == sha256(script.encode()).digest()
    assert "default-src 'none'" in text and text.count("<script") == 1
    assert f'<article data-id="{html.escape(evil)}">' in text
    assert len(re.findall('<button type="button" value="(?:right|wrong)"', text)) == 4
    assert f"z = {Z_95}," in script  # the intervals of both are the same
    if node := shutil.which("node"):
        assert subprocess.run([node, "--check", "-"], input=script, text=True).returncode == 0


def marks_of(page: Path) -> list[str]:
    """The names under which the browser keeps the marks of a page."""
    return re.findall('<h2 data-key="([0-9a-f]+)">', page.read_text())


def test_a_mark_belongs_to_an_answer_and_not_to_whatever_has_its_id_elsewhere(tmp_path: Path) -> None:
    keys = []
    for name, answers in (("a", ("x", "y")), ("b", ("x", "z"))):
        rows = [success(line, answer) for line, answer in enumerate(answers, start=1)]
        path = outbox(tmp_path / name, rows, {}) / "results.jsonl"
        assert obatchctl(path, "--review", "9", "-o", tmp_path / f"{name}.html").exit_code == 0
        keys.append(marks_of(tmp_path / f"{name}.html"))
    assert keys[0][0] == keys[1][0] and keys[0][1] != keys[1][1]
    assert len({*keys[0], *keys[1]}) == 3


def test_marks_are_saved_under_the_ids_that_an_export_as_csv_has(tmp_path: Path) -> None:
    ids = ["=1+1", "-5", "\uff1dx", "plain"]
    path = outbox(tmp_path / "o", [success(line, "x") | {"id": name} for line, name in enumerate(ids, start=1)], {})
    assert obatchctl(path, "--review", "9", "-o", tmp_path / "page.html").exit_code == 0
    told = [html.unescape(name) for name in re.findall('data-id="([^"]*)"', (tmp_path / "page.html").read_text())]
    written = csv.DictReader(io.StringIO(exported(path, "csv")[0].decode(), newline=""))
    assert told == [row["id"] for row in written] == ["'=1+1", "-5", "'\uff1dx", "plain"]


def test_each_of_several_choices_can_be_marked(tmp_path: Path) -> None:
    choices = [{"index": index, "response": text} for index, text in enumerate(("Rhine", "Elbe", "Rhine"))]
    path = outbox(tmp_path / "o", [success(1, "Rhine", choices=choices), success(2, "alone")], {})
    page = tmp_path / "page.html"
    assert obatchctl(path, "--review", "9", "-o", page).exit_code == 0
    assert re.findall('<article data-id="([^"]*)"', page.read_text()) == ["n1[0]", "n1[1]", "n1[2]", "n2"]
    assert "4 of 4 answers" in page.read_text() and '<div class="text">Elbe</div>' in page.read_text()
    assert len(set(marks_of(page))) == 4
