"""What the store does when the disk refuses, when a file is damaged, and when the index is lost."""

from __future__ import annotations

import re
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from settings_support import in_force

from obatchd.errors import StoreError
from obatchd.jobs.model import Entry, Intent, JobState, Outcome
from obatchd.jobs.store import IndexBatch, JobRow, ResultRow, Store, integrity, store


@contextmanager
def full_disk(limit_bytes: int = 0) -> Iterator[None]:
    """No file of this process may grow beyond ``limit_bytes``: EFBIG, which SQLite treats as it does ENOSPC."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def accept(store: Store, *jobs: str, size: int = 10) -> list[JobRow]:
    intents = [Intent(job, b"drop.jsonl", 1000, 1, 2, size, "file", 0.0) for job in jobs]
    store.state.add_intents(intents)
    store.state.accept(intents)
    return store.state.find(jobs)


def index(store: Store, job: JobRow, *lines: int) -> None:
    store.write_index([IndexBatch(job, [Entry(line, line * 10, 9, 0) for line in lines], True)])


def result(job: JobRow, line: int) -> tuple[str, ResultRow]:
    return job.segment, ResultRow(job.key, line, 0, Outcome.SUCCEEDED, b'{"id":"x"}' + b" " * 10_000)


def damage(path: Path) -> None:
    """Overwrite everything behind the first page, whose header stays good."""
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))


def test_a_refused_commit_leaves_nothing_and_the_same_connection_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path, in_force())
    [job] = accept(store, "a")
    index(store, job, 1, 2, 3)
    for _ in range(3):
        with full_disk(), pytest.raises(sqlite3.OperationalError):
            store.write_results([result(job, 1), result(job, 2)], [])
        with full_disk(), pytest.raises(sqlite3.OperationalError):
            store.state.set("key", "value" * 1000)
    assert list(store.results(job)) == []
    assert store.state.get("key") is None
    store.write_results([result(job, 1), result(job, 2)], [])
    store.state.set("key", "value")
    assert [line for line, _, _ in store.results(job)] == [1, 2]
    assert store.of(job).tallies(job.key) == {"succeeded": 2}
    store.close()
    again = Store(tmp_path, in_force())
    assert again.state.get("key") == "value"
    assert [line for line, _, _ in again.results(job)] == [1, 2]
    again.close()


_COMMITTING = """
import os, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], str(Path(sys.argv[2]).parent)]
from settings_support import in_force
from test_store_faults import Entry, IndexBatch, Store, accept, result
store = Store(Path(sys.argv[1]), in_force())
[job] = accept(store, "a")
store.write_index([IndexBatch(job, [Entry(1, 10, 9, 0)], False)])
os.write(1, b"result")
store.write_results([result(job, 1)], [])
os.write(1, b"fact")
store.state.set("key", "value")
os.write(1, b"end")
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_what_is_committed_survives_a_power_cut(tmp_path: Path) -> None:
    """Only what was flushed does. The index is not: it is read from the drop again."""
    trace = tmp_path / "trace"
    command = ["strace", "-f", "--seccomp-bpf", "-y", "-e", "trace=fsync,fdatasync,write", "-o", trace]
    command += [sys.executable, "-c", _COMMITTING, tmp_path / "work", Path(__file__).parent]
    (tmp_path / "work").mkdir()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    flushed: dict[str, list[str]] = {}
    step = ""
    for line in trace.read_text().splitlines():
        if begun := re.search(r'write\(1<.*"(\w+)"', line):
            flushed[step := begun[1]] = []
        elif (file := re.search(r"f(?:data)?sync\(\d+<(.*)>\)", line)) and step:
            flushed[step].append(Path(file[1]).name)
    assert any(name.endswith("-wal") for name in flushed["result"])
    assert "state.db-wal" in flushed["fact"]


def test_results_of_two_segments_may_be_written_again_after_half_of_them_failed(tmp_path: Path) -> None:
    store = Store(tmp_path, in_force())
    [small, large] = [*accept(store, "a"), *accept(store, "b", size=50 * 1024**2)]
    index(store, small, 1)
    index(store, large, 1)
    store.segment(small.segment).write_results([result(small, 1)[1]], [])
    store.write_results([result(small, 1), result(large, 1)], [])
    assert store.of(small).tallies(small.key) == {"succeeded": 1}
    assert store.of(large).tallies(large.key) == {"succeeded": 1}
    store.close()


def test_a_full_disk_is_not_taken_for_damage(tmp_path: Path) -> None:
    store = Store(tmp_path, in_force())
    [job] = accept(store, "a")
    with full_disk(), pytest.raises(StoreError) as refused:
        store.of(job)
    assert refused.value.code == "store_unusable"
    assert list(tmp_path.rglob("*.corrupt-*")) == []
    index(store, job, 1)
    store.close()


@pytest.mark.parametrize("content", [b"no database at all" * 1000, b"\0" * 8192])
def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path, in_force())
    [job] = accept(store, "a")
    index(store, job, 1)
    store.close()
    (tmp_path / "segments" / f"{job.segment}.db").write_bytes(content)
    again = Store(tmp_path, in_force())
    assert again.of(job).job_progress(job.key) == (0, False)
    assert [path.name.rpartition("-")[0].partition(".corrupt")[0] for path in tmp_path.rglob("*.corrupt-*")] == [
        f"{job.segment}.db"
    ]
    index(again, job, 1)
    again.close()


