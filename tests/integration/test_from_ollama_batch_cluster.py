"""Every ``obatchctl`` line of docs/from-ollama-batch-cluster.md, with files as that project has them."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import toml
from daemon_support import BIN, Daemon, digest

PAGE = Path(__file__).parents[2] / "docs" / "from-ollama-batch-cluster.md"
SYSTEM = "You are an alien that can only respond with strings of emoji characters to convey your answer."
NOTES = ["Ann Lee (MRN: 17), aged 40, came with a cough.", "Bob Ray (MRN: 18), aged 50, came with a rash."]


def lines_of_the_page() -> list[str]:
    rows = re.findall(r"^\|[^|]+\|[^|]+\| `([^`]+)` \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    return [row for row in rows if row.startswith("obatchctl ")]


def prompt_lines(*texts: str) -> str:
    return "".join(json.dumps({"role": "user", "content": text}) + "\n" for text in texts)


def files(directory: Path) -> None:
    """What a user of that project has."""
    (directory / "prompts.jsonl").write_text(prompt_lines("Why is the sky blue?", "Who was Nero?", "What is Rome?"))
    (directory / "clinical-notes.jsonl").write_text(prompt_lines(*NOTES))
    instructions = 'Extract {"mrn": "", "age": 0} from the note. Answer with JSON only.'
    config = {"model": "qwen2.5:32b", "system_message": instructions, "ollama_instances": {"gpu-server1:11432": 0}}
    (directory / "clinical-notes-config.toml").write_text(toml.dumps(config))
    folder, old = directory / "prompts-folder", directory / "old_responses"
    folder.mkdir()
    old.mkdir()
    for number, note in enumerate(NOTES):
        (folder / f"note{number}.json").write_text(json.dumps({"role": "user", "content": note}))
        answer = json.dumps({"mrn": str(17 + number), "age": 40 + 10 * number}, indent=2)
        response = {"prompt": note, "response": f"```json\n{answer}\n```" if number else answer}
        (old / f"173231424{number}-466{number}.json").write_text(json.dumps(response, indent=4))
    (old / "1732314249-1000.json").write_text(json.dumps({"prompt": "?", "response": "I cannot."}))


def test_every_line_of_the_page(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    host = make_daemon({"gpus": {"use": "simulated:2"}}).start().ready()
    instances = {server["url"].removeprefix("http://"): index for index, server in enumerate(host.servers())}
    config = toml.dumps({"model": "llama3.2", "system_message": SYSTEM, "ollama_instances": instances})
    d = make_daemon(config).start().ready()
    here = tmp_path / "here"
    here.mkdir()
    files(here)
    environment = {"PATH": f"{BIN}:{os.environ['PATH']}", "OBATCH_SPOOL": str(d.spool)}
    printed: dict[str, str] = {}
    commands = lines_of_the_page()
    assert len(commands) == 11
    for line in commands:
        done = subprocess.run(shlex.split(line), cwd=here, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (line, done.stderr, done.stdout)
        printed[line] = done.stdout + done.stderr

    [job] = (here / "responses").iterdir()
    response = json.loads((job / "responses" / "0000001.json").read_text())
    assert response["prompt"] == "Why is the sky blue?"
    assert response["response"].startswith(digest("Why is the sky blue?"))
    assert response["model"] == "llama3.2"
    [clinical] = (here / "clinical_notes_data").iterdir()
    summary = json.loads((clinical / "summary.json").read_text())
    assert summary["settings"]["model"] == "qwen2.5:32b"
    assert any("[ollama_instances] is ignored" in text for text in printed.values())
    assert "Who was Nero?" in printed["obatchctl results responses"]
    assert "3 requests = 3 answered + 0 failed" in printed["obatchctl results responses"]
    assert json.loads((here / "old.json").read_text()) == [{"mrn": "17", "age": 40}, {"mrn": "18", "age": 50}]
    assert "Not JSON: 1 answer" in printed["obatchctl results old_responses --data-only -o old.json"]
    with open(here / "clinical_notes_data.csv", newline="") as table:
        assert [row["prompt"] for row in csv.DictReader(table)] == NOTES
    assert NOTES[0] in (here / "review.html").read_text()
    assert tomllib.loads(d.config_file.read_text())["ollama_instances"] == instances
    assert host.servers()[0]["requests_done"] == 0  # the other daemon's prompts are not this one's
