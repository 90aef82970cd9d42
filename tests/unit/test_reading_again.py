"""A drop whose reading a crash interrupted is unpacked again over the requests that are dispatched meanwhile."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from obatchd.jobs.formats import read_entries, request_file
from obatchd.jobs.model import Entry
from obatchd.settings.tables.spool import InboxSettings

REQUESTS = 50


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    path = tmp_path / "input"
    path.write_text(json.dumps([{"prompt": f"prompt {number}"} for number in range(REQUESTS)]))
    return path


def read(drop: Path) -> list[Entry]:
    return list(read_entries(drop, "drop.json", InboxSettings()))


def test_what_was_unpacked_stays_readable_while_it_is_unpacked_again(drop: Path) -> None:
    read(drop)
    unpacked = request_file(drop)
    before = unpacked.read_bytes()
    again = read_entries(drop, "drop.json", InboxSettings())
    next(again)
    assert unpacked.read_bytes() == before
    list(again)
    assert unpacked.read_bytes() == before


def test_an_interrupted_reading_can_be_finished(drop: Path) -> None:
    interrupted = read_entries(drop, "drop.json", InboxSettings())
    begun = list(islice(interrupted, 10))
    entries = read(drop)
    assert entries[:10] == begun
    assert len(entries) == REQUESTS


def test_what_a_torn_write_left_behind_the_end_is_cut_off(drop: Path) -> None:
    read(drop)
    unpacked = request_file(drop)
    before = unpacked.read_bytes()
    with unpacked.open("ab") as file:
        file.write(b"\0" * 4096)
    read(drop)
    assert unpacked.read_bytes() == before
