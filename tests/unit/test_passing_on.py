"""What a failure says of its request, where nobody who recorded it had seen the request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from settings_support import DEFAULTS

from obatchd.delivery.passing_on import with_input
from obatchd.jobs.formats import read_entries
from obatchd.jobs.model import Outcome
from obatchd.jobs.store import Segment
from obatchd.settings.tables.spool import InboxSettings

JOB = 1


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    path = tmp_path / "input"
    path.write_text(
        '{"id": "a", "prompt": "one", "site": 3}\n{"id": "b", "prompt": "two", "max_response_tokens": -5}\n'
        '{"id": "c"}\nnot json\n{"messages": [{"role": "user", "content": "three"}]}\n'
    )
    return path


def test_a_failure_before_any_attempt_has_its_prompt(tmp_path: Path, drop: Path) -> None:
    segment = Segment(tmp_path / "segment.db")
    segment.write_index([(JOB, "job", DEFAULTS, list(read_entries(drop, "r.jsonl", InboxSettings())), True)])
    segment.end_pending(JOB, None, Outcome.CANCELLED, "cancelled", "asked", 10)
    results = [json.loads(record) for *_, record in with_input(segment.results(JOB), segment, JOB, drop)]
    assert [(r["id"], r.get("prompt"), r.get("input")) for r in results] == [
        ("a", "one", {"site": 3}),
        ("b", "two", None),
        ("c", None, None),
        ("0000004", None, None),
        ("0000005", "three", None),
    ]
    drop.write_text("something else\n")
    assert [record for *_, record in with_input(segment.results(JOB), segment, JOB, drop)] == [
        record for *_, record in segment.results(JOB)
    ]
    segment.close()
