"""How long jobs that are over are kept, and jobs whose summary a power cut has torn."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from engine_support import Street, records_of, street, until
from settings_support import reload

from obatchd.documents.alarms import DropChanged
from obatchd.engine import housekeeping as module
from obatchd.engine.housekeeping import Housekeeping
from obatchd.jobs.model import JobState
from obatchd.jobs.store import JobRow, Store
from obatchd.spool import prune


@contextlib.asynccontextmanager
async def kept(rig: Street) -> AsyncIterator[Housekeeping]:
    """The housekeeping of a street while the block runs."""
    made = Housekeeping(rig.engine)
    made.start()
    try:
        yield made
    finally:
        await made.stop()


class Disk:
    """The bounds, and what is there."""

    def __init__(self, rig: Street) -> None:
        self.rig = rig

    def input(self, row: JobRow) -> bool:
        return self.rig.work.input_of(row).exists()

    def outbox(self, row: JobRow) -> bool:
        return self.rig.work.outbox_of(row).exists()

    def known(self, row: JobRow) -> bool:
        return bool(self.rig.work.store.state.find([row.job]))

    def ended_before(self, row: JobRow, seconds: float) -> None:
        """The job seems to have been over for so long."""
        ended_s = self.rig.row(row).finished_s
        assert ended_s is not None
        self.rig.work.store.state.update(row.key, finished_s=ended_s - seconds)


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Street]:
    async with street(monkeypatch, tmp_path) as made:
        yield made


async def test_input_and_store_go_when_they_were_kept_long_enough_and_the_results_stay(rig: Street) -> None:
    old, young, disk = await rig.run("a"), await rig.run("b"), Disk(rig)
    live = await rig.take("c")
    disk.ended_before(old, 8 * 86400)
    async with kept(rig):
        await until(lambda: [row.job for row in rig.work.store.state.finished_before(float("inf"), 9)] == [young.job])
    assert not disk.input(old) and disk.input(young) and disk.input(live.row)
    assert disk.outbox(old) and disk.known(old)


async def test_a_job_of_which_nothing_is_kept_is_forgotten_after_a_year(rig: Street) -> None:
    old, young, disk = await rig.run("a"), await rig.run("b"), Disk(rig)
    disk.ended_before(old, 400 * 86400)
    disk.ended_before(young, 300 * 86400)
    async with kept(rig):
        await until(lambda: not disk.known(old) and not disk.input(young))
    assert disk.known(young)


async def test_the_oldest_are_released_where_all_together_are_too_large(rig: Street) -> None:
    first, second, disk = await rig.run("a" * 5000), await rig.run("b" * 5000), Disk(rig)
    kept_bytes = [row["kept_bytes"] for row in _rows(rig, "SELECT kept_bytes FROM jobs ORDER BY key")]
    assert min(kept_bytes) > 5000
    reload(rig.work.settings, "disk.keep_done_bytes", kept_bytes[1])
    async with kept(rig):
        await until(lambda: not disk.input(first))
    assert disk.input(second)


def _rows(rig: Street, query: str) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(rig.work.layout.work / "state.db")) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute(query)]


async def test_everything_of_a_job_is_erased_after_the_days_of_retention(rig: Street) -> None:
    old, young, disk = await rig.run("a"), await rig.run("b"), Disk(rig)
    refused = rig.work.layout.failed / "1000" / "bad.refused-1"
    refused.mkdir(parents=True)
    os.utime(refused, (1, 1))
    disk.ended_before(old, 3 * 86400)
    reload(rig.work.settings, "disk.retention_days", 2)
    async with kept(rig):
        await until(lambda: not disk.known(old) and not refused.exists())
    assert not disk.input(old) and not disk.outbox(old)
    assert disk.known(young) and disk.input(young) and disk.outbox(young)


async def test_a_job_that_cannot_be_deleted_does_not_end_the_erasing_of_the_others(
    rig: Street, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_TOGETHER", 1)
    rows, disk = [await rig.run(word, name=f"{word}.jsonl") for word in ("stuck", "b", "c")], Disk(rig)
    for row in rows:
        disk.ended_before(row, 3 * 86400)
    real, tried = prune.delete_tree, []

    def refuse(path: Path) -> None:
        if "stuck" in path.name:
            tried.append(path)
            raise PermissionError(1, "Operation not permitted")
        real(path)

    monkeypatch.setattr(prune, "delete_tree", refuse)
    reload(rig.work.settings, "disk.retention_days", 2)
    async with kept(rig) as housekeeping:
        await until(lambda: not disk.known(rows[1]) and not disk.known(rows[2]))
        seen = len(tried)
        housekeeping.settings_changed()
        await until(lambda: len(tried) > seen)
        assert disk.known(rows[0])
        monkeypatch.setattr(prune, "delete_tree", real)
        housekeeping.settings_changed()
        await until(lambda: not disk.known(rows[0]))
    assert caplog.text.count("event=job_not_erased") == 1 and "Operation not permitted" in caplog.text


# Drops that somebody goes on writing to.


@pytest.mark.parametrize("released", [False, True])
async def test_a_drop_that_is_written_to_after_its_job_is_over_is_noted_and_told_once(
    rig: Street, released: bool
) -> None:
    row, disk = await rig.run("a"), Disk(rig)
    other = await rig.run("b", name="b.jsonl")
    with rig.work.input_of(row).open("ab") as file:
        file.write(b"more\n")
    if released:
        disk.ended_before(row, 8 * 86400)  # at the last look
    async with kept(rig) as housekeeping:
        await until(lambda: rig.row(row).notes)
        await until(lambda: any(isinstance(alarm, DropChanged) for alarm in rig.alarms))
        await until(lambda: disk.input(row) is not released)
        summary = json.loads((rig.work.outbox_of(row) / "summary.json").read_bytes())
        assert summary["notes"] == rig.row(row).notes and summary["succeeded"] == 1
        [note] = summary["notes"]
        assert note.startswith("5 bytes came after") and "mv" in note
        if not released:
            with rig.work.input_of(row).open("ab") as file:
                file.write(b"still more\n")
            housekeeping.settings_changed()
            await until(lambda: rig.row(row).notes != [note])
            [note] = rig.row(row).notes
            assert note.startswith("16 bytes came after")
    [alarm] = [alarm for alarm in rig.alarms if isinstance(alarm, DropChanged)]
    assert (alarm.job, alarm.owner, alarm.more_bytes) == (row.job, 1000, 5)
    assert rig.row(other).notes == []


async def test_an_old_drop_is_compared_before_it_is_released(rig: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOGETHER", 1)
    first, last, disk = await rig.run("a"), await rig.run("b", name="b.jsonl"), Disk(rig)
    for row in (first, last):
        disk.ended_before(row, 8 * 86400)
        with rig.work.input_of(row).open("ab") as file:
            file.write(b"more\n")
    async with kept(rig):
        await until(lambda: not disk.input(first) and not disk.input(last))
    assert rig.row(first).notes and rig.row(last).notes


async def test_drops_of_many_jobs_are_compared_in_turns(rig: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOGETHER", 1)
    rows = [await rig.run(name, name=f"{name}.jsonl") for name in "abc"]
    for row in rows:
        with rig.work.input_of(row).open("ab") as file:
            file.write(b"more\n")
    async with kept(rig) as housekeeping:
        for count in (1, 2, 3):
            await until(lambda count=count: sum(bool(rig.row(row).notes) for row in rows) == count)
            housekeeping.settings_changed()


async def test_a_job_whose_results_were_taken_away_keeps_its_note_in_the_index(rig: Street) -> None:
    row = await rig.run("a")
    shutil.rmtree(rig.work.outbox_of(row))
    with rig.work.input_of(row).open("ab") as file:
        file.write(b"more\n")
    async with kept(rig):
        await until(lambda: rig.row(row).notes)
    assert not rig.work.outbox_of(row).exists()


async def test_results_are_pruned_only_where_that_is_asked_for_and_at_once_after_a_reload(rig: Street) -> None:
    old, young, disk = await rig.run("a"), await rig.run("b"), Disk(rig)
    summary = rig.work.outbox_of(old) / "summary.json"
    for path in (summary, summary.parent):
        os.utime(path, (1, 1))
    async with kept(rig) as housekeeping:
        for released in (old, young):  # the second only by the next look: the first one is over then
            disk.ended_before(released, 8 * 86400)
            housekeeping.settings_changed()
            await until(lambda released=released: not disk.input(released))
        assert disk.outbox(old) and disk.outbox(young)
        reload(rig.work.settings, "disk.prune_outbox_s", 3600)
        housekeeping.settings_changed()
        await until(lambda: not disk.outbox(old))
    assert disk.outbox(young)


async def test_a_disk_that_refuses_is_asked_again(rig: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    old, disk, refused = await rig.run("a"), Disk(rig), []

    def refuse(store: Store, row: JobRow) -> None:
        refused.append(row.job)
        raise sqlite3.OperationalError("disk I/O error")

    disk.ended_before(old, 8 * 86400)
    async with kept(rig) as housekeeping:
        with monkeypatch.context() as failing:
            failing.setattr(Store, "release", refuse)
            housekeeping.settings_changed()
            await until(lambda: refused)
        housekeeping.settings_changed()
        await until(lambda: rig.work.store.state.finished_before(float("inf"), 9) == [])
    assert rig.failures == []


# After a reboot.


def tear(path: Path) -> None:
    """As a rename looks after a power cut whose content was never flushed."""
    path.write_bytes(b"")


async def test_a_summary_that_a_power_cut_has_torn_is_written_again_after_a_reboot(rig: Street) -> None:
    row, away = await rig.run("a"), await rig.run("b")
    outbox = rig.work.outbox_of(row)
    whole = records_of(outbox)
    for name in ("summary.json", "results.jsonl"):
        tear(outbox / name)
    shutil.rmtree(rig.work.outbox_of(away))
    rig.work.store.state.set("boot_id", "an earlier one")
    async with kept(rig):
        await until(lambda: rig.work.store.state.get("boot_id") != "an earlier one" and not rig.work.jobs)
    assert records_of(outbox) == whole
    assert json.loads((outbox / "summary.json").read_bytes())["succeeded"] == 1
    assert not rig.work.outbox_of(away).exists(), "its owner took it away"


async def test_within_one_boot_nothing_is_published_again(rig: Street) -> None:
    row = await rig.run("a")
    async with kept(rig):
        await until(lambda: rig.work.store.state.get("boot_id"))
    tear(rig.work.outbox_of(row) / "summary.json")
    row_of_tomorrow = await rig.run("b")
    Disk(rig).ended_before(row_of_tomorrow, 8 * 86400)
    async with kept(rig):
        await until(lambda: not Disk(rig).input(row_of_tomorrow))
    assert (rig.work.outbox_of(row) / "summary.json").read_bytes() == b""


async def test_a_job_whose_results_are_lost_too_is_asked_again_from_its_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        row = await rig.run("a")
        tear(rig.work.outbox_of(row) / "summary.json")
        rig.work.store.state.set("boot_id", "an earlier one")
    for path in (tmp_path / "spool/work/segments").iterdir():
        path.unlink()
    async with street(monkeypatch, tmp_path) as rig, kept(rig):
        await until(lambda: rig.work.jobs)
        assert rig.row(row).state is JobState.RUNNING
        await rig.answer(rig.work.jobs[row.key], text="again")
        assert (await rig.published(row))["succeeded"] == 1
        assert [record["response"] for record in records_of(rig.work.outbox_of(row))] == ["again"]


async def test_a_segment_that_no_job_needs_is_deleted_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        row = await rig.run("a")
        segment = tmp_path / "spool/work/segments" / f"{row.segment}.db"
        rig.work.store.state.update(row.key, released=1)  # the crash comes before its file is deleted
    assert segment.exists()
    async with street(monkeypatch, tmp_path) as rig, kept(rig):
        await until(lambda: not segment.exists())
