"""Formats people have, through the whole daemon: tables, texts and records, from the command line and the inbox."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

from daemon_support import Daemon, Document, digest, wait_for

Start = Callable[..., Daemon]
EXAMPLES = Path(__file__).parents[2] / "etc" / "examples"


def by_line(job_directory: Path) -> list[Document]:
    """Results and errors of a job together, in the order of the input."""
    found = []
    for name in ("results.jsonl", "errors.jsonl"):
        found += [json.loads(line) for line in (job_directory / name).read_bytes().splitlines()]
    return sorted(found, key=lambda record: record["line"])


def test_tables_texts_and_records_become_prompts_and_rows_can_be_joined(plain: Daemon, tmp_path: Path) -> None:
    d = plain
    rows = [{"mrn": f"M{i}", "model": "Ford", "note": f'note "{i}",\nsecond line'} for i in range(20)]
    rows[7]["note"] = "  "
    rows[9]["mrn"] = "M1"
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / "notes.csv").write_text(text.getvalue())
    out = tmp_path / "out"
    options = ["--text-column", "note", "--id-column", "mrn", "--output-dir", out]
    d.control("submit", tmp_path / "notes.csv", *options)
    [table] = out.glob("notes.*")
    records = by_line(table)
    assert [record["input"] for record in records] == rows
    assert [record.get("code") for record in records if "code" in record] == ["missing_prompt", "duplicate_id"]
    assert all(r["response"].startswith(digest(r["input"]["note"])) for r in records if r["outcome"] == "succeeded")

    d.drop_all(
        {
            "texts": {"a.txt": b"first", "b.md": b"# second", "job.toml": b'template = "Summarise:\\n{text}"'},
            "any": {
                "r.jsonl": b'{"who": "Ann", "model": 3}\n{"name": "none"}\n',
                "job.toml": b'template = "Greet {who}."',
            },
            "plain.csv": b"id,prompt\nx,hello\n",
            "wrong.csv": b"a,b\n1,2\n",
        }
    )
    texts, any_, plain = d.done("texts"), d.done("any"), d.done("plain.csv")
    assert {r["id"]: r["prompt"] for r in texts.results} == {"a": "Summarise:\nfirst", "b": "Summarise:\n# second"}
    assert [r["input"] for r in texts.results] == [{"file": "a.txt"}, {"file": "b.md"}]
    assert [(r["prompt"], r["input"]) for r in any_.results] == [("Greet Ann.", {"who": "Ann", "model": 3})]
    assert [(e["code"], e["input"]) for e in any_.errors] == [("missing_field", {"name": "none"})]
    assert [(r["id"], r["input"]) for r in plain.results] == [("x", {"id": "x", "prompt": "hello"})]
    [reason] = wait_for(lambda: list((d.spool / "failed").rglob("wrong.csv.error.txt")))
    assert "say which one is the prompt" in reason.read_text()


def test_what_is_cancelled_or_tried_again_keeps_its_fields(daemon: Start, tmp_path: Path) -> None:
    d = daemon(simulator={"faults": [{"kind": "status", "status": 400, "message": "no"}]})
    (tmp_path / "lines.txt").write_bytes("schön\ngrün\n".encode("cp1252"))
    submitted = d.control("submit", tmp_path / "lines.txt", "--encoding", "cp1252", "--lines", "--wait")
    assert submitted.returncode == 1, submitted.stderr
    old = d.done("lines.txt")
    assert [error["prompt"] for error in old.errors] == ["schön", "grün"]
    d.drop("r", {"r.jsonl": b'{"who": "Ann"}\n{"who": "Bob"}\n', "job.toml": b'template = "Greet {who}."'})
    failed = d.done("r")
    assert [e["input"] for e in failed.errors] == [{"who": "Ann"}, {"who": "Bob"}]
    d.faults()
    assert d.control("retry", failed.id).returncode == 0
    assert d.control("retry", old.id).returncode == 0
    assert [r["prompt"] for r in d.done("lines.retry.jsonl").results] == ["schön", "grün"]
    again = d.done("r.retry.jsonl")
    assert [(r["prompt"], r["input"]) for r in again.results] == [
        ("Greet Ann.", {"who": "Ann"}),
        ("Greet Bob.", {"who": "Bob"}),
    ]
    d.faults({"kind": "hang"})
    d.drop("c.jsonl", b'{"prompt": "one", "row": 1}\n')
    job = d.job("c.jsonl")
    assert d.control("cancel", job.id).returncode == 0
    assert [e["input"] for e in d.done("c.jsonl").errors] == [{"row": 1}]


def test_every_example_can_be_dropped(plain: Daemon) -> None:
    d = plain
    examples = [path for path in sorted(EXAMPLES.iterdir()) if path.suffix not in (".md", ".py", ".ipynb")]
    assert len(examples) >= 5
    for path in examples:
        content = {file.name: file.read_bytes() for file in path.iterdir()} if path.is_dir() else path.read_bytes()
        d.drop(path.name, content)
    for path in examples:
        summary = d.done(path.name).summary
        assert summary["succeeded"] == summary["requests"] > 0, (path.name, summary["failures"])
    assert [record["input"]["order"] for record in d.done("orders").results] == ["A-1041", "A-1042", "A-1043"]
