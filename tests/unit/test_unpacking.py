"""Drops that are unpacked by a process of their own, on their way from the inbox to the queue."""

from __future__ import annotations

import contextlib
import errno
import os
import zipfile
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import psutil
import pytest
from container_support import endless_workbook, workbook
from engine_support import Street, lines, street, until
from settings_support import reload

from obatchd import child
from obatchd.child import Child
from obatchd.control.auth import Caller
from obatchd.control.operations import Submission
from obatchd.errors import ControlError, DropRefused
from obatchd.intake import intake, unpacking
from obatchd.jobs.model import JobState
from obatchd.live import conditions
from obatchd.operations.jobs import JobCommands
from obatchd.operations.submissions import Submissions
from obatchd.spool.layout import FreeSpace, Layout


def archive(**files: bytes) -> bytes:
    target = BytesIO()
    with zipfile.ZipFile(target, "w") as packed:
        for name, content in files.items():
            packed.writestr(name.replace("_", "."), content)
    return target.getvalue()


GOOD = archive(a_jsonl=lines("one", "two"), b_txt=b"three")
BAD = archive(a_zip=archive(a_txt=b"x"))


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Street]:
    for place in (intake, conditions):
        monkeypatch.setattr(place, "RETRY_S", 0.005)
    async with street(monkeypatch, tmp_path) as made:
        yield made


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Child]:
    """The processes that unpack, as they are started."""
    children: list[Child] = []
    real = unpacking._Process.started

    def note(process: unpacking._Process, child: Child) -> None:
        children.append(child)
        real(process, child)

    monkeypatch.setattr(unpacking._Process, "started", note)
    return children


async def test_an_archive_runs_as_the_folder_in_it(rig: Street) -> None:
    row = rig.accept(GOOD, name="p.zip")
    await rig.engine.intake.begin([row], 10)
    live = rig.work.jobs[row.key]
    assert (live.requests, live.indexed) == (3, True)
    await rig.answer(live)
    await until(lambda: rig.row(row).state is JobState.DONE)


async def test_one_that_cannot_be_unpacked_lies_in_failed_with_the_reason(rig: Street) -> None:
    row = rig.accept(BAD, name="p.zip")
    await rig.engine.intake.begin([row], 10)
    assert (rig.row(row).state, row.key in rig.work.jobs) == (JobState.REFUSED, False)
    [text] = (rig.work.layout.failed / "1000").glob("*/p.zip.error.txt")
    assert "(nested_archive): a.zip in it is an archive itself; unpack it before you pack" in text.read_text()
    assert (text.parent / "p.zip").read_bytes() == BAD
    assert not rig.work.layout.job_dir(row.job).exists()


async def test_a_drop_that_takes_for_ever_holds_up_archives_of_its_owner_alone(
    rig: Street, started: list[Child]
) -> None:
    slow = rig.accept(endless_workbook(), name="slow.xlsx")
    second, other = rig.accept(GOOD, name="second.zip"), rig.accept(GOOD, name="other.zip", owner=1001)
    plain = rig.accept(lines("plain"))
    await rig.engine.intake.begin([slow])
    await until(lambda: started)
    await rig.engine.intake.begin([second, other, plain])
    assert plain.key in rig.work.jobs
    await until(lambda: other.key in rig.work.jobs)
    assert len(started) == 2 and second.key not in rig.work.jobs
    with pytest.raises(ControlError, match="not read yet"):
        await JobCommands(rig.engine).cancel(Caller(1000, False), slow.job)
    started[0].kill()  # as the kernel does where memory is short
    await until(lambda: len(started) == 3)
    started[2].kill()
    await until(lambda: rig.row(slow).state is JobState.REFUSED)
    assert "died of signal 9, 2 times" in rig.row(slow).notes[0]
    await until(lambda: second.key in rig.work.jobs)


async def test_one_that_waits_counts_for_the_limits_of_its_owner(rig: Street, started: list[Child]) -> None:
    reload(rig.work.settings, "limits.open_jobs", 1)
    slow = rig.accept(endless_workbook(), name="slow.xlsx", owner=os.geteuid())
    await rig.engine.intake.begin([slow])
    (rig.work.layout.root / "a.jsonl").write_bytes(lines("a"))
    (rig.work.layout.root / "a.jsonl").rename(rig.work.layout.inbox / "a.jsonl")
    await until(lambda: rig.engine.intake.report.blocked)
    assert "1 (open_jobs in [limits])" in rig.engine.intake.report.blocked[0].reason


