"""A job is done with the settings of its acceptance."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from settings_support import DEFAULTS, in_force

from obatchd.jobs.model import Entry, Intent, JobState
from obatchd.jobs.store import IndexBatch, JobRow, LaneRow, Store
from obatchd.live.job import LiveJob
from obatchd.settings.base import Reload
from obatchd.settings.current import Current
from obatchd.settings.job import FrozenSettings, JobSettings
from obatchd.settings.reading import leaves
from obatchd.settings.settings import Settings


def accept(store: Store, *jobs: str) -> list[JobRow]:
    store.state.accept([Intent(job, b"drop.jsonl", 1000, 1, 2, 10, "file", 0.0) for job in jobs])
    return store.state.find(jobs)


@pytest.fixture
def settings() -> Current[Settings]:
    return in_force(model="old", system_message="Be short.", options={"seed": 1})


def kept(work: Path) -> int:
    with closing(sqlite3.connect(work / "state.db")) as state:
        count: int = state.execute("SELECT count(*) FROM job_defaults").fetchone()[0]
        return count


def test_every_setting_marked_next_job_is_kept_with_a_job_and_no_other() -> None:
    assert set(FrozenSettings.__struct_fields__) == {leaf.name for leaf in leaves() if leaf.reload is Reload.NEXT_JOB}


def test_a_job_keeps_the_settings_of_its_acceptance(tmp_path: Path, settings: Current[Settings]) -> None:
    store = Store(tmp_path, settings)
    accept(store, "a", "b")
    settings.value = settings.value.model_copy(update={"model": "new", "system_message": ""})
    accept(store, "a", "c")  # of "a" a second time, as after a crash
    rows = store.state.find(["a", "b", "c"])
    assert [row.frozen.model for row in rows] == ["old", "old", "new"]
    assert [row.frozen.system_message for row in rows] == ["Be short.", "Be short.", ""]
    assert rows[0].defaults is rows[1].defaults
    store.close()
    store = Store(tmp_path, in_force(model="newest"))
    assert store.state.find(["a", "b", "c"]) == rows
    assert [row.frozen.model for row in store.state.list_jobs([JobState.RUNNING])] == ["old", "old", "new"]
    store.close()


def test_equal_settings_of_many_jobs_are_stored_once(tmp_path: Path, settings: Current[Settings]) -> None:
    store = Store(tmp_path, settings)
    first, *_ = accept(store, *(f"job-{number}" for number in range(50)))
    assert kept(tmp_path) == 1
    settings.value = settings.value.model_copy(update={"model": "new"})
    [last] = accept(store, "last")
    assert kept(tmp_path) == 2
    store.state.update(first.key, defaults=last.defaults)
    assert kept(tmp_path) == 2
    store.erase([last, first])
    assert kept(tmp_path) == 1
    store.close()


def test_a_jobs_own_settings_go_over_the_daemons() -> None:
    defaults = FrozenSettings.of(
        Settings.model_validate(
            {"model": "m", "system_message": "s", "options": {"seed": 1, "top_k": 2}, "format": "json", "think": True}
        )
    )
    assert defaults.under(JobSettings()) == defaults
    own = JobSettings(model="own", system_message="", options={"seed": 9}, format="", think=False, in_source=[])
    frozen = defaults.under(own)
    assert (frozen.model, frozen.system_message, frozen.options) == ("own", "", {"seed": 9, "top_k": 2})
    assert (frozen.format, frozen.think, frozen.in_source) == ("", False, [])
    assert defaults.under(JobSettings(model="")).model == "m", "an empty name is none"


def test_what_a_worker_and_the_queue_are_told_is_frozen(tmp_path: Path, settings: Current[Settings]) -> None:
    store = Store(tmp_path, settings)
    [row] = accept(store, "a")
    settings.value = Settings()
    live = LiveJob(row, tmp_path)
    context = live.context()
    assert (context.system_message, context.options) == ("Be short.", {"seed": 1})
    lane = LaneRow(row.key, 0, None, None, None, 1)
    assert str(live.profile_of(lane)) == "old (8192)"
    assert live.priority_of(lane) == "normal"
    store.close()


def test_segments_have_a_copy_for_the_case_that_the_index_is_lost(tmp_path: Path, settings: Current[Settings]) -> None:
    store = Store(tmp_path, settings)
    first, second = accept(store, "a", "b")
    store.write_index([IndexBatch(row, [Entry(1, 0, 1, 0)], True) for row in (first, second)])
    settings.value = Settings()
    [third] = accept(store, "c")
    store.write_index([IndexBatch(third, [Entry(1, 0, 1, 0)], True)])
    store.close()
    for path in tmp_path.glob("state.db*"):
        path.unlink()
    store = Store(tmp_path, settings)
    known = {job: defaults for job, (_, _, defaults) in store.jobs_in_segments().items()}
    assert known == {"a": first.defaults, "b": first.defaults, "c": third.defaults}
    store.close()


def test_a_segment_of_an_earlier_version_is_written_on_and_read(tmp_path: Path) -> None:
    store = Store(tmp_path, in_force())
    first, second = accept(store, "a", "b")
    store.write_index([IndexBatch(first, [Entry(1, 0, 1, 0)], True)])
    store.close()
    [segment] = (tmp_path / "segments").glob("*.db")
    with closing(sqlite3.connect(segment)) as connection:
        connection.executescript("DROP TABLE defaults_of; DROP TABLE job_defaults")
    store = Store(tmp_path, in_force())
    assert {job: known[2] for job, known in store.jobs_in_segments().items()} == {"a": None}
    store.write_index([IndexBatch(second, [Entry(1, 0, 1, 0)], True)])
    assert {job: known[2] for job, known in store.jobs_in_segments().items()} == {"a": None, "b": DEFAULTS}
    store.erase([first])
    assert list(store.jobs_in_segments()) == ["b"]
    store.close()
