"""Sources, samples, earlier answers and exports with a real Ollama: its text is gibberish, so forms are checked."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from daemon_support import Daemon, jsonl
from pydantic import BaseModel, Field

from obatchd.client import Client

Start = Callable[..., Daemon]
pytestmark = [pytest.mark.real_ollama, pytest.mark.timeout(240)]
FORMAT = """
[format]
type = "object"
required = ["name", "age"]
properties.name = { type = "string", maxLength = 20 }
properties.age = { type = "integer", maximum = 120 }
"""


@pytest.fixture
def real(make_daemon: Start) -> Iterator[Callable[..., Daemon]]:
    """Starts a daemon on one real CPU server."""
    program, models = os.environ.get("OBATCHD_TEST_OLLAMA"), os.environ.get("OBATCHD_TEST_MODELS")
    if not program or not models:
        pytest.skip("no real Ollama here: scripts/real-ollama says what is missing")

    def start(**config: Any) -> Daemon:
        own = {"ollama": program, "models_dir": models, "cpu_servers": 1, "slots": 4}
        quick: dict[str, Any] = {"gpus": {"use": "none"}, "max_response_tokens": 60, "servers": own}
        return make_daemon({**quick, **config}).start().ready()

    yield start


def lines(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.splitlines()]


def test_a_table_is_tried_run_exported_and_skipped(real: Start, tmp_path: Path) -> None:
    d = real()
    notes = tmp_path / "notes.csv"
    notes.write_text("mrn,note\n" + "".join(f"M{i},person {i} is {20 + i}\n" for i in range(30)))
    (tmp_path / "job.toml").write_text('template = "Who? {note}"\nid_column = "mrn"\n' + FORMAT)
    asked = ["submit", notes, "--config", tmp_path / "job.toml"]
    d.control(*asked, "--sample", "4", "--yes", "--wait", timeout_s=200)
    jobs = {job["requests"]: job for job in d.client.get("jobs")["jobs"]}
    assert jobs[4]["sample_of"] == 30
    sampled = lines(d.control("results", jobs[4]["job"], "--format", "jsonl").stdout)
    summary = json.loads((Path(jobs[30]["outbox"]) / "summary.json").read_text())
    assert summary["copied"] == sum(row["outcome"] == "succeeded" for row in sampled)

    table = tmp_path / "table.csv"
    ended = d.control("results", jobs[30]["job"], "-o", table).stdout
    assert f"30 requests = {summary['succeeded']} answered + {summary['failed']} failed" in ended
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["mrn"] for row in rows] == [f"M{i}" for i in range(30)]
    for row in rows:
        if row["outcome"] == "succeeded":
            name = row["name"].removeprefix("'")  # CSV has one before a text that a spreadsheet would run
            assert 0 <= len(name) <= 20 and int(row["age"]) <= 120
        else:
            assert row["code"] and row["message"]

    d.control(*asked, "--skip-done", "--wait", timeout_s=200)
    newest = d.client.get("jobs")["jobs"][0]
    again = json.loads((Path(newest["outbox"]) / "summary.json").read_text())
    assert again["copied"] == summary["succeeded"]
    assert d.control("results", newest["job"], "--review", "5", "-o", tmp_path / "r.html").returncode == 0


def test_answers_to_one_prompt_differ_by_their_seeds(real: Start) -> None:
    # The seeds are fixed, because one of 75 drawn ones lets a model of random weights end at once, which is a failure.
    d = real(options={"temperature": 1, "seed": 1})
    body = {"messages": [{"role": "user", "content": "Tell a story."}], "n": 3}
    batch = jsonl([{"custom_id": "c", "url": "/v1/chat/completions", "body": body}])
    d.drop_all({"batch.jsonl": batch, "folder": {"story.txt": b"Tell a story.", "job.toml": b"repeat = 3\n"}})
    records = d.done("folder", 90).results
    assert [record["id"] for record in records] == ["story#1", "story#2", "story#3"]
    assert [record["seed"] for record in records] == [1, 2, 3]
    assert len({record["response"] for record in records}) == 3
    [line] = d.done("batch.jsonl", 90).results
    choices, usage = line["response"]["body"]["choices"], line["response"]["body"]["usage"]
    assert len({choice["message"]["content"] for choice in choices}) == 3
    [record] = [json.loads(path.read_bytes()) for path in d.outbox.glob("batch.*/responses/*.json")]
    assert usage["completion_tokens"] == sum(choice["response_tokens"] for choice in record["choices"])
    assert usage["prompt_tokens"] == sum(choice["prompt_tokens"] for choice in record["choices"])


def test_a_source_is_part_of_the_prompt(real: Start) -> None:
    d = real(context={"enabled": True, "keep_full_prompt": True})
    folder = {
        "requests.jsonl": jsonl([
            {"id": "with", "prompt": "Sum up.", "files": ["notes.source.txt"]},
            {"id": "without", "prompt": "Sum up."},
        ]),
        "notes.source.txt": b"The Nile is a long river in Africa. " * 20,
    }  # fmt: skip
    d.drop("folder", folder)
    results = {record["id"]: record for record in d.done("folder", 90).results}
    assert results["with"]["prompt"] == "Sum up."
    assert results["with"]["full_prompt"].count("The Nile") == 20
    assert results["with"]["prompt_tokens"] > results["without"]["prompt_tokens"] + 100


class Finding(BaseModel):
    """A part of another one: its schema stands in ``$defs``."""

    side: Literal["left", "right"]
    grade: int | None = Field(ge=0, le=9)


class Report(BaseModel):
    found: list[Finding] = Field(max_length=2)
    sure: bool


def test_a_type_of_pydantic_comes_back_as_instances(real: Callable[..., Daemon]) -> None:
    client = Client(real(max_response_tokens=200).spool)
    job = client.submit([f"Person {i} has a cough." for i in range(12)], schema=Report, temperature=0.8).wait(False)
    answers = list(job.results())
    assert len(answers) == 12 and sum(answer.ok for answer in answers) >= 10
    assert all(isinstance(answer.data, Report) for answer in answers if answer.ok)
    assert all(answer.error and answer.error.code in ("format_mismatch", "empty_response") for answer in job.failures())
    assert job.results().to_arrow().column("sure").null_count == 12 - sum(answer.ok for answer in answers)
