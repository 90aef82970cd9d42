"""From the last answer to ``summary.json``, where answers come faster than the disk takes jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from engine_support import Street, records_of, street
from work_support import add_live, make_work

from obatchd.delivery import publisher as module
from obatchd.delivery.publisher import Publisher
from obatchd.dispatch.events import Finished
from obatchd.documents.alarms import DropChanged, JobDone
from obatchd.jobs.model import Entry, Intent, JobState, Outcome
from obatchd.jobs.store import IndexBatch, JobRow, ResultRow
from obatchd.live import conditions
from obatchd.live.work import Work
from obatchd.spool.outbox import JobOutbox

JOBS = 6


def answered(work: Work) -> list[JobRow]:
    """Jobs of one request each, with its result."""
    store, layout = work.store, work.layout
    intents = [Intent(f"job-{n}", b"a.jsonl", 1000, 1, n, 10, "file", 0.0) for n in range(JOBS)]
    store.state.accept(intents)
    rows = store.state.find([intent.job for intent in intents])
    for row in rows:
        layout.job_dir(row.job).mkdir()
        (layout.job_dir(row.job) / "input").write_bytes(b'{"prompt": "a"}\n')
        store.write_index([IndexBatch(row, [Entry(1, 0, 10, 0)], final=True)])
        record = b'{"id": "0000001", "line": 1, "outcome": "succeeded", "response": "b"}'
        store.write_results([(row.segment, ResultRow(row.key, 1, 0, Outcome.SUCCEEDED, record))], [])
    return rows


class Published(list[str]):
    """Implements :class:`obatchd.delivery.publisher.DeliveryEvents`."""

    def published(self, row: JobRow, summary: dict[str, Any]) -> None:
        self.append(row.job)


class Drops:
    """Implements :class:`obatchd.live.conditions.ConditionListener`."""

    def __init__(self) -> None:
        self.may_come = asyncio.Event()

    def condition_over(self) -> None:
        self.may_come.set()


async def test_no_more_drops_are_taken_while_many_jobs_wait_for_their_publication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_UNPUBLISHED_LIMIT", 4)
    work = make_work(tmp_path)
    rows = answered(work)
    published, drops = Published(), Drops()
    work.conditions.listen(drops)
    models = MagicMock(**{"facts.return_value": {}, "server_version.return_value": None})
    publisher = Publisher(work, models, published)
    for row in rows:
        live = add_live(work, row)
        live.counts["succeeded"] = live.requests = 1
        publisher.publish(live)
    assert not work.conditions.may_claim
    assert not drops.may_come.is_set()
    await publisher.start()
    async with asyncio.timeout(20):
        await drops.may_come.wait()
        while len(published) < JOBS:
            await asyncio.sleep(0.01)
    assert work.conditions.may_claim
    assert published == [row.job for row in rows]
    assert work.owner == []
    await publisher.stop()
    work.store.close()


# On a street, with a disk that does not take everything.


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Street]:
    monkeypatch.setattr(conditions, "RETRY_S", 0.005)
    async with street(monkeypatch, tmp_path) as made:
        yield made


def failing(monkeypatch: pytest.MonkeyPatch, directory: Path, times: float, error: Exception) -> list[Path]:
    """Let the whole of one job, or below one directory, not be written so many times."""
    real, failed = JobOutbox.write_whole, []

    def write_whole(box: JobOutbox, *given: Any, **named: Any) -> Any:
        if len(failed) < times and directory in (box.directory, box.directory.parent):
            failed.append(box.directory)
            raise error
        return real(box, *given, **named)

    monkeypatch.setattr(JobOutbox, "write_whole", write_whole)
    return failed


class Holds(list[str]):
    """Implements :class:`obatchd.dispatch.holds.HoldListener`."""

    def held(self, reason: str) -> None:
        self.append(reason)

    def released(self, reason: str) -> None:
        pass


async def test_jobs_wait_for_a_disk_that_refuses_them_and_are_published_whole(
    rig: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = failing(monkeypatch, rig.work.layout.outbox, 2, OSError(28, "No space left on device"))
    first, second = await rig.take("a"), await rig.take("b")
    holds = Holds()
    rig.work.holds.listen(holds)
    await rig.answer(first)
    await rig.answer(second)
    for live in (first, second):
        assert (await rig.published(live))["succeeded"] == 1
        assert sorted(path.name for path in (live.outbox / "responses").iterdir()) == ["0000001.json", "0000001.txt"]
    assert len(failed) == 2 and holds == ["outbox"] and rig.work.conditions.of_all == {}


async def test_a_defect_in_one_job_holds_up_no_other_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        lives = [await rig.take(prompt) for prompt in "abc"]
        with monkeypatch.context() as broken:
            failed = failing(broken, lives[1].outbox, float("inf"), KeyError("a mistake of ours"))
            stored = [Finished(live.key, 1, 0, True, b'{"id":"x","line":1,"response":"y"}', 1.0) for live in lives]
            for finished in stored:
                rig.engine.completion.finished(finished)
            for live in (lives[0], lives[2]):
                await rig.published(live)
        assert failed and list(rig.work.jobs) == [lives[1].key]
        assert rig.work.conditions.may_claim
    async with street(monkeypatch, tmp_path) as rig:
        assert (await rig.published(lives[1].row))["succeeded"] == 1


async def test_a_summary_that_was_written_before_a_crash_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        row = await rig.run("a")
        summary = rig.work.outbox_of(row) / "summary.json"
        before = (summary.read_bytes(), summary.stat().st_ino)
        rig.work.store.state.update(row.key, state=JobState.RUNNING, finished_s=None, summary=None)
    async with street(monkeypatch, tmp_path) as rig:
        await rig.published(row)
        again = rig.row(row)
        assert (summary.read_bytes(), summary.stat().st_ino) == before
        assert (again.state, again.summary) == (JobState.DONE, row.summary)
        [done] = [alarm for alarm in rig.alarms if isinstance(alarm, JobDone)]
        assert (done.job, done.succeeded) == (row.job, 1)


async def test_late_bytes_of_a_drop_are_noted_once(rig: Street) -> None:
    live = await rig.take("a")
    with rig.work.input_of(live.row).open("ab") as file:
        file.write(b"more\n")
    await rig.answer(live)
    [note] = (await rig.published(live))["notes"]
    assert note.startswith("5 bytes came after")
    assert rig.row(live).notes == [note]
    [alarm] = [alarm for alarm in rig.alarms if isinstance(alarm, DropChanged)]
    assert (alarm.job, alarm.owner, alarm.more_bytes) == (live.row.job, 1000, 5)


@pytest.mark.parametrize("change", ["another file", "cut short"])
async def test_a_folder_that_is_another_than_was_taken_is_noted(rig: Street, change: str) -> None:
    row = rig.accept_folder({"a.jsonl": b'{"prompt": "a"}\n', "b.jsonl": b'{"prompt": "b"}\n'})
    await rig.engine.intake.begin([row])
    live = rig.work.jobs[row.key]
    if change == "another file":
        (rig.work.input_of(row) / "c.jsonl").write_bytes(b'{"prompt": "c"}\n')
    else:
        (rig.work.input_of(row) / "b.jsonl").write_bytes(b"")
    await rig.answer(live)
    [note] = (await rig.published(live))["notes"]
    assert ("16 bytes came after" if change == "another file" else "lost 16 bytes") in note
    [alarm] = [alarm for alarm in rig.alarms if isinstance(alarm, DropChanged)]
    assert alarm.more_bytes == (16 if change == "another file" else -16)


async def test_a_batch_file_is_answered_in_its_own_lines(rig: Street) -> None:
    body = {"model": "small", "messages": [{"role": "user", "content": "x"}]}
    line = {"custom_id": "mine", "method": "POST", "url": "/v1/chat/completions", "body": body}
    live = await rig.take(line)
    await rig.answer(live, text="because")
    await rig.published(live)
    [answer] = records_of(live.outbox)
    assert (answer["custom_id"], answer["response"]["status_code"]) == ("mine", 200)
