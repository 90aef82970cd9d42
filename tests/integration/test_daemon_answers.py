"""What happens to an answer: reasoning, structured output, images, through the whole daemon."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from daemon_support import Daemon, digest

pytestmark = pytest.mark.over_channel

Start = Callable[..., Daemon]
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
MODELS = [
    {"name": "tiny"},
    {"name": "thinker", "capabilities": ["completion", "thinking"]},
    {"name": "seer", "capabilities": ["completion", "vision"]},
    {"name": "opener", "template": "{{ .Prompt }}<think>"},
]
PERSON = {
    "type": "object",
    "properties": {"mrn": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["mrn", "age"],
}


@pytest.mark.near
def test_two_hundred_notes_become_a_table_that_can_be_trusted(daemon: Start, tmp_path: Path) -> None:
    d = daemon(
        {"gpus": {"use": "simulated:1"}},
        simulator={
            "faults": [
                {"kind": "no_format", "marker": "note 7 ", "count": 1},
                {"kind": "no_format", "marker": "note 11 ", "count": 1},
                {"kind": "no_format", "marker": "does not fit the required format", "at": 1},
            ]
        },
    )
    rows = [{"mrn": f"M-{i:04}", "note": f"note {i} of a patient, aged {i}", "site": f"s{i % 3}"} for i in range(199)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / "notes.csv").write_text(text.getvalue() + "M-0199,cut off\n")
    (tmp_path / "schema.json").write_text(json.dumps(PERSON))
    submitted = d.control(
        "submit", tmp_path / "notes.csv", "--format", tmp_path / "schema.json", "--in-source", "mrn",
        "--id-column", "mrn", "--template", "Extract: {note} ({mrn})", "--output-dir", tmp_path / "out",
    )  # fmt: skip
    assert submitted.returncode == 1, submitted.stderr  # some failed
    [table] = (tmp_path / "out").glob("notes.*")
    results = [json.loads(line) for line in (table / "results.jsonl").read_bytes().splitlines()]
    errors = [json.loads(line) for line in (table / "errors.jsonl").read_bytes().splitlines()]
    summary = json.loads((table / "summary.json").read_bytes())
    for record in results:
        jsonschema.validate(record["data"], PERSON)
        assert json.loads(record["response"]) == record["data"]
        # The stand-in makes its values up, and that shows.
        assert record["ungrounded"] == [{"field": "mrn", "value": record["data"]["mrn"]}]
    by_line = sorted(results + errors, key=lambda record: record["line"])
    assert [record["input"] for record in by_line] == [*rows, {"mrn": "M-0199", "note": "cut off"}]
    assert [record["code"] for record in errors] == ["format_mismatch", "bad_row"]
    assert "after 2 tries: it is not JSON" in errors[0]["message"]
    assert {r["id"] for r in by_line if r.get("format_tries") == 2} == {"M-0007", "M-0011"}
    assert (summary["succeeded"], summary["failed"], summary["ungrounded"]) == (198, 2, 198)
    assert summary["settings"]["format"] == PERSON
    exported = d.control("results", table.name.rpartition(".")[2], "--format", "csv")
    sheet = list(csv.DictReader(io.StringIO(exported.stdout)))
    assert [{name: row[name] for name in rows[0]} for row in sheet[:199]] == rows
    assert (len(sheet), sheet[199]["mrn"], sheet[199]["code"]) == (200, "M-0199", "bad_row")
    assert {row["age"] for row in sheet if row["outcome"] == "succeeded"} == {"0"}


def test_reasoning_images_and_what_has_no_effect(daemon: Start) -> None:
    d = daemon(
        {"think": False},
        simulator={
            "models": MODELS,
            "faults": [{"kind": "think_tags", "marker": "TAGS"}, {"kind": "think_open", "marker": "OPEN"}],
        },
    )
    d.drop_all(
        {
            "thoughts.jsonl": [
                {"id": "silent", "prompt": "a", "model": "thinker"},
                {"id": "native", "prompt": "b", "model": "thinker", "think": True},
                {"id": "json", "prompt": "c", "model": "thinker", "think": "high", "format": "json"},
                {"id": "cannot", "prompt": "d", "think": True},
                {"id": "tags", "prompt": "TAGS"},
                {"id": "opened", "prompt": "TAGS of its template", "model": "opener"},
                {"id": "mention", "prompt": "OPEN"},
                {"id": "told", "prompt": "e", "keep_alive": 0, "options": {"num_gpu": 3, "seed": 4}},
            ],
            "pictures": {
                "scan.png": PNG,
                "r.jsonl": b'{"id": "sees", "prompt": "f", "images": ["scan.png"], "model": "seer"}\n'
                b'{"id": "blind", "prompt": "g", "images": ["scan.png"]}\n',
            },
        }
    )
    thoughts, pictures = d.done("thoughts.jsonl"), d.done("pictures")
    assert thoughts.errors == []
    found = {record["id"]: record for record in thoughts.results}
    assert {name for name, record in found.items() if record.get("think")} == {"native", "json", "tags", "opened"}
    assert (found["tags"]["think"], found["opened"]["think"]) == ("well,", "well,")
    for name in ("tags", "opened", "mention"):
        assert found[name]["response"].startswith(digest(found[name]["prompt"]))
    assert found["mention"]["response"].endswith(" <think>well, ")
    assert found["json"]["data"]["answer"].startswith(digest("c"))
    assert [note.partition(" is left out")[0] for note in found["cannot"]["notes"]] == ["think"]
    assert [note.partition(" is left out")[0] for note in found["told"]["notes"]] == ["options.num_gpu", "keep_alive"]
    assert [record["id"] for record in pictures.results] == ["sees"]
    assert pictures.results[0]["input"] == {"image_files": ["scan.png"]}
    assert [(e["code"], e["input"]) for e in pictures.errors] == [("not_supported", {"image_files": ["scan.png"]})]
    assert "capability vision" in pictures.errors[0]["message"]
    assert [request["images"] for request in d.received() if request["prompt"] in "fg"] == [1]
