"""Commands of owners and administrators to jobs, and jobs as each of them may see them.

Of :mod:`obatchd.operations.jobs` and :mod:`obatchd.operations.submissions`, through the parts that routes ask.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from engine_support import lines, until
from msgspec import UNSET
from operations_support import Desk, desk
from settings_support import reload

from obatchd.control.auth import Caller
from obatchd.control.operations import Submission
from obatchd.documents.answers import Paused, Removed
from obatchd.documents.jobs import JobDocument
from obatchd.errors import ConfigError, ControlError, DropRefused, NotFoundError, ObatchError, SpoolError
from obatchd.intake.limits import OwnerLimits
from obatchd.jobs.model import JobState
from obatchd.jobs.store import StateStore
from obatchd.naming import user_name
from obatchd.ollama import faults
from obatchd.ollama.faults import Fault
from obatchd.spool import claim

ADMIN, ALICE, BOB = Caller(0, True), Caller(1000, False), Caller(1001, False)
NO = Fault(faults.REQUEST, "bad_request", "no")


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    async with desk(monkeypatch, tmp_path) as made:
        yield made


def handed(
    directory: Path, content: bytes | dict[str, bytes], owner: int = 1000, name: str = "drop.jsonl", **settings: Any
) -> Submission:
    """A submission as it comes through the socket."""
    inside = content if isinstance(content, dict) else {name: content}

    def files() -> Iterator[tuple[str, int]]:
        for file, text in inside.items():
            path = directory / "handed"
            path.write_bytes(text)
            descriptor = os.open(path, os.O_RDONLY)
            try:
                yield file, descriptor
            finally:
                os.close(descriptor)

    return Submission(name, "folder" if isinstance(content, dict) else "file", owner, settings, files())


def left(rig: Desk) -> list[str]:
    return sorted(path.name for path in rig.work.layout.jobs.iterdir())


# Seeing.


async def test_jobs_are_listed_newest_first_and_each_owner_sees_their_own(rig: Desk) -> None:
    first, second, third = await rig.run("a"), await rig.take("b"), await rig.take("c", owner=1001)
    jobs = rig.operations.jobs.all
    assert [job.job for job in jobs(ADMIN, None, 10)] == [third.row.job, second.row.job, first.job]
    assert [job.job for job in jobs(ADMIN, None, 2)] == [third.row.job, second.row.job]
    assert [job.job for job in jobs(ALICE, None, 10)] == [second.row.job, first.job]
    assert [job.job for job in jobs(Caller(1001, True), None, 10, mine=True)] == [third.row.job]
    assert [job.job for job in jobs(ALICE, "done", 10)] == [first.job]
    with pytest.raises(ControlError, match="no such job state: gone; use one of running") as wrong:
        jobs(ADMIN, "gone", 10)
    assert wrong.value.code == "usage"


async def test_a_job_in_work_is_shown_as_it_is_now(rig: Desk) -> None:
    live = await rig.take("a", "b")
    await rig.begun(live, 1)
    assert rig.operations.jobs.one(ALICE, live.row.job).in_flight == 1
    assert [job.in_flight for job in rig.operations.jobs.all(ALICE, None, 9)] == [1]


async def test_a_job_is_named_by_the_beginning_of_its_id_by_those_who_may_see_it(rig: Desk) -> None:
    mine, other = await rig.take("a"), await rig.take("b", owner=1001)
    jobs = rig.operations.jobs
    assert jobs.one(ALICE, mine.row.job[:-1]).job == mine.row.job
    assert jobs.one(ADMIN, other.row.job).owner == 1001
    assert jobs.one(ALICE, mine.row.job[:4]).job == mine.row.job  # there is one of theirs only
    with pytest.raises(ControlError, match="several job ids") as ambiguous:
        jobs.one(ADMIN, mine.row.job[:4])
    assert ambiguous.value.code == "ambiguous"
    for job in (other.row.job, "19990101"):
        with pytest.raises(NotFoundError, match=f"no job {job}"):
            jobs.one(ALICE, job)


async def test_one_job_has_its_settings_and_the_causes_of_its_failures_and_a_list_has_not(rig: Desk) -> None:
    live = await rig.take("a", "b")
    await rig.begun(live, 1)
    rig.work.jobs[live.key].blame("timeout", "it took too long", 2)
    one = rig.operations.jobs.one(ALICE, live.row.job)
    assert one.details is not None and one.totals is None
    assert (one.details.settings.model, one.details.failures["timeout"].requests) == ("small", 2)
    assert one.details.failures["timeout"].advice
    assert [job.details for job in rig.operations.jobs.all(ALICE, None, 9)] == [None]


async def test_everybody_sees_their_own_sums_and_administrators_all(rig: Desk) -> None:
    mine, other = await rig.run("a", "b"), await rig.run("c", owner=1001)
    usage = rig.operations.jobs.usage
    month = time.strftime("%Y-%m", time.gmtime(rig.work.store.state.find([mine.job])[0].finished_s))
    assert [(sums.owner, sums.succeeded, sums.month) for sums in await usage(ADMIN, None)] == [
        (1000, 2, month),
        (1001, 1, month),
    ]
    assert [sums.owner for sums in await usage(BOB, None)] == [1001]
    assert [sums.owner for sums in await usage(Caller(1001, True), month, mine=True)] == [1001]
    assert await usage(Caller(0, True), "1999-01") == await usage(Caller(4711, False), None) == []
    assert [sums.name for sums in await usage(ADMIN, None)] == [user_name(1000), user_name(1001)]
    await rig.operations.jobs.remove(ALICE, mine.job)
    assert [sums.owner for sums in await usage(ADMIN, None)] == [1000, 1001]
    assert other.owner == 1001


# Commands.


async def test_a_job_is_paused_and_resumed(rig: Desk) -> None:
    live = await rig.take(*"abcdefghijklmnopqrstuvwxyz")
    document = await rig.operations.jobs.pause(ALICE, live.row.job)
    assert isinstance(document, JobDocument) and document.paused and rig.row(live).paused
    document = await rig.operations.jobs.resume(ALICE, live.row.job)
    assert isinstance(document, JobDocument) and not document.paused and not rig.row(live).paused
    with pytest.raises(NotFoundError):
        await rig.operations.jobs.pause(BOB, live.row.job)


async def test_everything_is_paused_until_it_is_resumed(rig: Desk) -> None:
    assert await rig.operations.host.pause(ADMIN) == Paused(True)
    live = await rig.take("a")
    other = await rig.take("b")
    await rig.engine.committer.settle(5)
    assert rig.held() == [] and rig.work.store.state.get("paused") == "1"
    assert await rig.operations.host.resume(ADMIN) == Paused(False)
    assert rig.work.store.state.get("paused") == ""
    await rig.answer(live)
    await rig.answer(other)


async def test_a_job_says_that_obatchd_is_drained_or_paused(rig: Desk) -> None:
    """Before, it was running at 0 %, and neither its page nor submit --wait said why."""
    live = await rig.take("a")

    def held_up() -> Any:
        [listed] = rig.operations.host.status(ALICE).jobs
        assert listed.held_up == rig.operations.jobs.one(ALICE, live.row.job).held_up
        return listed.held_up

    await rig.operations.host.pause(ADMIN)
    assert held_up() == "all jobs are paused; an administrator ends that with  obatchctl resume"
    await rig.operations.host.drain(ADMIN)
    assert held_up().startswith("obatchd is drained; an administrator")
    words = "obatchd is drained; an administrator ends that with  obatchctl undrain"
    assert await rig.operations.host.resume(ADMIN) == Paused(False, words)
    for command in (rig.operations.jobs.pause, rig.operations.jobs.resume):
        document = await command(ALICE, live.row.job)
    assert document.held_up == words
    await rig.operations.host.undrain(ADMIN)
    assert held_up() is UNSET


async def test_a_job_is_cancelled_and_its_answers_stay(rig: Desk) -> None:
    live = await rig.take("a", "b")
    await rig.answer(live, 2)
    document = await rig.operations.jobs.cancel(ALICE, live.row.job)
    assert (document.state, document.succeeded) == ("cancelling", 1)
    for command in (rig.operations.jobs.pause, rig.operations.jobs.resume):
        with pytest.raises(ControlError, match=r"is over already \(cancelled\)"):
            await command(ALICE, live.row.job)
    assert (await rig.published(live))["cancelled"] == 1
    for command in (rig.operations.jobs.cancel, rig.operations.jobs.pause, rig.operations.jobs.resume):
        with pytest.raises(ControlError, match=r"is over already \(cancelled\)") as over:
            await command(ALICE, live.row.job)
        assert over.value.code == "job_over"


async def test_a_job_that_is_over_is_removed_and_no_other(rig: Desk) -> None:
    live = await rig.take("a")
    with pytest.raises(ControlError, match="obatchctl cancel") as running:
        await rig.operations.jobs.remove(ALICE, live.row.job)
    assert running.value.code == "job_running"
    await rig.answer(live)
    await rig.published(live)
    assert await rig.operations.jobs.remove(ALICE, live.row.job) == Removed(live.row.job)
    assert not live.outbox.exists() and left(rig) == []
    with pytest.raises(NotFoundError):
        rig.operations.jobs.one(ADMIN, live.row.job)


async def test_a_job_that_is_just_over_is_removed_as_soon_as_its_results_are_written(
    rig: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ``summary.json`` is there before the engine lets go of it, and its owner need not know."""
    may_end, real = threading.Event(), StateStore.finish

    def slow(state: StateStore, changes: Any, owed: Any = ()) -> None:
        may_end.wait(10)
        real(state, changes, owed)

    live, other = await rig.take("a"), await rig.take("b")
    monkeypatch.setattr(StateStore, "finish", slow)
    await rig.answer(live)
    await until((live.outbox / "summary.json").exists)
    removing = asyncio.create_task(rig.operations.jobs.remove(ALICE, live.row.job))
    await asyncio.sleep(0)
    assert live.key in rig.work.jobs and not removing.done()
    may_end.set()
    assert await removing == Removed(live.row.job)
    assert not live.outbox.exists() and other.key in rig.work.jobs


