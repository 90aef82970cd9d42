"""The path of a drop as a whole: its start, its end, and what is told when a job is over."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from engine_support import Street, lines, records_of, street, until
from settings_support import reload

from obatchd.delivery.committer import Committer
from obatchd.dispatch.protocol import Configure, Forget, JobContext
from obatchd.documents.alarms import JobDone
from obatchd.jobs.model import JobState, Outcome
from obatchd.live.job import Ending, LiveJob
from obatchd.ollama import faults
from obatchd.ollama.faults import Fault


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Street]:
    async with street(monkeypatch, tmp_path) as made:
        yield made


async def test_a_drop_goes_from_the_inbox_to_the_outbox(rig: Street, tmp_path: Path) -> None:
    drop = tmp_path / "drop.jsonl"
    drop.write_bytes(lines("why?", {"id": "b", "prompt": "how?"}))
    os.rename(drop, rig.work.layout.inbox / "drop.jsonl")
    await until(lambda: rig.work.jobs)
    [live] = rig.work.jobs.values()
    await rig.answer(live, text="because")
    summary = await rig.published(live)
    assert (summary["name"], summary["succeeded"]) == ("drop.jsonl", 2)
    found = [(record["id"], record["prompt"], record["response"]) for record in records_of(live.outbox)]
    assert found == [("0000001", "why?", "because"), ("b", "how?", "because")]


async def test_a_job_that_is_over_is_told_and_forgotten_everywhere(rig: Street) -> None:
    live = await rig.take("a", "b")
    rig.work.conditions.report_job(live.key, "its input cannot be read")
    await rig.answer(live, 1)
    await rig.answer(live, 2, fault=Fault(faults.REQUEST, "bad_request", "no"))
    await rig.published(live)
    [told] = rig.alarms
    assert isinstance(told, JobDone)
    assert (told.job, told.owner, told.requests, told.succeeded, told.failed) == (live.row.job, 1000, 2, 1, 1)
    assert rig.work.conditions.of_jobs == {}
    assert Forget(live.key) in rig.worker("gpu0").sent
    assert rig.row(live).state is JobState.DONE


async def test_a_job_that_cannot_be_offered_fails_alone_and_keeps_up_no_other(
    rig: Street, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An earlier version took settings with a whole number of more than 64 bits, which no message can hold."""
    before = await rig.take("a")
    real = LiveJob.context

    def context(live: LiveJob) -> JobContext:
        return msgspec.structs.replace(real(live), options={"seed": 2**70}) if live.key in bad else real(live)

    bad = {before.key + 1, before.key + 2}
    monkeypatch.setattr(LiveJob, "context", context)
    first = await rig.take(*"abcdefgh")
    second = await rig.take({"prompt": "a"}, {"prompt": "b", "priority": "high"})
    after = await rig.take("a", "b")
    for live in (before, after):
        await rig.answer(live)
        assert (await rig.published(live))["failed"] == 0
    for live, requests in ((first, 8), (second, 2)):
        summary = await rig.published(live)
        assert (summary["failed"], list(summary["failures"])) == (requests, ["job_defect"])
        assert "more than 64 bits" in summary["failures"]["job_defect"]["example"]
    assert caplog.text.count("event=job_not_offered") == 2 and "OverflowError" in caplog.text
    assert rig.engine.queue.total() == 0


async def test_requests_in_flight_may_end_before_the_engine_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        live = await rig.take("a", "b")
        await rig.begun(live, 1)
        stopping = asyncio.create_task(rig.engine.stop(60))
        await until(lambda: "stopping" in rig.work.holds.reasons)
        assert not stopping.done()
        await until(lambda: [item.line for item in rig.held()] == [1])  # the other one was taken back
        await rig.answer(live, 1)
        await stopping
    async with street(monkeypatch, tmp_path) as rig:
        [again] = rig.work.jobs.values()
        assert rig.done(again) == {1}
        await until(rig.held)
        assert [(item.line, item.attempt) for item in rig.held()] == [(2, 1)]


async def test_a_job_goes_on_behind_its_last_answer_and_counts_what_was_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        live = await rig.take(*"abcdef", {"nothing": "asked"})
        await rig.answer(live, 3)
    async with street(monkeypatch, tmp_path) as rig:
        [again] = rig.work.jobs.values()
        assert (again.requests, again.finished) == (7, 2)
        await until(lambda: len(rig.held()) == 3)
        assert [item.line for item in rig.held()] == [4, 5, 6]
        await rig.answer(again)
        summary = await rig.published(again)
        assert (summary["requests"], summary["succeeded"], summary["failed"]) == (7, 6, 1)


async def test_a_job_whose_end_the_disk_holds_up_does_not_hold_up_the_end_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        live = await rig.take("a")
        held_up = asyncio.Event()

        async def settle(_: Committer, timeout_s: float) -> None:
            if not held_up.is_set():
                held_up.set()
                await asyncio.Event().wait()

        monkeypatch.setattr(Committer, "settle", settle)
        rig.engine.completion.cancellation.end(live, Ending(Outcome.EXPIRED, "expired", "its deadline passed"))
        await held_up.wait()  # nothing of it goes on after the end of the street


async def test_nothing_is_waited_for_in_a_hurry_and_nothing_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        live = await rig.take("a")
        await rig.begun(live)
        stopping = asyncio.create_task(rig.engine.stop(60))
        await until(lambda: "stopping" in rig.work.holds.reasons)
        rig.engine.hurry()
        await asyncio.wait_for(stopping, 5)
    async with street(monkeypatch, tmp_path) as rig:
        [again] = rig.work.jobs.values()
        await until(rig.held)
        assert [(item.line, item.attempt) for item in rig.held()] == [(1, 1)]  # cut short by us: no attempt of its own
        await rig.answer(again)
        assert (await rig.published(again))["succeeded"] == 1


async def test_new_settings_reach_the_workers_and_the_inbox(rig: Street) -> None:
    live = await rig.take("a")
    await rig.begun(live)
    first = rig.engine.intake.report
    reload(rig.work.settings, "inbox.rescan_s", 60)
    reload(rig.work.settings, "dispatch.stall_s", 77)
    rig.engine.settings_changed()
    configured = [message for message in rig.worker("gpu0").sent if isinstance(message, Configure)]
    assert [message.stall_s for message in configured][-1] == 77
    await until(lambda: rig.engine.intake.report is not first)
