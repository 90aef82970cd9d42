"""From the last answer to ``summary.json``, where answers come faster than the disk takes jobs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from work_support import add_live, make_work

from obatchd.delivery import publisher as module
from obatchd.delivery.publisher import Publisher
from obatchd.jobs.model import Entry, Intent, Outcome
from obatchd.jobs.store import IndexBatch, JobRow, ResultRow
from obatchd.live.work import Work

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
