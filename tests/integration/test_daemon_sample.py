"""``submit --sample``: a few random lines of a drop first, then the whole on request."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_support import Daemon, digest

pytestmark = pytest.mark.over_channel

Start = Callable[..., Daemon]


def test_a_sample_is_shown_and_the_whole_follows_when_it_is_wanted(daemon: Start) -> None:
    d = daemon({"gpus": {"use": "simulated:1"}})
    notes = d.root / "notes.csv"
    rows = [f"n{i},note number {i}\n" for i in range(1, 301)]
    notes.write_text("id,note\n" + "".join(rows[:100]) + "broken\n" + "".join(rows[100:]))
    asked = ["submit", notes, "--id-column", "id", "--template", "Sum up: {note}", "--sample", "20"]

    shown = d.control(*asked, "--yes", "--json", "--wait")
    whole = json.loads(shown.stdout)
    assert [job["requests"] for job in whole["jobs"]] == [301]
    jobs = {job["requests"]: job for job in d.client.get("jobs")["jobs"]}
    assert set(jobs) == {20, 301}
    sample = jobs[20]
    assert (sample["sample_of"], sample["succeeded"], sample["failed"]) == (300, 20, 0)
    assert sample["notes"] == ["sample: 20 of 300 requests, chosen at random; 1 more cannot be run"]
    assert jobs[301]["sample_of"] is None
    summary = json.loads((Path(whole["jobs"][0]["outbox"]) / "summary.json").read_text())
    assert (summary["succeeded"], summary["failed"], summary["copied"]) == (300, 1, 20)  # nothing is asked twice
    assert jobs[301]["notes"] == []  # a sample does not make the whole a second drop of the same content

    results = [
        json.loads(line) for line in d.control("results", sample["job"], "--format", "jsonl").stdout.splitlines()
    ]
    assert [r["line"] for r in results] == sorted(r["line"] for r in results)
    assert len({r["line"] for r in results}) == 20
    for result in results:
        assert result["prompt"] == f"Sum up: {result['input']['note']}"
        assert result["response"].startswith(digest(result["prompt"]))

    declined = d.control(*asked)  # nobody answers the question
    assert declined.returncode == 1
    assert declined.stdout.count("Sum up: note number") == 20
    assert "In the file: 300 requests; about " in declined.stdout
    looked = json.loads(d.control(*asked, "--json").stdout)
    assert len(looked["sample"]) == 20
    assert looked["requests"] == 300 and looked["estimate_s"] > 0
    assert sorted(job["requests"] for job in d.client.get("jobs")["jobs"]) == [20, 20, 20, 301]
