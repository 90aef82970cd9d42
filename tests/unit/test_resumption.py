from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from settings_support import in_force

from obatchd.engine.resumption import Resumption
from obatchd.jobs.ledger import Intent
from obatchd.jobs.model import Entry
from obatchd.jobs.store import IndexBatch, Segment, Store
from obatchd.spool.layout import Layout


@pytest.mark.parametrize("refused", ["tallies", "lanes", "attempts", "last_finished"])
async def test_a_job_that_the_disk_would_not_show_is_taken_up_by_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    layout = Layout.open(tmp_path / "spool")
    store = Store(layout.work, in_force())
    store.state.accept([Intent("job-1", b"a.jsonl", 1000, 1, 2, 10, "file", 0.0)])
    [row] = store.state.find(["job-1"])
    store.write_index([IndexBatch(row, [Entry(1, 0, 10, 0)], final=True)])
    live: dict[int, Any] = {}
    parts: dict[str, Any] = {
        name: MagicMock() for name in ("admission", "completion", "endings", "feeder", "intake", "troubles")
    }
    parts["admission"].add.side_effect = lambda one: live.setdefault(one.key, MagicMock(finished=0, lanes={}))
    resumption = Resumption(live, layout, store, MagicMock(), **parts)

    def refuse(*_: Any) -> Any:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as failing:
        failing.setattr(Segment, refused, refuse)
        assert not await resumption.take_up()
    assert await resumption.take_up()
    parts["admission"].go_on.assert_called_once_with(live[row.key])
    parts["admission"].extend.assert_called_once()
    store.close()
