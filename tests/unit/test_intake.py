"""Drops on their way from the inbox to their index, on a disk that does not always take them."""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_support import Street, lines, street, until
from settings_support import reload
from spool_support import Disk

from obatchd.errors import SpoolError
from obatchd.intake import intake as module
from obatchd.intake.indexing import DropReader
from obatchd.jobs.model import JobState
from obatchd.jobs.store import JobRow, Store
from obatchd.live import conditions
from obatchd.spool import claim

ME = os.geteuid()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (module, conditions):
        monkeypatch.setattr(place, "RETRY_S", 0.005)


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Street]:
    async with street(monkeypatch, tmp_path) as made:
        yield made


def drop(rig: Street, content: bytes = lines("a"), name: str = "drop.jsonl") -> Path:
    """A file that is renamed into the inbox, as it should be."""
    outside, inside = rig.work.layout.root / name, rig.work.layout.inbox / name
    outside.write_bytes(content)
    outside.rename(inside)
    return inside


def rows(rig: Street) -> list[JobRow]:
    return rig.work.store.state.list_jobs(list(JobState))


def refusals(rig: Street, owner: int = ME) -> dict[str, str]:
    """The reasons beside refused drops, by their name."""
    found = (rig.work.layout.failed / str(owner)).glob("*/*.error.txt")
    return {path.name.removesuffix(".error.txt"): path.read_text() for path in found}


def refusing(monkeypatch: pytest.MonkeyPatch, holder: Any, name: str, times: int, error: Exception) -> list[int]:
    """Let a step fail so many times; the list grows with each failure."""
    real: Callable[..., Any] = getattr(holder, name)
    failed: list[int] = []

    def step(*arguments: Any, **keywords: Any) -> Any:
        if len(failed) < times:
            failed.append(1)
            raise error
        return real(*arguments, **keywords)

    monkeypatch.setattr(holder, name, step)
    return failed


async def test_drops_beyond_one_batch_are_taken_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with street(monkeypatch, tmp_path, inbox={"rescan_s": 60, "claim_batch": 2}) as rig:
        rig.work.conditions.report("test", "all drops shall be there first")
        for number in range(5):
            drop(rig, name=f"drop{number}.jsonl")
        await until(lambda: len(rig.engine.intake.report.ready) == 2)
        assert rig.engine.intake.held_back == 2  # of one batch
        rig.work.conditions.report("test", "")
        await until(lambda: len(rig.work.jobs) == 5)
        assert rig.engine.intake.held_back == 0
        assert sorted(row.name for row in rows(rig)) == [b"drop%d.jsonl" % number for number in range(5)]


async def test_a_folder_is_one_job_of_its_files(rig: Street) -> None:
    outside = rig.work.layout.root / "folder"
    outside.mkdir()
    for name in ("a.txt", "b.txt"):
        (outside / name).write_text(name)
    outside.rename(rig.work.layout.inbox / "folder")
    await until(lambda: rig.work.jobs)
    [live] = rig.work.jobs.values()
    assert (live.row.kind, live.requests, live.indexed) == ("folder", 2, True)


async def test_what_is_no_drop_is_refused_with_the_reason(rig: Street) -> None:
    path = drop(rig, name="picture.png")
    await until(lambda: not path.exists())
    await until(lambda: rig.engine.intake.refused == 1)
    assert "none of our formats" in refusals(rig)["picture.png"]
    assert rows(rig) == []