async def test_a_job_that_was_cancelled_is_removed_as_soon_as_it_has_ended(rig: Desk) -> None:
    live = await rig.take("a", "b")
    await rig.begun(live, 1)
    await rig.operations.jobs.cancel(ALICE, live.row.job)
    assert await rig.operations.jobs.remove(ALICE, live.row.job) == Removed(live.row.job)
    assert left(rig) == []


async def test_a_job_whose_results_cannot_be_written_is_not_waited_for_for_ever(
    rig: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("obatchd.operations.jobs._ENDING_S", 0.01)
    live = await rig.take("a")
    live.publishing = True
    with pytest.raises(ControlError, match="still being written; try again later") as refused:
        await rig.operations.jobs.remove(ALICE, live.row.job)
    assert refused.value.code == "job_running" and live.key in rig.work.jobs


async def test_a_disk_that_refuses_a_command_is_told_and_nothing_has_changed(
    rig: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    live = await rig.take("a")

    def refuse(*_: Any, **__: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as failing:
        for name in ("update", "set"):
            failing.setattr(StateStore, name, refuse)
        for command, job in ((rig.operations.jobs.pause, live.row.job), (rig.operations.jobs.cancel, live.row.job)):
            with pytest.raises(SpoolError, match="Try again when it works") as refused:
                await command(ALICE, job)
            assert refused.value.code == "disk"
        with pytest.raises(SpoolError):
            await rig.operations.host.pause(ADMIN)
    assert (live.paused, live.ending, rig.work.holds.reasons) == (False, None, frozenset())


# Retries.


async def test_what_did_not_succeed_is_tried_again_as_it_was(rig: Desk) -> None:
    live = await rig.take(
        {"id": "x", "prompt": "a"}, {"id": "y", "prompt": "b"}, "c", model="large", system_message="Be brief.",
        deadline="2099-01-01T00:00:00Z", sample=3,
    )  # fmt: skip
    with pytest.raises(ControlError, match="not over yet"):
        await rig.operations.jobs.retry(ALICE, live.row.job)
    await rig.answer(live, 1)
    await rig.answer(live, 2, 3, fault=NO)
    await rig.published(live)
    reload(rig.work.settings, "system_message", "Be long.")
    document = await rig.operations.jobs.retry(ALICE, live.row.job)
    assert (document.retry_of, document.name, document.requests) == (live.row.job, "drop.retry.jsonl", 2)
    again = rig.work.jobs[max(rig.work.jobs)]
    assert (again.frozen.model, again.frozen.system_message, again.expires_s) == ("large", "Be brief.", None)
    assert again.row.settings.sample is None
    await until(lambda: len(rig.held()) == 2)
    assert sorted(item.raw for item in rig.held()) == [b'{"id": "y", "prompt": "b"}', b'{"prompt": "c"}']
    await rig.answer(again)
    summary = await rig.published(again)
    assert (summary["succeeded"], summary["retry_of"]) == (2, live.row.job)


async def test_a_deadline_after_so_many_seconds_holds_for_the_retry_too(rig: Desk) -> None:
    live = await rig.take("a", deadline=3600)
    await rig.answer(live, fault=NO)
    await rig.published(live)
    await rig.operations.jobs.retry(ALICE, live.row.job)
    [again] = rig.work.jobs.values()
    assert again.expires_s == pytest.approx(again.row.accepted_s + 3600)


async def test_a_retry_needs_a_failure_and_its_prompt(rig: Desk) -> None:
    good, bad = await rig.run("a"), await rig.take("b")
    await rig.answer(bad, fault=NO)
    await rig.published(bad)
    with pytest.raises(ControlError, match="no failed request") as nothing:
        await rig.operations.jobs.retry(ALICE, good.job)
    rig.work.input_of(bad.row).unlink()
    with pytest.raises(ControlError, match="no longer kept") as released:
        await rig.operations.jobs.retry(ALICE, bad.row.job)
    assert (nothing.value.code, released.value.code) == ("nothing", "released")
    assert left(rig) == sorted([good.job, bad.row.job])


async def test_a_job_that_nobody_had_a_model_for_is_tried_with_the_one_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(monkeypatch, tmp_path, model="") as rig:
        live = await rig.take("a")
        await rig.published(live)
        reload(rig.work.settings, "model", "large")
        await rig.operations.jobs.retry(ALICE, live.row.job)
        [again] = rig.work.jobs.values()
        assert again.frozen.model == "large"


# Submissions.


async def test_a_submission_is_a_job_with_its_own_settings(rig: Desk, tmp_path: Path) -> None:
    document = await rig.operations.jobs.submit(handed(tmp_path, lines("a", "b"), model="large"))
    assert (document.name, document.owner, document.model, document.requests) == ("drop.jsonl", 1000, "large", 2)
    [live] = rig.work.jobs.values()
    await rig.answer(live)
    assert (await rig.published(live))["succeeded"] == 2


async def test_a_submitted_folder_is_one_job(rig: Desk, tmp_path: Path) -> None:
    document = await rig.operations.jobs.submit(handed(tmp_path, {"a.txt": b"x", "b.txt": b"y"}, name="folder"))
    assert document.requests == 2


def sent(directory: Path, token: str, *, again: bool = False, owner: int = 1000) -> Submission:
    """One that its client may send more than once."""
    return attrs.evolve(handed(directory, lines("a", "b"), owner), token=token, again=again)


async def test_a_submission_that_is_sent_again_is_the_job_of_the_first_time(rig: Desk, tmp_path: Path) -> None:
    submit = rig.operations.jobs.submit
    first = await submit(sent(tmp_path, "t1"))
    assert (await submit(sent(tmp_path, "t1", again=True))).job == first.job
    [live] = rig.work.jobs.values()
    await rig.answer(live)
    await rig.published(live)
    assert (await submit(sent(tmp_path, "t1", again=True))).state == "done"  # over by now
    # Another token, another owner, and one that was never accepted are jobs of their own.
    others = [
        await submit(sent(tmp_path, "t2", again=True)),
        await submit(sent(tmp_path, "t1", again=True, owner=1001)),
    ]
    assert len({first.job, *(other.job for other in others)}) == 3
    # What is retried has no token: nobody has sent it.
    assert rig.work.store.state.find([first.job])[0].settings.token == "t1"


async def test_both_sendings_at_once_make_one_job(rig: Desk, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    both = sent(tmp_path, "t1"), sent(tmp_path / "x", "t1", again=True)
    first, second = await asyncio.gather(*map(rig.operations.jobs.submit, both))
    assert first.job == second.job and len(rig.work.jobs) == 1


async def test_a_submission_is_known_again_before_it_is_read(
    rig: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a crash between its acceptance and the first look into it: only its directory has its token."""

    async def crash(*_: Any) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(rig.engine.intake, "begin", crash)
    with pytest.raises(RuntimeError):
        await rig.operations.jobs.submit(sent(tmp_path, "t1"))
    [row] = rig.work.store.state.list_jobs([*JobState])
    assert row.settings.token is None
    assert (await rig.operations.jobs.submit(sent(tmp_path, "t1", again=True))).job == row.job


@pytest.mark.parametrize(
    ("content", "settings", "error", "words"),
    [
        (b"", {}, ControlError, "is empty"),
        ({"../a": b"x"}, {}, ControlError, "cannot be a file name"),
        (lines("a"), {"mdoel": "x"}, ConfigError, "mdoel"),
        ({"a.txt": b"x", "job.toml": b"model ="}, {}, DropRefused, r"job\.toml"),
    ],
    ids=["empty", "name", "settings", "refused"],
)
async def test_a_submission_that_cannot_be_a_job_leaves_nothing_behind(
    rig: Desk, tmp_path: Path, content: Any, settings: dict[str, Any], error: type[ObatchError], words: str
) -> None:
    with pytest.raises(error, match=words):
        await rig.operations.jobs.submit(handed(tmp_path, content, **settings))
    assert rig.work.jobs == {} and left(rig) == []


async def test_a_submission_beyond_the_bounds_is_refused(rig: Desk, tmp_path: Path) -> None:
    reload(rig.work.settings, "inbox.max_unpacked_bytes", 1024)
    with pytest.raises(ControlError, match="max_unpacked_bytes"):
        await rig.operations.jobs.submit(handed(tmp_path, lines("x" * 2000)))
    reload(rig.work.settings, "disk.min_free_bytes", 2**62)
    with pytest.raises(ControlError, match="min_free_bytes"):
        await rig.operations.jobs.submit(handed(tmp_path, lines("x")))
    assert left(rig) == []


async def test_nothing_is_taken_while_there_is_trouble_or_an_owner_has_enough(rig: Desk, tmp_path: Path) -> None:
    rig.work.conditions.report("disk", "it is full")
    with pytest.raises(ControlError, match="it is full") as trouble:
        await rig.operations.jobs.submit(handed(tmp_path, lines("a")))
    rig.work.conditions.report("disk", "")
    reload(rig.work.settings, "limits.open_jobs", 1)
    await rig.take("a")
    with pytest.raises(ControlError, match="open_jobs") as limit:
        await rig.operations.jobs.submit(handed(tmp_path, lines("a")))
    assert (trouble.value.code, limit.value.code) == ("trouble", "over_limit")
    assert OwnerLimits(rig.work.settings.value.limits, rig.work.jobs.values()).room(1001, 0) == ""
    await rig.operations.jobs.submit(handed(tmp_path, lines("a"), owner=1001))
    await until(lambda: len(rig.work.jobs) == 2)


async def test_a_copy_that_the_disk_refuses_is_told_and_taken_away(
    rig: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(claim, "commit_submission", refuse)
    with pytest.raises(ControlError, match="it cannot be copied: No space left on device") as refused:
        await rig.operations.jobs.submit(handed(tmp_path, lines("a")))
    assert refused.value.code == "not_copied" and left(rig) == []


@pytest.mark.parametrize(
    ("name", "again"),
    [("drop.jsonl", "drop.retry.jsonl"), ("table.csv.gz", "table.retry.jsonl"), ("folder", "folder.retry.jsonl")],
)
async def test_a_retry_is_called_like_its_first_job(rig: Desk, name: str, again: str) -> None:
    live = await rig.take("a", name=name) if name.endswith("jsonl") else await _failed(rig, name)
    if not live.finished:
        await rig.answer(live, fault=NO)
    await rig.published(live)
    assert (await rig.operations.jobs.retry(ALICE, live.row.job)).name == again


async def _failed(rig: Desk, name: str) -> Any:
    if name == "folder":
        row = rig.accept_folder({"a.txt": b"x"}, name=name)
    else:
        row = rig.accept(gzip.compress(b"prompt\nx\n"), name=name)
    await rig.engine.intake.begin([row])
    return rig.work.jobs[row.key]
