"""From a table of notes to a table of data: every row of the one has its row in the other."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from daemon_support import Daemon

pytestmark = pytest.mark.over_channel

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def test_two_hundred_notes_become_a_table(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    d = daemon({"gpus": {"use": "simulated:1"}})
    notes = [[f"M{i:03}", f"ward {i % 7}", f"Note {i}: a patient, aged {i}."] for i in range(200)]
    notes[17] = ["M016", "twice", "An id that was used before."]
    with open(tmp_path / "notes.csv", "w", newline="") as file:
        csv.writer(file).writerows([["mrn", "ward", "note"], *notes])
    settings = (
        f'template = "Who? {{note}}"\nid_column = "mrn"\n[format]\ntype = "object"\nrequired = {SCHEMA["required"]}\n'
    )
    settings += '[format.properties]\nname = { type = "string" }\nage = { type = "integer" }\n'
    (tmp_path / "job.toml").write_text(settings)
    asked = d.control("submit", tmp_path / "notes.csv", "--config", tmp_path / "job.toml", "--wait", timeout_s=90)
    job = asked.stdout.split()[0]

    table, array = tmp_path / "data.csv", tmp_path / "data.json"
    ended = d.control("results", job, "-o", table)
    summary = json.loads((d.done("notes.csv").directory / "summary.json").read_text())
    assert f"200 requests = {summary['succeeded']} answered + {summary['failed']} failed\n" in ended.stdout
    assert "1 cannot be retried: mend line 19 of the drop and submit it\n" in ended.stdout
    assert "obatchctl retry" not in ended.stdout  # which would fail as it did
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [[row["mrn"], row["ward"], row["note"]] for row in rows] == notes
    good = [row for row in rows if row["outcome"] == "succeeded"]
    assert len(good) == summary["succeeded"] >= 190
    for row in good:
        jsonschema.validate({"name": row["name"], "age": int(row["age"])}, SCHEMA)
    assert rows[17]["code"] == "duplicate_id" and rows[17]["message"]
    assert all(row["code"] and row["message"] for row in rows if row["outcome"] != "succeeded")
    d.control("results", job, "--data-only", "-o", array)
    data = json.loads(array.read_text())
    assert [[one["name"], str(one["age"])] for one in data] == [[row["name"], row["age"]] for row in good]
