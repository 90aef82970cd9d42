from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from work_support import make_work

from obatchd.engine.resumption import Resumption
from obatchd.jobs.model import Entry, Intent
from obatchd.jobs.store import IndexBatch, Segment
from obatchd.live import conditions


@pytest.mark.parametrize("refused", ["tallies", "lanes", "attempts", "last_finished"])
async def test_a_job_that_the_disk_would_not_show_is_taken_up_by_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    work = make_work(tmp_path)
    store = work.store
    store.state.accept([Intent("job-1", b"a.jsonl", 1000, 1, 2, 10, "file", 0.0)])
    [row] = store.state.find(["job-1"])
    store.write_index([IndexBatch(row, [Entry(1, 0, 10, 0)], final=True)])
    monkeypatch.setattr(conditions, "RETRY_S", 0.01)
    parts: dict[str, Any] = {
        name: MagicMock() for name in ("admission", "completion", "feeder", "intake", "dispatcher")
    }
    parts["admission"].add.side_effect = lambda one: work.jobs.setdefault(one.key, MagicMock(finished=0, lanes={}))
    watching = asyncio.Event()
    parts["intake"].start.side_effect = watching.set
    resumption = Resumption(work, **parts)

    def refuse(*_: Any) -> Any:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as failing:
        failing.setattr(Segment, refused, refuse)
        await resumption.start()
        assert "earlier jobs cannot be taken up" in work.conditions.of_all["start"]
        assert not watching.is_set()
    async with asyncio.timeout(10):
        await watching.wait()
    assert work.conditions.of_all == {}
    parts["admission"].go_on.assert_called_once_with(work.jobs[row.key])
    parts["admission"].extend.assert_called_once()
    await resumption.stop()
    store.close()
    assert work.owner == []
