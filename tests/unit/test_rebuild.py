"""An index that is lost is found again in segments, outboxes and inputs.

Of :mod:`obatchd.engine.rebuild`, through the start of an engine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_support import Street, street, until

from obatchd.delivery.documents import job_document
from obatchd.jobs.model import JobState
from obatchd.jobs.store import JobRow
from obatchd.spool.outbox import JobOutbox


def lose_index(spool: Path) -> None:
    for path in (spool / "work").glob("state.db*"):
        path.unlink()


def lose_segments(spool: Path) -> None:
    for path in (spool / "work/segments").iterdir():
        path.unlink()


def found(rig: Street, row: JobRow) -> JobRow:
    [again] = rig.work.store.state.find([row.job])
    return again


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "spool"


async def test_a_job_that_is_over_stays_over_with_its_counts(
    tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        before = await rig.run("a", "b", name="drop.jsonl", owner=1234)
    lose_index(spool)
    async with street(monkeypatch, tmp_path) as rig:
        after = found(rig, before)
        assert rig.work.jobs == {}
    assert (after.key, after.state, after.name, after.owner) == (before.key, JobState.DONE, b"drop.jsonl", 1234)
    assert (after.summary, after.digest, after.size) == (before.summary, before.digest, before.size)
    assert after.finished_s == pytest.approx(before.finished_s, abs=5)
    assert after.accepted_s == pytest.approx(before.accepted_s, abs=0.01)


async def test_a_job_in_work_goes_on_with_its_results_and_its_own_settings(
    tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path, system_message="of then") as rig:
        live = await rig.take("a", "b", "c", model="large", options={"seed": 7})
        await rig.answer(live, 2)
        before = rig.row(live)
    lose_index(spool)
    async with street(monkeypatch, tmp_path, system_message="of now") as rig:
        [live] = rig.work.jobs.values()
        assert (live.row.job, live.key, rig.done(live), live.requests) == (before.job, before.key, {2}, 3)
        assert live.row.owner == os.geteuid()  # that of the file: nothing else says whose it was
        assert (live.frozen.model, live.frozen.options) == ("large", {"seed": 7})
        assert live.frozen.system_message == "of then"  # its segment has them
        await rig.answer(live)
        summary = await rig.published(live)
        assert (summary["succeeded"], summary["notes"]) == (3, [])
        later = await rig.take("d")  # keys go on behind the earlier ones
        assert later.key > before.key


async def test_a_job_in_work_is_whose_its_last_status_says(
    tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        live = await rig.take("a", owner=1234)
        box = JobOutbox(live.outbox)
        box.create()
        box.write_status(job_document(live, 0))
    lose_index(spool)
    async with street(monkeypatch, tmp_path) as rig:
        [again] = rig.work.jobs.values()
        assert (again.row.job, again.row.owner) == (live.row.job, 1234)
        assert again.row.accepted_s == pytest.approx(live.row.accepted_s, abs=0.01)
        assert again.row.notes == []


async def test_of_segments_that_are_lost_too_the_inputs_begin_anew_and_say_so(
    tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        live = await rig.take("a", name="drop.jsonl")
        await until(rig.held)
        before = rig.row(live)
        rig.work.outbox_of(before).mkdir()
    lose_index(spool)
    lose_segments(spool)
    async with street(monkeypatch, tmp_path) as rig:
        await until(lambda: rig.work.jobs)
        [live] = rig.work.jobs.values()
        assert (live.row.job, live.row.name) == (before.job, b"drop.jsonl")
        await rig.answer(live)
        assert (await rig.published(live))["succeeded"] == 1


async def test_what_is_no_job_is_not_made_one(tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        done = await rig.run("a")
    lose_index(spool)
    (spool / "outbox" / "notes.of-the-owner").mkdir()
    (spool / "outbox" / f"torn.{done.job[:-1]}f").mkdir()
    (spool / "outbox" / f"torn.{done.job[:-1]}f" / "summary.json").write_bytes(b"")
    async with street(monkeypatch, tmp_path) as rig:
        assert rig.work.store.state.jobs() == {done.job}


async def test_a_released_job_is_known_from_its_summary_alone(
    tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        before = await rig.run("a", name="drop.jsonl")
    lose_index(spool)
    lose_segments(spool)
    for path in (spool / "work/jobs" / before.job).iterdir():
        path.unlink()
    (spool / "work/jobs" / before.job).rmdir()
    async with street(monkeypatch, tmp_path) as rig:
        after = found(rig, before)
        assert (after.state, after.name, after.summary) == (JobState.DONE, b"drop.jsonl", before.summary)
        assert rig.work.store.state.finished_before(float("inf"), 9) == []  # there is nothing left to release


async def test_settings_of_a_job_that_cannot_be_read_any_more_are_noted_as_lost(
    tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        row = rig.accept_folder({"a.txt": b"why?", "job.toml": b'model = "large"\n'})
        await rig.engine.intake.begin([row])
        assert rig.work.jobs[row.key].frozen.model == "large"
    lose_index(spool)
    (spool / "work/jobs" / row.job / "input" / "job.toml").write_text("model = \n")
    async with street(monkeypatch, tmp_path) as rig:
        [live] = rig.work.jobs.values()
        assert live.frozen.model == "small"
        assert [note for note in live.row.notes if note.startswith("the job's own settings were lost")]


async def test_the_index_of_a_new_spool_is_not_called_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        assert rig.work.store.state.is_complete
    assert "index_rebuilt" not in caplog.text
