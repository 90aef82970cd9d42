from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest

from obatchd.documents.gpus import GpuEvent
from obatchd.gpucare.policy import in_hours
from obatchd.gpus import history as history_module
from obatchd.gpus.history import History
from obatchd.gpus.model import Identity, Reading

CARD = Identity("GPU-1", serial="S1", slot="3")


def history(tmp_path: Path) -> History:
    return History(tmp_path / "history.db")


def samples(tmp_path: Path) -> list[sqlite3.Row]:
    """The samples of the file, oldest first."""
    with closing(sqlite3.connect(tmp_path / "history.db")) as database:
        database.row_factory = sqlite3.Row
        return database.execute("SELECT * FROM samples ORDER BY at_s").fetchall()


def test_events_are_found_by_card_and_follow_its_serial_number(tmp_path: Path) -> None:
    first = history(tmp_path)
    first.health_event(GpuEvent(1.0, "GPU-1", "S1", "3", "xid", "", "48", "XID 48"))
    first.health_event(GpuEvent(2.0, "GPU-2", "", "", "xid", "", "", "XID 31"))
    first.close()
    second = history(tmp_path)
    # The same card after a repair.
    second.health_event(GpuEvent(3.0, "GPU-9", "S1", "00000000:41:00.0", "quarantine", "", "", "lost"))
    found = second.events("GPU-9", serial="S1")
    assert [(e.text, e.serial, e.slot) for e in found] == [("XID 48", "S1", "3"), ("lost", "S1", "00000000:41:00.0")]
    assert [e.at_s for e in second.events()] == [1.0, 2.0, 3.0]
    assert [e.at_s for e in second.events(limit=2)] == [2.0, 3.0]
    second.close()


def test_readings_become_samples_of_a_minute(tmp_path: Path) -> None:
    kept, start_s = history(tmp_path), (time.time() // 60 - 5) * 60
    for second, reasons in ((0, 0), (20, 0x48), (40, 0x4), (61, 0)):
        kept.readings_of_cards(
            [(CARD, Reading("GPU-1", start_s + second, 50, 100, 200, 60 + second // 20, 300.0, clock_reasons=reasons))]
        )
    kept.flush()
    first, second_minute = samples(tmp_path)
    assert (first["count"], first["temp_c"], first["temp_max_c"], first["power_w"]) == (3, 61, 62, 300)
    assert first["slowed"] == pytest.approx(1 / 3) and second_minute["count"] == 1
    assert first["clock_mhz"] is None  # not told, which is not zero
    assert (first["uuid"], first["serial"], first["slot"], first["memory_used_bytes"]) == ("GPU-1", "S1", "3", 100)
    kept.close()


def test_old_minutes_become_hours_and_very_old_ones_go(tmp_path: Path) -> None:
    kept, now_s = history(tmp_path), time.time()
    hour_s = (now_s - 3 * 86_400) // 3600 * 3600
    for minute in range(60):
        kept.readings_of_cards([(CARD, Reading("GPU-1", hour_s + minute * 60, temp_c=50 + minute % 2))])
    kept.readings_of_cards([(CARD, Reading("GPU-1", now_s - 100 * 86_400, temp_c=50))])
    kept.flush()
    (sample,) = samples(tmp_path)
    assert (sample["seconds"], sample["count"], sample["temp_c"], sample["at_s"]) == (3600, 60, 50.5, hour_s)
    kept.close()


def test_a_damaged_file_on_a_disk_that_is_full_harms_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, connect = tmp_path / "history.db", history_module._connect
    path.write_bytes(b"no database" * 1000)

    def refused(path: Path) -> sqlite3.Connection:
        if path.exists():
            return connect(path)
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with monkeypatch.context() as full:
        full.setattr(history_module, "_connect", refused)
        kept = history(tmp_path)
        kept.health_event(GpuEvent(1.0, "GPU-1", "S1", "3", "xid", "", "", "XID 48"))
        kept.flush()
    kept.flush()
    assert len(samples(tmp_path)) == 0 and len(kept.events()) == 1
    kept.close()


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "history.db").write_bytes(b"no database" * 1000)
    kept = history(tmp_path)
    kept.health_event(GpuEvent(1.0, "GPU-1", "S1", "3", "xid", "", "", "XID 48"))
    kept.flush()
    assert len(kept.events()) == 1
    assert len(list(tmp_path.glob("history.db.corrupt-*"))) == 1
    kept.close()


@pytest.mark.parametrize(
    ("hours", "clock", "within"),
    [
        ([], "12:00", True),
        (["22:00-06:00"], "23:30", True),
        (["22:00-06:00"], "05:59", True),
        (["22:00-06:00"], "06:00", False),
        (["08:00-12:00", "13:00-17:00"], "12:30", False),
        (["08:00-12:00", "13:00-17:00"], "16:59", True),
    ],
)
def test_hours_may_go_over_midnight(hours: list[str], clock: str, within: bool) -> None:
    assert in_hours(hours, datetime.fromisoformat(f"2026-11-24T{clock}")) is within
