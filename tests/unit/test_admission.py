"""From indexed requests to the queue, and the steps that a job takes beside being answered.

Of :mod:`obatchd.engine.admission`, through an engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from engine_support import Street, lines, street, until

from obatchd.dispatch.protocol import Cancel
from obatchd.errors import DropRefused
from obatchd.intake.indexing import Chunk
from obatchd.jobs.store import IndexedChunk, LaneRow


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Street]:
    async with street(monkeypatch, tmp_path) as made:
        yield made


async def test_requests_are_grouped_by_what_they_need_and_each_is_asked_with_it(rig: Street) -> None:
    live = await rig.take(
        "a", {"prompt": "b", "model": "large", "context_length": 5000}, {"prompt": "c", "priority": "high"}
    )
    assert sorted(
        (lane.profile.model, lane.profile.context_length, lane.base_class) for lane in live.lanes.values()
    ) == [
        ("large", 8192, 1),
        ("small", 8192, 1),
        ("small", 8192, 2),
    ]
    await rig.answer(live)
    summary = await rig.published(live)
    assert (summary["succeeded"], sorted(summary["models"])) == (3, ["large", "small"])


async def test_lines_that_cannot_be_run_fail_and_the_others_are_asked(rig: Street) -> None:
    row = rig.accept(lines("a") + b"{broken\n" + lines("b"))
    await rig.engine.intake.begin([row])
    live = rig.work.jobs[row.key]
    assert (live.requests, live.finished, live.indexed) == (3, 1, True)
    [(code, (count, message))] = live.failures.items()
    assert (code, count, message[:8]) == ("bad_json", 1, "line 2: ")
    await rig.answer(live, 1, 3)
    summary = await rig.published(live)
    assert (summary["succeeded"], list(summary["failures"])) == (2, ["bad_json"])


async def test_a_job_of_bad_lines_alone_is_over_at_once(rig: Street) -> None:
    row = rig.accept(b"{broken\n[]\n")
    await rig.engine.intake.begin([row])
    assert (await rig.published(row))["failed"] == 2


async def test_a_large_drop_is_asked_from_before_it_is_wholly_read(rig: Street) -> None:
    row = rig.accept(lines(*("x" * 2000 for _ in range(800))))
    await rig.engine.intake.begin([row])
    live = rig.work.jobs[row.key]
    assert (live.requests, live.indexed) == (64, False)
    await until(lambda: live.indexed)
    assert live.requests == 800
    await rig.answer(live, *range(1, 71))
    assert live.counts["succeeded"] == 70


async def test_requests_without_a_model_fail_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with street(monkeypatch, tmp_path, model="") as rig:
        live = await rig.take("a", {"prompt": "b", "model": "small"})
        await rig.answer(live, 2)
        summary = await rig.published(live)
    assert summary["failures"]["no_model"]["requests"] == 1
    assert "job.toml" in summary["failures"]["no_model"]["example"]
    assert summary["succeeded"] == 1


async def test_a_job_that_was_paused_before_waits_until_it_is_resumed(rig: Street) -> None:
    row = rig.accept(lines("a"))
    rig.work.store.state.update(row.key, paused=1)
    row = rig.row(row)
    await rig.engine.intake.begin([row])
    live, other = rig.work.jobs[row.key], await rig.take("b")
    await rig.answer(other)
    assert [item.job for item in rig.held()] == []
    await rig.engine.admission.pause(live, False)
    assert (live.paused, rig.row(live).paused) == (False, False)
    await rig.answer(live)
    assert (await rig.published(live))["succeeded"] == 1


async def test_a_pause_is_remembered_and_offers_nothing_more(rig: Street) -> None:
    live = await rig.take(*"abcdefgh")
    await until(lambda: len(rig.held()) == 3)
    await rig.engine.admission.pause(live, True)
    assert live.paused and rig.row(live).paused
    await rig.answer(live, *(item.line for item in rig.held()))
    assert rig.held() == [] and live.finished == 3


async def test_a_drop_that_turns_out_to_be_no_job_is_forgotten_with_its_requests(rig: Street) -> None:
    live = await rig.take("a")
    await until(rig.held)
    worker = rig.worker("gpu0")
    rig.engine.intake.refuse(live.row, DropRefused("it was taken back"))
    rig.engine.admission.refused(live.row)
    assert live.key not in rig.work.jobs and rig.engine.queue.total() == 0
    assert Cancel(live.key) in worker.sent
    rig.engine.admission.refused(live.row)  # of a drop that never became live there is nothing to forget
    assert rig.work.jobs == {}


async def test_what_is_indexed_of_a_job_that_is_over_is_not_queued(rig: Street) -> None:
    lane = LaneRow(99, 0, None, None, None, 1)
    rig.engine.admission.indexed(99, Chunk(IndexedChunk(99, [lane], [0], []), {}, True))
    assert rig.engine.queue.total() == 0 and rig.work.jobs == {}
