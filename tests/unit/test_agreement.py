"""Prompts that were answered several times: agreement, majority and interval, in results and comparisons."""

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
from obatchd.results.compare import Comparison
from obatchd.results.rates import Rate
from obatchd.results.repeats import Prompts
from obatchd.results.rows import ResultSet


def repeats(line: int, *answers: str | None, **more: Any) -> list[Document]:
    """The rows of a prompt that was asked once for each of the answers; None is a failure."""
    found = []
    for number, answer in enumerate(answers, start=1):
        row = failure(line, **more) if answer is None else success(line, answer, seed=number, **more)
        found.append({**row, "id": f"n{line}#{number}", "repeat": number})
    return found


ROWS = [
    *repeats(1, "Yes", "no", "yes", input={"label": "yes"}),
    *repeats(2, "42", "42.0", " 42", input={"label": "42"}),
    *repeats(3, '{"a": 1, "b": 2}', '```json\n{"b": 2, "a": 1}\n```', '{"a": 2}'),
    *repeats(4, None, None, "x"),
    *repeats(5, None, None, None),
]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return outbox(tmp_path / "job", ROWS, {})


def results(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["results", *map(str, arguments)], catch_exceptions=False)


def test_the_end_of_an_export_says_how_far_the_answers_agree(job: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    shown = results(job, "-o", table).stdout.splitlines()
    at = shown.index("5 prompts asked 3 times:")
    assert shown[at + 1 : at + 3] == [
        "  all answers the same: 1 of 3, 33 % (6–79 %); in brackets the 95 % interval (Wilson's score)",
        "  answers that are the most frequent one of their prompt: 78 %",
    ]
    assert len(list(csv.DictReader(io.StringIO(table.read_text())))) == 15
    document = json.loads(results(job, "-o", table, "--json").stdout)
    assert (document["in"], document["repeats"]["prompts"]) == (15, 5)
    assert document["repeats"]["all_the_same"]["count"] == 1
    assert document["repeats"]["majority_share"] == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)


def test_the_majority_has_one_row_for_each_prompt(job: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    shown = results(job, "--majority", "-o", table).stdout
    assert "5 requests = 4 answered + 1 failed\n" in shown and "5 prompts asked 3 times:\n" in shown
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [(row["id"], row["response"][:3], row["answers"], row["agree"]) for row in rows] == [
        ("n1", "Yes", "3", "2"), ("n2", "42", "3", "3"), ("n3", '{"a', "3", "2"), ("n4", "x", "1", "1"),
        ("n5", "", "0", "0"),
    ]  # fmt: skip
    assert "repeat" not in rows[0] and "seed" not in rows[0]
    assert (rows[0]["agree_low"], rows[0]["agree_high"]) == ("0.208", "0.939")
    for of_exports in (["--majority"], ["--data-only"], ["--only", "failed"], ["--format", "csv"]):
        said = results(job, *of_exports, "--review", "3").stderr
        assert f"{of_exports[0]} goes with an export, not with --review" in said


def test_a_prompt_without_a_majority_is_told(tmp_path: Path) -> None:
    said = {"a": ("x", "y", "z"), "b": ("x", "x", "z"), "c": ("x", "X", "y"), "d": ("x", "x", "y")}
    rows = [
        {**success(line, text), "id": f"{name}#{number}", "repeat": number}
        for line, (name, texts) in enumerate(said.items(), start=1)
        for number, text in enumerate(texts, start=1)
    ]
    shown = results(outbox(tmp_path / "o", rows, {}), "--majority", "-o", tmp_path / "t.csv").stdout
    assert "  no majority, so --majority takes the first of the most frequent answers: 1 of 4 prompts\n" in shown
    document = json.loads(results(tmp_path / "o", "--json").stdout)
    assert document["repeats"]["tied"] == 1


def test_several_choices_of_one_request_are_judged_as_well(tmp_path: Path) -> None:
    choices = [{"index": index, "response": text} for index, text in enumerate(("no", "Yes", "yes"))]
    rows = [success(1, "no", choices=choices), success(2, "alone"), failure(3)]
    prompts = Prompts(ResultSet(outbox(tmp_path / "o", rows, {})), majority=True)
    first, *others = prompts.rows()
    record = first.record
    assert (record["id"], record["response"], record["answers"], record["agree"]) == ("n1", "Yes", 3, 2)
    assert [row.record for row in others] == rows[1:]
    assert (prompts.agreement.times, prompts.agreement.rate) == ({3: 1}, Rate(0, 1))
    whole = Prompts(ResultSet(tmp_path / "o"), majority=False)
    assert [row.record for row in whole.rows()] == rows


def test_a_job_without_repeats_says_nothing_of_them(tmp_path: Path) -> None:
    rows = [success(1, "x"), {**success(2, "x"), "id": "a#1"}, {**success(3, "x"), "id": "a#2", "repeat": 9}]
    path = outbox(tmp_path / "o", rows, {})
    assert "asked" not in results(path, "-o", tmp_path / "t.csv").stdout
    assert json.loads(results(path, "-o", tmp_path / "t.csv", "--json").stdout)["repeats"] is None


def test_a_comparison_goes_by_the_majority(job: Path, tmp_path: Path) -> None:
    once = outbox(tmp_path / "once", [success(1, "no"), success(2, "42"), success(4, "x")], {})
    comparison = Comparison(ResultSet(job), ResultSet(once), "label")
    figures = comparison.figures()
    assert (figures.joined, figures.both, figures.agreement) == (3, 3, Rate(2, 3))
    assert [rate.count for rate in figures.sides[0].rights(2).values()] == [1, 2, 2]
    assert figures.sides[0].repeats.rate == Rate(1, 3)
    shown = CliRunner().invoke(main, ["compare", str(job), str(once)]).stdout
    assert re.search(r"^repeats of a prompt all the same +33 % \(6–79 %\) +–$", shown, re.MULTILINE)
    [first, *_] = comparison.rows()
    assert (first.record["id"], first.record["agree_a"], first.record["agree_b"]) == ("n1", 2, None)


def test_data_agree_as_they_do_in_a_comparison(tmp_path: Path) -> None:
    def data(*values: Any) -> list[Document]:
        return [{**row, "data": value} for row, value in zip(repeats(1, *"abc"), values, strict=True)]

    def agreed(*values: Any) -> int:
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        [row] = Prompts(ResultSet(outbox(path, data(*values), {})), majority=True).rows()
        return int(row.record["agree"])

    assert agreed({"n": 40}, {"n": 40.0}, {"n": 41}) == 2
    assert agreed({"n": 1}, {"n": True}, {"n": "1"}) == 1
    assert agreed("Yes", "yes", "no") == 2  # a form may ask for a bare value
    assert agreed([1], "[1]", "x") == 1


def test_a_choice_has_nothing_of_the_first_that_it_does_not_have_itself(tmp_path: Path) -> None:
    call = [{"function": {"name": "f", "arguments": {}}}]
    choices = [{"index": 0, "response": "", "tool_calls": call}, *({"index": i, "response": "No"} for i in (1, 2))]
    rows = [success(1, "", choices=choices, tool_calls=call)]
    [row] = Prompts(ResultSet(outbox(tmp_path / "o", rows, {})), majority=True).rows()
    assert (row.record["response"], row.record["agree"], row.record.get("tool_calls")) == ("No", 2, None)