async def test_a_disk_without_room_is_waited_for(
    rig: Street, monkeypatch: pytest.MonkeyPatch, started: list[Child]
) -> None:
    room = rig.work.layout.free().bytes  # the unpacker is started, and sees that twice as much is to stay free
    just_enough = FreeSpace(2 * room + 1, -1, False)
    monkeypatch.setattr(Layout, "free", lambda layout, *, doubtful=False: just_enough)
    reload(rig.work.settings, "disk.min_free_bytes", room)
    row = rig.accept(GOOD, name="p.zip")
    await rig.engine.intake.begin([row])
    await until(lambda: row.key in rig.work.conditions.of_jobs)
    assert "cannot be unpacked" in rig.work.conditions.of_jobs[row.key]
    await until(lambda: "unpacking needs at least" in rig.work.conditions.of_jobs[row.key])
    assert len(started) == 1
    assert not (rig.work.layout.job_dir(row.job) / "unpacked").exists()
    reload(rig.work.settings, "disk.min_free_bytes", 0)
    await until(lambda: row.key in rig.work.jobs)
    assert row.key not in rig.work.conditions.of_jobs


async def test_a_process_that_cannot_be_started_is_not_the_fault_of_the_drop(
    rig: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    row = rig.accept(GOOD, name="p.zip")
    with monkeypatch.context() as patch:
        patch.setattr(child, "_start", refuse)
        await rig.engine.intake.begin([row])
        await until(lambda: "Too many open files" in rig.work.conditions.of_jobs.get(row.key, ""))
    await until(lambda: row.key in rig.work.jobs)
    assert row.key not in rig.work.conditions.of_jobs


async def test_a_stop_leaves_a_drop_that_the_next_start_unpacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[Child]
) -> None:
    async with street(monkeypatch, tmp_path) as first:
        row = first.accept(endless_workbook(), name="slow.xlsx")
        job = tmp_path / "spool" / "work" / "jobs" / row.job
        await first.engine.intake.begin([row])
        await until(lambda: started and (job / "unpacked").exists())
    await until(lambda: not psutil.pid_exists(started[0].pid) or is_over(started[0].pid))
    (job / "input").write_bytes(workbook(["prompt"], ["hi"]))  # so that this test ends
    assert (job / "unpacked").exists() and not (job / "unpacked.json").exists()
    async with street(monkeypatch, tmp_path) as second:
        await until(lambda: row.key in second.work.jobs)
        await second.answer(second.work.jobs[row.key])
        await until(lambda: second.row(row).state is JobState.DONE)


def is_over(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


async def test_a_submission_that_cannot_be_unpacked_is_refused_at_once(rig: Street) -> None:
    files = iter([("p.zip", os.memfd_create("p"))])
    descriptor = next(files)[1]
    os.write(descriptor, BAD)
    os.lseek(descriptor, 0, os.SEEK_SET)
    submission = Submission("p.zip", "file", 1000, {}, iter([("p.zip", descriptor)]))
    with pytest.raises(DropRefused, match=r"a\.zip in it is an archive itself"):
        await Submissions(rig.engine).submit(submission)
    os.close(descriptor)


async def test_notes_and_settings_of_an_archive_are_those_of_the_folder(rig: Street) -> None:
    content = {"job.toml": b'model = "large"', "README.md": b"About", "a.jsonl": lines("x")}
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive_:
        for name, inside in content.items():
            archive_.writestr(f"set/{name}", inside)
    jobs = [rig.accept(packed.getvalue(), name="set.zip"), rig.accept_folder(content, name="set")]
    await rig.engine.intake.begin(jobs, 10)
    lives = [rig.work.jobs[row.key] for row in jobs]
    assert [live.row.settings.model for live in lives] == ["large", "large"]
    assert [live.row.notes for live in lives] == [
        ["README.md is taken for a description of the drop, not for a prompt; if it is one, give it another name"]
    ] * 2