def test_every_page_is_read_after_the_machine_went_down_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def look(path: Path) -> bool:
        looked.append(path.name)
        return integrity.is_damaged(path)

    monkeypatch.setattr(store, "is_damaged", look)
    first = Store(tmp_path, in_force())
    [job] = accept(first, "a")
    index(first, job, 1)
    first.close()
    Store(tmp_path, in_force()).close()
    assert looked == []

    killed = Store(tmp_path, in_force())  # never closed: its process was killed
    again = Store(tmp_path, in_force())
    assert again.of(job).job_progress(job.key) == (1, True)
    assert looked == []
    killed.state.close()
    again.of(job).close()
    again.state.close()

    (tmp_path / "session").write_text("an earlier boot\n")
    rebooted = Store(tmp_path, in_force())
    assert rebooted.of(job).job_progress(job.key) == (1, True)
    assert looked == ["state.db", f"{job.segment}.db"]
    rebooted.close()


def test_damage_behind_a_good_header_is_found_at_the_next_start(tmp_path: Path) -> None:
    store = Store(tmp_path, in_force())
    [job] = accept(store, "a")
    index(store, job, *range(1, 500))
    store.distrust()
    store.close()
    damage(tmp_path / "segments" / f"{job.segment}.db")
    again = Store(tmp_path, in_force())
    assert again.of(job).job_progress(job.key) == (0, False)
    again.close()


def test_damage_met_while_running_is_told_apart_from_a_full_disk(tmp_path: Path) -> None:
    first = Store(tmp_path, in_force())
    [job] = accept(first, "a")
    index(first, job, *range(1, 2000))
    first.close()
    damage(tmp_path / "segments" / f"{job.segment}.db")
    second = Store(tmp_path, in_force())
    with pytest.raises(sqlite3.DatabaseError) as met:
        second.of(job).pending(job.key, 0, 0, 5000)
    assert not isinstance(met.value, sqlite3.OperationalError)
    second.close()


def test_a_lost_index_is_begun_anew_and_restored_with_the_keys_that_segments_use(tmp_path: Path) -> None:
    first = Store(tmp_path, in_force())
    first.state.restore([], 0)
    accept(first, "gone1", "gone2")
    jobs = accept(first, "a", "b")
    for job in jobs:
        index(first, job, 1)
    first.close()
    for path in tmp_path.glob("state.db*"):
        path.unlink()

    second = Store(tmp_path, in_force())
    assert not second.state.is_complete
    known = second.jobs_in_segments()
    assert known == {job.job: (job.key, job.segment, job.defaults) for job in jobs}
    fresh = JobRow(
        key=0, job="c", name=b"c", owner=0, kind="file", size=1, state=JobState.RUNNING, segment="c", accepted_s=1.0,
        finished_s=None, paused=False, cancelled=False, settings=jobs[0].settings, notes=["n"], digest=None,
        retry_of=None, summary=None, accepted_moment=None, defaults=jobs[0].defaults,
    )  # fmt: skip
    second.state.restore([(fresh, False), *((job, False) for job in jobs)], last_key=max(job.key for job in jobs))
    assert second.state.is_complete
    assert second.state.find(["a", "b"]) == jobs
    [restored] = second.state.find(["c"])
    assert restored.key > max(job.key for job in jobs)
    [later] = accept(second, "d")
    assert later.key > restored.key
    second.close()


def finish(store: Store, job: JobRow, finished_s: float, kept_bytes: int = 0) -> None:
    store.state.update(job.key, state=JobState.DONE, finished_s=finished_s, kept_bytes=kept_bytes)


def test_the_oldest_finished_jobs_are_those_beyond_the_bound(tmp_path: Path) -> None:
    store = Store(tmp_path, in_force())
    for number, job in enumerate(accept(store, "a", "b", "c", "d")):
        finish(store, job, float(number), kept_bytes=100)
    accept(store, "running")
    assert [row.job for row in store.state.finished_beyond(250, 10)] == ["a", "b"]
    assert [row.job for row in store.state.finished_beyond(250, 1)] == ["a"]
    assert store.state.finished_beyond(400, 10) == []
    store.close()


def test_rows_go_only_when_nothing_of_the_job_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path, in_force())
    jobs = accept(store, "a", "b", "c")
    for job in jobs:
        finish(store, job, 10.0)
    for job in jobs[:2]:
        store.release(job)
    assert store.state.forget_released(11.0, limit=1) == 1
    assert store.state.forget_released(11.0, limit=10) == 1
    assert store.state.forget_released(11.0, limit=10) == 0
    assert store.state.jobs() == {"c"}
    store.close()


def test_an_error_inside_a_transaction_leaves_nothing_and_the_connection_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path, in_force())
    [job] = accept(store, "a")
    index(store, job, 1)
    with pytest.raises(sqlite3.IntegrityError):
        store.state.update_many([(job.key, {"digest": "x"}), (job.key, {"name": None})])
    assert store.state.find(["a"])[0].digest is None
    store.state.update(job.key, digest="y")
    assert store.state.find(["a"])[0].digest == "y"
    store.close()
