"""Jobs and lanes that are over before all their requests are answered.

Of :mod:`obatchd.delivery.completion`, through an engine.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from dispatch_support import Port
from engine_support import Street, street, until

from obatchd.dispatch.protocol import Cancel, ToWorker
from obatchd.errors import ModelError
from obatchd.jobs.store import Segment
from obatchd.live import conditions


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Street]:
    monkeypatch.setattr(conditions, "RETRY_S", 0.005)
    async with street(monkeypatch, tmp_path) as made:
        yield made


async def test_a_cancelled_job_keeps_its_answers_and_ends_the_rest(rig: Street) -> None:
    live = await rig.take(*"abcdef")
    await rig.answer(live, 2)
    await rig.begun(live, 1)
    await rig.engine.completion.cancellation.cancel(live)
    summary = await rig.published(live)
    assert (summary["succeeded"], summary["cancelled"], summary["cancelled_by_user"]) == (1, 5, True)
    assert summary["failures"]["cancelled"]["example"] == "the job was cancelled"
    await until(lambda: rig.held() == [])
    assert rig.engine.queue.total() == 0


async def test_a_late_answer_changes_nothing_of_a_cancelled_job(rig: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    live, other = await rig.take("a"), await rig.take("b")
    worker = rig.worker("gpu0")
    await rig.begun(live)
    send = worker.send

    def too_late(message: ToWorker) -> None:
        if not isinstance(message, Cancel):
            send(message)

    monkeypatch.setattr(worker, "send", too_late)
    cancelling = asyncio.create_task(rig.engine.completion.cancellation.cancel(live))
    await until(lambda: live.ending)
    await rig.answer(live, 1)
    await cancelling
    summary = await rig.published(live)
    assert (summary["succeeded"], summary["cancelled"]) == (0, 1)
    await rig.answer(other)
    assert (await rig.published(other))["succeeded"] == 1


async def test_a_cancelled_job_goes_on_ending_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        live = await rig.take("a", "b")
        await rig.answer(live, 1)
        rig.work.store.state.update(live.key, cancelled=1)  # the daemon was killed then
        row = live.row
    async with street(monkeypatch, tmp_path) as rig:
        summary = await rig.published(row)
        assert (summary["succeeded"], summary["cancelled"]) == (1, 1)


async def test_a_job_cancelled_while_it_is_read_ends_when_it_is(rig: Street) -> None:
    row = rig.accept(b"".join(b'{"prompt": "%s"}\n' % (b"x" * 2000) for _ in range(200)))
    await rig.engine.intake.begin([row])
    live = rig.work.jobs[row.key]
    assert not live.indexed
    await rig.engine.completion.cancellation.cancel(live)
    summary = await rig.published(live)
    assert (summary["cancelled"], summary["requests"]) == (200, 200)


async def test_a_disk_that_refuses_holds_up_the_end_of_a_job_and_loses_none_of_it(
    rig: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = await rig.take("a", "b")
    real, words = Segment.end_pending, []

    def end_pending(segment: Segment, *given: Any) -> Any:
        if not words:
            words.append("refused")
            raise sqlite3.OperationalError("disk I/O error")
        words.append(rig.work.conditions.of_jobs.get(live.key, ""))
        return real(segment, *given)

    monkeypatch.setattr(Segment, "end_pending", end_pending)
    await rig.engine.completion.cancellation.cancel(live)
    summary = await rig.published(live)
    assert summary["cancelled"] == 2
    assert f"job {live.row.job} cannot be ended" in words[1] and rig.work.conditions.of_jobs == {}


async def test_a_model_that_no_server_can_have_fails_its_requests_alone(rig: Street) -> None:
    rig.models.missing["absent"] = ModelError("there is no such model", code="model_not_found")
    live = await rig.take({"prompt": "a", "model": "absent"}, "b", {"prompt": "c", "model": "absent"})
    await until(lambda: live.counts["failed"] == 2)
    await rig.answer(live, 2)
    summary = await rig.published(live)
    failure = summary["failures"]["model_not_found"]
    assert (failure["requests"], summary["succeeded"]) == (2, 1)
    assert failure["example"] == "there is no such model (model absent, context 8192)"


async def test_an_unservable_profile_fails_the_requests_of_every_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = Port("gpu0")
    async with street(monkeypatch, tmp_path, port) as rig:
        rig.models.missing["absent"] = ModelError("no", code="model_not_found")
        first, second = await rig.take("a", model="absent"), await rig.take("b", model="absent")
        for live in (first, second):
            assert (await rig.published(live))["failed"] == 1


async def test_a_deadline_is_passed_once_and_only_by_what_is_not_answered(rig: Street) -> None:
    cancellation = rig.engine.completion.cancellation
    live = await rig.take("a", "b", deadline=3600)
    assert not cancellation.mark_expired(live)
    live.row.accepted_s -= 7200
    assert live.expires_s is not None and live.expires_s < time.time()
    await rig.answer(live, 1, 2)
    assert not cancellation.mark_expired(live), "all is answered"
    late = await rig.take("a", "b", deadline=3600)
    late.row.accepted_s -= 7200
    cancellation.expire(late)
    cancellation.expire(late)
    assert not cancellation.mark_expired(late)
    summary = await rig.published(late)
    assert (summary["expired"], summary["cancelled_by_user"]) == (2, False)


async def test_a_deadline_that_passed_before_the_job_was_read_ends_it_unasked(rig: Street) -> None:
    live = await rig.take("a", "b", deadline="2020-01-01T00:00:00Z")
    summary = await rig.published(live)
    assert (summary["expired"], summary["requests"]) == (2, 2)
