"""What the control API says of a job in the moment it is over."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import msgspec
import pytest
from settings_support import in_force

from obatchd.control.auth import Caller
from obatchd.errors import ObatchError
from obatchd.jobs.model import Intent, JobState
from obatchd.jobs.store import Store
from obatchd.live.audit import AuditLog
from obatchd.operations.jobs import JobCommands
from obatchd.operations.servers import ServerCommands
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.spool.layout import Layout

CALLER = Caller(1000, False)


def jobs_of(store: Store, layout: Layout, live: Any) -> JobCommands:
    engine = MagicMock()
    engine.store, engine.layout, engine.settings, engine.jobs = store, layout, Current(Settings()), {live.key: live}
    engine.dispatcher.in_flight.return_value = {}
    return JobCommands(engine)


async def test_a_job_the_index_has_as_done_is_over_before_the_engine_lets_go_of_it(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path / "spool")
    store = Store(layout.work, in_force())
    store.state.accept([Intent("job-1", b"a.jsonl", 1000, 1, 1, 10, "file", 0.0)])
    [row] = store.state.find(["job-1"])
    jobs = jobs_of(store, layout, MagicMock(key=row.key, row=row, publishing=True))
    with pytest.raises(ObatchError, match="not over yet"):
        await jobs.retry(CALLER, "job-1")
    # The publisher's thread has written the index; the event loop has not heard of it.
    counts = {"requests": 1, "succeeded": 1, "failed": 0, "cancelled": 0, "expired": 0, "wall_s": 1.0}
    store.state.update(row.key, state=JobState.DONE, finished_s=1_700_000_000.0, summary=counts)
    [listed] = jobs.all(CALLER, "done", 10)
    assert (listed.state, listed.finished_at, listed.succeeded) == ("done", "2023-11-14T22:13:20.000Z", 1)
    assert msgspec.structs.replace(jobs.one(CALLER, "job-1"), details=None) == listed
    store.close()


async def test_an_action_that_fails_by_a_defect_is_no_success(tmp_path: Path) -> None:
    async def drain(reason: str) -> None:
        raise KeyError("HOME")

    layout = Layout.open(tmp_path / "spool")
    servers_there = {"gpu0": SimpleNamespace(id="gpu0", drain=drain)}
    fleet: Any = SimpleNamespace(servers=servers_there, all=servers_there)
    engine = MagicMock(layout=layout, work=MagicMock(audit=AuditLog(layout.work)))
    servers = ServerCommands(engine, fleet, MagicMock(), MagicMock())
    with pytest.raises(KeyError, match="HOME"):
        await servers.act(CALLER, "gpu0", "drain")
