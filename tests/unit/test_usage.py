"""The sums of each owner and month: what was done for whom, and of no job."""

from __future__ import annotations

import sqlite3
from calendar import timegm
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from settings_support import WITHOUT_VERSION_6, in_force

from obatchd.jobs.model import Intent, JobState
from obatchd.jobs.store import JobRow, Store, UsageRow

DECEMBER_S = timegm((2026, 12, 1, 0, 0, 0))
COUNTS = {
    "requests": 5, "succeeded": 3, "failed": 1, "cancelled": 1, "expired": 0, "wall_s": 2.0, "prompt_tokens": 10,
    "response_tokens": 20, "gpu_s": 1.5, "truncated": 0, "ungrounded": 0, "copied": 0, "failures": {},
}  # fmt: skip


def accepted(store: Store, job: str, owner: int = 1000) -> JobRow:
    store.state.accept([Intent(job, f"secret-{job}".encode(), owner, 1, 1, 10, "file", 0.0)])
    [row] = store.state.find([job])
    return row


def done(ended_s: float = DECEMBER_S - 1, **counts: Any) -> dict[str, Any]:
    return {"state": JobState.DONE, "finished_s": ended_s, "summary": COUNTS | counts}


def test_a_job_counts_once_however_often_it_is_published(tmp_path: Path) -> None:
    store = Store(tmp_path, in_force())
    row = accepted(store, "a")
    store.state.finish([(row.key, done())])
    store.state.finish([(row.key, done())])  # its summary was torn
    store.state.update(row.key, state=JobState.RUNNING, finished_s=None)  # its segment, too: it was asked again
    store.state.finish([(row.key, done(DECEMBER_S + 9))])
    assert store.state.usage() == [UsageRow(1000, "2026-11", 5, 3, 1, 1, 0, 10, 20, 1.5, 0.0)]
    store.close()


def test_sums_are_of_an_owner_and_of_the_month_in_utc_in_which_their_jobs_end(tmp_path: Path) -> None:
    store = Store(tmp_path, in_force())
    rows = [accepted(store, name, owner) for name, owner in (("a", 1000), ("b", 1000), ("c", 1000), ("d", 1001))]
    ends_s = (DECEMBER_S - 0.5, DECEMBER_S - 1, DECEMBER_S, DECEMBER_S)
    store.state.finish([(row.key, done(end_s)) for row, end_s in zip(rows, ends_s, strict=True)])
    found = [(sums.owner, sums.month, sums.requests, sums.gpu_s) for sums in store.state.usage()]
    assert found == [(1000, "2026-12", 5, 1.5), (1001, "2026-12", 5, 1.5), (1000, "2026-11", 10, 3.0)]
    assert [sums.owner for sums in store.state.usage(month="2026-11")] == [1000]
    assert [sums.month for sums in store.state.usage(1001)] == ["2026-12"]
    assert store.state.usage(1001, "2026-11") == []
    store.close()


def test_a_job_counts_in_the_transaction_that_makes_it_done_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path, in_force())
    row = accepted(store, "a")
    with pytest.raises(sqlite3.OperationalError):
        store.state.finish([(row.key, done() | {"no_such_column": 1})])
    assert store.state.usage() == [] and store.state.find(["a"])[0].state is JobState.RUNNING
    store.close()


def test_erasing_a_job_leaves_the_sums_and_nothing_that_names_it(tmp_path: Path) -> None:
    store = Store(tmp_path, in_force())
    row = accepted(store, "20261128-120000-abcd")
    store.state.finish([(row.key, done())])
    [row] = store.state.find([row.job])
    before = store.state.usage()
    store.erase([row])
    assert store.state.usage() == before != []
    store.close()
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"secret" not in content and b"abcd" not in content
    with closing(sqlite3.connect(tmp_path / "state.db")) as state:
        assert [name for _, name, *_ in state.execute("PRAGMA table_info(usage)")] == [*UsageRow.__struct_fields__]


def test_sums_of_a_lost_index_are_made_again_of_the_jobs_that_are_left(tmp_path: Path) -> None:
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    store = Store(tmp_path / "before", in_force())
    row, running = accepted(store, "a"), accepted(store, "b")
    store.state.finish([(row.key, done())])
    rows, sums = store.state.find([row.job, running.job]), store.state.usage()
    store.close()
    store = Store(tmp_path / "after", in_force())
    store.state.restore([(row, False) for row in rows], 2)
    assert store.state.usage() == sums
    store.state.restore([(row, False) for row in rows], 2)
    assert store.state.usage() == sums
    assert store.state.find(["a"]) == rows[:1]
    store.close()


def test_a_file_of_version_3_gets_the_sums_and_its_open_jobs_go_on(tmp_path: Path) -> None:
    store = Store(tmp_path, in_force())
    old, running = accepted(store, "old"), accepted(store, "running")
    store.state.update(old.key, **done())
    store.close()
    with closing(sqlite3.connect(tmp_path / "state.db")) as state:
        state.executescript(WITHOUT_VERSION_6)
        state.executescript(
            "DROP TABLE usage; DROP INDEX jobs_by_label; ALTER TABLE jobs DROP COLUMN job_label;PRAGMA user_version = 3"
        )
    store = Store(tmp_path, in_force())
    assert store.state.usage() == []
    store.state.finish([(old.key, done()), (running.key, done())])
    assert [sums.requests for sums in store.state.usage()] == [5]  # a job of before may have no tokens: it is left out
    store.close()
