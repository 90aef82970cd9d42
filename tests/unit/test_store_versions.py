"""The store's files across versions of obatchd, and erasing jobs from them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from settings_support import DEFAULTS, WITHOUT_VERSION_6, in_force

from obatchd.errors import StoreError
from obatchd.jobs.model import Entry, Intent, JobState, Outcome
from obatchd.jobs.store import IndexBatch, JobRow, Store
from obatchd.jobs.store.rows import CostRow, ResultRow
from obatchd.jobs.store.schema import BACKUP_MARK

CANARY = "c4n4ry-"


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        found: int = connection.execute("PRAGMA user_version").fetchone()[0]
        return found


def finished(store: Store, number: int, size: int = 10) -> JobRow:
    """A finished job whose name, ids and answers carry its own canary."""
    label = f"{CANARY}{number}-".ljust(2000, "x")
    name = f"{CANARY}{number}.jsonl".encode()
    store.state.accept([Intent(f"20260101-00000{number}-abcd", name, 7, 1, number, size, "file", 0.0)])
    [row] = store.state.find([f"20260101-00000{number}-abcd"])
    store.write_index([IndexBatch(row, [Entry(n, 0, 1, 0, id=f"{label}{n}") for n in (1, 2)], final=True)])
    store.write_results(
        [(row.segment, ResultRow(row.key, n, 0, Outcome.SUCCEEDED, f'"{label}"'.encode())) for n in (1, 2)], []
    )
    store.state.update(row.key, state=JobState.DONE, finished_s=1.0 + number, notes=[label], summary={"a": label})
    return row


def holds(work: Path, text: str) -> list[str]:
    return [path.name for path in work.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_files_made_before_there_were_versions_are_brought_up_with_a_copy(tmp_path: Path) -> None:
    store = Store(tmp_path, in_force())
    row = finished(store, 1)
    store.close()
    segment = tmp_path / "segments" / f"{row.segment}.db"
    for path in (tmp_path / "state.db", segment):
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript("PRAGMA user_version = 0; DROP TABLE job_defaults")
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        connection.executescript("DROP INDEX jobs_by_owner; ALTER TABLE jobs DROP COLUMN defaults")
        connection.executescript("ALTER TABLE jobs DROP COLUMN accepted_moment; DROP TABLE usage")
        connection.executescript("DROP INDEX jobs_by_label; ALTER TABLE jobs DROP COLUMN job_label")
        connection.executescript(WITHOUT_VERSION_6)
    store = Store(tmp_path, in_force())
    assert version(tmp_path / "state.db") == 6
    [copy] = tmp_path.glob(f"*{BACKUP_MARK}*")
    assert version(copy) == 0 and copy.stat().st_mode & 0o077 == 0
    assert [found.job for found in store.state.list_jobs([JobState.DONE], owner=7)] == [row.job]
    assert len(list(store.results(row))) == 2
    assert version(segment) == 1 and not list(segment.parent.glob(f"*{BACKUP_MARK}*"))  # its tables stayed as they were
    assert store.of(row).cost(row.key) == CostRow(row.key, 0.0, 0.0, 0.0, 0, 0)
    cost = CostRow(row.key, 1.5, 7.0, 2.5, 30, 40)
    store.write_results([], [], [(row.segment, cost)])
    assert store.of(row).cost(row.key) == cost
    store.close()


@pytest.mark.parametrize("damaged", [False, True])  # whether the newer one met damage before it ended
def test_a_newer_file_is_refused_and_all_are_left_alone(tmp_path: Path, damaged: bool) -> None:
    store = Store(tmp_path, in_force())
    if damaged:
        store.distrust()
    store.close()
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match=r"newer obatchd.*version 99.*Install the newer") as caught:
        Store(tmp_path, in_force())
    assert caught.value.code == "store_newer"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from obatchd.jobs.store import state

    Store(tmp_path, in_force()).close()
    broken = state.state_schema(DEFAULTS)._replace(version=7, steps={7: "CREATE TABLE half (x); SELECT nonsense"})
    monkeypatch.setattr(state, "state_schema", lambda defaults: broken)
    with pytest.raises(StoreError):
        Store(tmp_path, in_force())
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone() == (0,)
    assert version(tmp_path / "state.db") == 6


def test_an_erased_job_leaves_nothing_and_its_neighbours_everything(tmp_path: Path) -> None:
    store = Store(tmp_path, in_force())
    shared, neighbour, large = finished(store, 1), finished(store, 2), finished(store, 3, size=5 * 1024**2)
    (tmp_path / f"state.db{BACKUP_MARK}1").write_text(f"{CANARY}1")
    (tmp_path / "segments" / "x.db.corrupt-20260101-000000").write_text(f"{CANARY}1")
    assert holds(tmp_path, f"{CANARY}1") and holds(tmp_path, f"{CANARY}3")
    store.erase([shared, large])
    assert not holds(tmp_path, f"{CANARY}1") and not holds(tmp_path, f"{CANARY}3")
    assert len(list(store.results(neighbour))) == 2
    assert [row.job for row in store.state.ended_before(100.0, 10)] == [neighbour.job]
    store.erase([neighbour])
    assert not holds(tmp_path, CANARY)
    after = finished(store, 4)
    assert after.key > large.key and len(list(store.results(after))) == 2
    store.close()