async def test_a_refusal_that_cannot_be_carried_out_blocks_the_drop_alone(
    rig: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.rename

    def rename(source: Any, target: Any) -> None:
        if os.fspath(source).endswith("picture.png"):
            raise PermissionError(1, "Operation not permitted")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    (rig.work.layout.root / "picture.png").write_bytes(b"x")
    os.replace(rig.work.layout.root / "picture.png", rig.work.layout.inbox / "picture.png")
    await until(lambda: rig.engine.intake.report.blocked)
    [blocked] = rig.engine.intake.report.blocked
    assert (blocked.name, "sticky bit" in blocked.reason, blocked.owner) == ("picture.png", True, ME)
    assert rig.engine.intake.refused == 0
    drop(rig)
    await until(lambda: rig.work.jobs)


async def test_a_drop_that_cannot_be_renamed_is_shown_as_blocked_and_offered_again(
    rig: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.rename
    with monkeypatch.context() as failing:

        def rename(source: Any, target: Any) -> None:
            if "inbox" in os.fspath(source):
                raise PermissionError(1, "Operation not permitted")
            real(source, target)

        failing.setattr(os, "rename", rename)
        (rig.work.layout.inbox / "drop.jsonl").write_bytes(lines("a"))
        await until(lambda: rig.engine.intake.report.blocked)
        assert rows(rig) == []
    await until(lambda: rig.work.jobs and not rig.engine.intake.report.blocked)


@pytest.mark.parametrize("kind", ["file", "link"])
async def test_that_a_drop_cannot_be_taken_is_logged_once_however_often_it_is_tried(
    rig: Street, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """A file that cannot be claimed, and a link that cannot be moved to failed/."""
    real, tried = os.rename, []

    def rename(source: Any, target: Any) -> None:
        if "stuck" in os.fspath(source):
            tried.append(source)
            raise PermissionError(1, "Operation not permitted")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    stuck = rig.work.layout.inbox / "stuck.jsonl"
    if kind == "file":
        stuck.write_bytes(lines("a"))
    else:
        stuck.symlink_to("/etc/passwd")
    await until(lambda: len(tried) > 4)
    assert caplog.text.count("event=drop_blocked") == 1
    [blocked] = rig.engine.intake.report.blocked
    assert "Operation not permitted" in blocked.reason


async def test_an_accepted_drop_that_cannot_be_run_goes_to_failed(rig: Street) -> None:
    row = rig.accept_folder({"a.txt": b"why?", "job.toml": b"model = \n"}, name="folder", owner=1000)
    good = rig.accept(lines("a"))
    await rig.engine.intake.begin([row, good])
    assert list(rig.work.jobs) == [good.key]
    after = rig.row(row)
    assert (after.state, after.finished_s is not None) == (JobState.REFUSED, True)
    assert "job.toml" in after.notes[0] and "job.toml" in refusals(rig, 1000)["folder"]
    assert rig.engine.intake.refused == 1
    assert not rig.work.layout.job_dir(row.job).exists()


async def test_a_drop_whose_input_is_gone_is_a_refused_one(rig: Street) -> None:
    row = rig.accept(lines("a"))
    (rig.work.layout.job_dir(row.job) / "input").unlink()
    await rig.engine.intake.begin([row])
    after = rig.row(row)
    assert (after.state, after.notes) == (JobState.REFUSED, ["it had been moved to failed/ before"])
    assert rig.work.jobs == {}


async def test_the_same_content_twice_is_refused_where_that_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path, inbox={"dedupe": "reject"}) as rig:
        await rig.run("a")
        row = rig.accept(lines("a"))
        await rig.engine.intake.begin([row])
        assert rig.row(row).state is JobState.REFUSED


async def test_the_digest_of_a_large_drop_comes_with_its_end(rig: Street) -> None:
    content = lines(*("x" * 20_000 for _ in range(70)))
    first, second = rig.accept(content), rig.accept(content)
    for row in (first, second):
        await rig.engine.intake.begin([row])
        await until(lambda row=row: rig.work.jobs[row.key].indexed)
    assert rig.row(first).digest == rig.row(second).digest
    assert rig.row(first).digest is not None
    [note] = rig.row(second).notes
    assert note.startswith(f"duplicate_of {first.job}: an earlier job of yours had exactly these prompts and settings")
    assert rig.row(first).notes == []


async def test_an_owner_with_enough_open_work_waits_in_the_inbox(rig: Street) -> None:
    reload(rig.work.settings, "limits.open_jobs", 1)
    path = drop(rig)
    await until(lambda: rig.work.jobs)
    [live] = rig.work.jobs.values()
    path = drop(rig, name="later.jsonl")
    await until(lambda: rig.engine.intake.report.blocked)
    assert "open_jobs" in rig.engine.intake.report.blocked[0].reason and path.exists()
    assert rig.engine.intake.report.limited == 1
    await rig.answer(live)
    await rig.published(live)
    await until(lambda: rig.work.jobs)
    assert not path.exists()


async def test_an_inbox_that_is_gone_is_told_once_and_shown_until_it_is_back(
    rig: Street, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = rig.work.layout.inbox
    inbox.rmdir()
    for _ in range(3):
        before = rig.engine.intake.report
        rig.engine.intake.settings_changed()
        await until(lambda before=before: rig.engine.intake.report is not before)
    assert "put it back" in rig.engine.intake.report.problem
    assert caplog.text.count("inbox_problem") == 1
    inbox.mkdir()
    drop(rig)
    await until(lambda: rig.work.jobs)
    assert rig.engine.intake.report.problem == ""


@pytest.mark.parametrize(("count", "whole"), [(2, 0), (6, 1)])
async def test_unpacked_requests_are_durable_before_the_index_that_refers_to_them(
    rig: Street, monkeypatch: pytest.MonkeyPatch, count: int, whole: int
) -> None:
    given = [rig.accept(gzip.compress(lines(f"a{n}")), name="drop.jsonl.gz") for n in range(count)]
    disk, real, lost = Disk(monkeypatch), Store.write_index, []

    def write_index(store: Store, batches: Sequence[Any]) -> Any:
        unpacked = [rig.work.input_of(batch.job).with_name("requests.jsonl") for batch in batches]
        lost.extend(disk.missing(*unpacked, *(path.parent for path in unpacked)))
        return real(store, batches)

    monkeypatch.setattr(Store, "write_index", write_index)
    await rig.engine.intake.begin(given)
    assert lost == [] and disk.whole == whole
    assert len(rig.work.jobs) == count


# A disk that refuses.


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), SpoolError("no more inodes")])
async def test_claims_that_the_disk_refuses_are_told_and_tried_again(
    rig: Street, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    refused = refusing(monkeypatch, claim, "claim", 2, error)
    seen: list[str] = []

    class Watcher:
        """Notes the condition for which dispatch is held."""

        def held(self, reason: str) -> None:
            seen.append(f"{reason}: {rig.work.conditions.of_all.get(reason)}")

        def released(self, reason: str) -> None:
            pass

    rig.work.holds.listen(Watcher())
    drop(rig)
    await until(lambda: rig.work.jobs)
    assert len(refused) == 2 and seen[0].startswith("intake: drops cannot be taken: ")
    assert rig.work.conditions.of_all == {} and len(rows(rig)) == 1


async def test_a_drop_whose_row_cannot_be_read_after_its_claim_is_begun_by_the_next_look(
    rig: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = refusing(monkeypatch, rig.work.store.state, "find", 1, sqlite3.OperationalError("disk I/O error"))
    drop(rig)
    await until(lambda: rig.work.jobs)
    assert refused and len(rows(rig)) == 1


async def test_jobs_that_cannot_be_indexed_begin_later_each_by_itself(
    rig: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    real = Store.write_index

    def write_index(store: Store, batches: Sequence[Any]) -> Any:
        given.append(len(batches))
        if len(given) <= 2:
            raise OSError(28, "No space left on device")
        return real(store, batches)

    monkeypatch.setattr(Store, "write_index", write_index)
    first, second = rig.accept(lines("a")), rig.accept(lines("b"))
    await rig.engine.intake.begin([first, second])
    words = rig.work.conditions.of_jobs
    assert [f"job {row.job} cannot be read" in words[row.key] for row in (first, second)] == [True, True]
    await until(lambda: len(rig.work.jobs) == 2)
    assert given[0] == 2 and set(given[1:]) == {1}
    assert rig.work.conditions.of_jobs == {}
    for live in list(rig.work.jobs.values()):
        assert (live.requests, live.indexed) == (1, True)


async def test_a_reading_that_the_disk_breaks_off_loses_and_doubles_nothing(
    rig: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Store.write_index, 0

    def write_index(store: Store, batches: Sequence[Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(28, "No space left on device")
        return real(store, batches)

    monkeypatch.setattr(Store, "write_index", write_index)
    row = rig.accept(lines(*({"prompt": "x" * 400, "modle": "m"} for _ in range(1500))))
    await rig.engine.intake.begin([row])
    live = rig.work.jobs[row.key]
    await until(lambda: live.indexed)
    assert live.requests == 1500 and rig.work.conditions.of_jobs == {}
    [note] = live.row.notes
    assert '"modle" in 1,500 requests' in note
    assert [found.requests for found in rig.work.store.of(row).lanes(row.key)] == [1500]


async def test_a_packed_drop_waits_for_space_and_is_not_refused(rig: Street) -> None:
    packed = gzip.compress(json.dumps([{"prompt": "a"}, {"prompt": "b"}]).encode())
    reload(rig.work.settings, "disk.min_free_bytes", 2**62)
    row = rig.accept(packed, name="drop.json.gz")
    await rig.engine.intake.begin([row])
    assert "unpacking needs" in rig.work.conditions.of_jobs[row.key]
    reload(rig.work.settings, "disk.min_free_bytes", 0)
    await until(lambda: rig.work.jobs)
    assert rig.work.jobs[row.key].requests == 2


async def test_a_drop_changed_beyond_reading_ends_with_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        row = rig.accept(lines(*"abcdefgh"))
        reader = DropReader(row, rig.work.layout, rig.work.settings.value, lambda size_bytes: None)
        rig.work.store.state.update(row.key, **reader.prepare(rig.work.store))
        rig.work.store.write_index([reader.batch(4)])
    (tmp_path / "spool/work/jobs" / row.job / "input").write_bytes(b"")
    async with street(monkeypatch, tmp_path) as rig:
        summary = await rig.published(row)
        assert (summary["requests"], summary["failed"]) == (5, 5)
        found = {line: json.loads(record) for line, _, record in rig.work.store.results(row)}
        assert [found[line]["code"] for line in range(1, 6)] == ["input_changed"] * 5
        assert "cannot be read on" in found[5]["message"] and "after the drop was accepted" in found[4]["message"]
