"""From the last answer to ``summary.json``, where answers come faster than the disk takes jobs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from settings_support import in_force
from task_support import Failures

from obatchd.delivery import completion as module
from obatchd.delivery.completion import Completion
from obatchd.delivery.publisher import Publication
from obatchd.dispatch.pool import forkserver_context
from obatchd.jobs.ledger import Intent
from obatchd.jobs.model import Entry, Outcome
from obatchd.jobs.store import IndexBatch, JobRow, ResultRow, Store
from obatchd.settings.settings import Settings
from obatchd.spool.layout import Layout

JOBS = 6


def answered(store: Store, layout: Layout) -> list[JobRow]:
    """Jobs of one request each, with its result."""
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


def publication(row: JobRow, layout: Layout) -> Publication:
    counts = {"requests": 1, "succeeded": 1, "failed": 0, "cancelled": 0, "expired": 0, "wall_s": 1.0}
    return Publication(
        row, layout.outbox / row.job, layout.job_dir(row.job), False, ".txt", False, lambda _: counts, lambda _: {}
    )


async def test_no_more_drops_are_taken_while_many_jobs_wait_for_their_publication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_UNPUBLISHED_LIMIT", 4)
    layout = Layout.open(tmp_path / "spool")
    store = Store(layout.work, in_force())
    rows = answered(store, layout)
    published: list[str] = []
    caught_up = asyncio.Event()

    def on_published(row: JobRow, _: dict[str, Any]) -> None:
        published.append(row.job)

    parts: dict[str, Any] = {name: MagicMock() for name in ("queue", "dispatcher", "models", "troubles")}
    completion = Completion(
        {}, layout, store, Settings(), forkserver_context(),
        **parts, on_published=on_published, on_caught_up=caught_up.set,
    )  # fmt: skip
    for row in rows:
        completion.publisher.publish(publication(row, layout))
    at_first = completion.behind
    assert not caught_up.is_set()
    defects = Failures()
    await completion.start(defects)
    async with asyncio.timeout(20):
        await caught_up.wait()
        while len(published) < JOBS:
            await asyncio.sleep(0.01)
    assert (at_first, completion.behind) == (True, False)
    assert published == [row.job for row in rows]
    assert not defects
    await completion.publisher.stop()
    store.close()
