"""What people look at again and again: all at a glance, causes, answers a part at a time, and what was."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from engine_support import until
from history_support import UUID, make_history
from operations_support import Desk, desk

from obatchd.control.auth import Caller
from obatchd.control.operations import AnswersAsked, SpanAsked
from obatchd.documents.gpus import GpuEvent
from obatchd.documents.jobs import JobAnswers
from obatchd.documents.status import Overview
from obatchd.errors import ControlError, NotFoundError
from obatchd.gpus.columns import Grid
from obatchd.gpus.history import History, Work
from obatchd.jobs.model import JobState
from obatchd.live.job import LiveJob
from obatchd.naming import JobFilter
from obatchd.ollama import faults
from obatchd.ollama.faults import Fault
from obatchd.operations.reads.history import WorkLooks

ADMIN, ALICE, BOB = Caller(0, True), Caller(1000, False), Caller(1001, False)
NO = Fault(faults.REQUEST, "bad_request", "no")
DAY_S = 86_400


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    async with desk(monkeypatch, tmp_path) as made:
        yield made


def look(rig: Desk, caller: Caller = ALICE, jobs: int = 100, *, mine: bool = False, fresh: bool = True) -> Overview:
    """The overview, read as its type says."""
    found = rig.operations.reads.overviews.look(caller, jobs, mine=mine, fresh=fresh)
    read = msgspec.json.decode(found.body, type=Overview)
    assert read.revision == found.revision
    return read


# All at a glance.


async def test_everybody_sees_their_own_jobs_at_a_glance_and_administrators_all(rig: Desk) -> None:
    mine, over, other = await rig.take("a"), await rig.run("b"), await rig.take("c", owner=1001)
    seen = look(rig)
    assert [job.job for job in seen.jobs] == [over.job, mine.row.job] and not seen.administrator
    assert [job.state for job in seen.jobs] == ["done", "running"] and seen.next is None
    assert seen.status.jobs == [] and [server.id for server in seen.status.servers] == ["gpu0", "gpu1"]
    assert [job.job for job in look(rig, ADMIN).jobs] == [other.row.job, over.job, mine.row.job]
    assert [job.job for job in look(rig, Caller(1001, True), mine=True).jobs] == [other.row.job]
    one = {job.job: job for job in rig.operations.jobs.all(ADMIN, None, 9)}
    assert {job.job: job for job in look(rig, ADMIN).jobs} == one


async def test_jobs_in_work_are_seen_however_old_and_the_rest_by_the_cursor(rig: Desk) -> None:
    old = await rig.take("a")
    over = [await rig.run(str(number)) for number in range(4)]
    seen = look(rig, jobs=2)
    assert [job.job for job in seen.jobs] == [over[3].job, over[2].job, old.row.job] and seen.next == over[2].job
    older = rig.operations.jobs.all(ALICE, None, 9, only=JobFilter(after=seen.next))
    assert [job.job for job in older] == [over[1].job, over[0].job, old.row.job]


async def test_the_revision_is_another_one_when_anything_is(rig: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    live = await rig.take("a", "b")
    await rig.begun(live)
    free = rig.engine.conditions.free
    revisions = [look(rig).revision]
    assert look(rig).revision == revisions[0]
    rig.engine.conditions.free = (free[0] // 2**26 * 2**26 + 5, free[1], free[2])
    revisions.append(look(rig).revision)
    rig.engine.conditions.free = (free[0] // 2**26 * 2**26 + 9, free[1], free[2])
    assert look(rig).revision == revisions[-1]  # a line in a log is no news
    await rig.answer(live, 1)
    revisions.append(look(rig).revision)
    await rig.operations.jobs.pause(ALICE, live.row.job)
    revisions.append(look(rig).revision)
    rig.read(gpu0={"temp_c": 71})
    revisions.append(look(rig).revision)
    rig.policy.monitor.lend(rig.gpus[0].uuid, time.time() + 60)
    revisions.append(look(rig).revision)
    assert len(set(revisions[1:])) == len(revisions) - 1
    assert look(rig, BOB).revision not in revisions


async def test_a_second_look_at_once_is_the_first_one_unless_a_fresh_one_is_asked_for(rig: Desk) -> None:
    before = look(rig)
    job = (await rig.take("a")).row.job
    assert look(rig, fresh=False).revision == before.revision
    assert [one.job for one in look(rig).jobs] == [job] == [one.job for one in look(rig, fresh=False).jobs]


async def test_what_nobody_changed_is_put_together_once(rig: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five pages with a thousand jobs each asked for, read and wrote a megabyte every two seconds."""
    overviews, state, reads = rig.operations.reads.overviews, rig.work.store.state, [0]
    over = [await rig.run(str(number)) for number in range(3)]
    newest = state.newest

    def counted(owner: int | None, limit: int) -> Any:
        reads[0] += 1
        return newest(owner, limit)

    monkeypatch.setattr(state, "newest", counted)
    before = overviews.look(ADMIN, 100, mine=False, fresh=True)
    assert overviews.look(ADMIN, 100, mine=False, fresh=True) is before and reads == [1]
    assert overviews.look(ALICE, 100, mine=False, fresh=True) is not before and reads == [2]
    await rig.operations.jobs.remove(ALICE, over[1].job)
    assert [job.job for job in look(rig, ADMIN).jobs] == [over[2].job, over[0].job]
    assert [job.job for job in look(rig).jobs] == [over[2].job, over[0].job] and reads == [4]


async def test_a_note_that_comes_when_a_job_is_over_is_seen(rig: Desk) -> None:
    job = await rig.run("a")
    assert look(rig).jobs[0].notes == []
    rig.work.store.state.update(job.key, notes=["mail did not arrive"])
    assert look(rig).jobs[0].notes == ["mail did not arrive"]


async def test_a_cursor_goes_through_all_jobs_also_when_one_is_erased(rig: Desk) -> None:
    jobs = [(await rig.run(str(number))).job for number in range(5)]
    found: list[str] = []
    while part := rig.operations.jobs.all(ALICE, None, 2, only=JobFilter(after=found[-1] if found else None)):
        found += [job.job for job in part]
        await rig.operations.jobs.remove(ALICE, part[-1].job)
    assert found == jobs[::-1]


# Why there is no answer.


async def test_causes_are_counted_with_their_first_line_and_survive_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(monkeypatch, tmp_path, dispatch={"max_attempts": 1}) as rig:
        live = await rig.take("a", {"nope": 1}, "c", "d", {"prompt": 5}, "f")
        await rig.answer(live, 4, 3, fault=NO)
        await rig.answer(live, 1)
        before = await rig.operations.jobs.failures(ALICE, live.row.job)
        assert [(cause.code, cause.requests, cause.line) for cause in before.failures] == [
            ("bad_request", 2, 3), ("missing_prompt", 1, 2), ("wrong_type", 1, 5)
        ]  # fmt: skip
        assert before.failures[0].example == "no" and all(cause.advice for cause in before.failures)
        assert (before.state, before.requests, before.succeeded, before.failed) == ("running", 6, 1, 4)
        with pytest.raises(NotFoundError):
            await rig.operations.jobs.failures(BOB, live.row.job)
        shown = rig.operations.jobs.one(ALICE, live.row.job).details
        assert shown is not None
    async with desk(monkeypatch, tmp_path) as rig:
        assert await rig.operations.jobs.failures(ALICE, live.row.job) == before
        again = rig.operations.jobs.one(ALICE, live.row.job).details
        assert again is not None and again.failures == shown.failures
        taken = rig.work.jobs[live.key]
        await rig.operations.jobs.cancel(ALICE, live.row.job)
        await rig.published(taken)
        over = await rig.operations.jobs.failures(ALICE, live.row.job)
        assert [(cause.code, cause.requests, cause.line) for cause in over.failures] == [
            ("bad_request", 2, 3), ("cancelled", 1, 6), ("missing_prompt", 1, 2), ("wrong_type", 1, 5)
        ]  # fmt: skip
        assert (over.state, over.cancelled) == ("done", 1)


async def test_causes_that_an_earlier_version_has_not_counted_are_read_from_the_results(rig: Desk) -> None:
    live = await rig.take({"nope": 1}, "b", "c")
    await rig.answer(live, 2, fault=NO)
    with closing(sqlite3.connect(rig.work.store.of(live.row).path)) as database, database:
        database.execute("DELETE FROM failures WHERE code = 'bad_request'")
    found = await rig.operations.jobs.failures(ALICE, live.row.job)
    assert [(cause.code, cause.line) for cause in found.failures] == [("bad_request", 2), ("missing_prompt", 1)]


async def test_nothing_of_causes_is_left_when_a_job_is_erased(rig: Desk) -> None:
    kept, gone = await rig.run("a", {"nope": "secret word"}), await rig.run("b", {"nope": "secret word"})
    assert kept.segment == gone.segment
    await rig.operations.jobs.remove(ALICE, gone.job)
    with closing(sqlite3.connect(rig.work.store.of(kept).path)) as database:
        assert database.execute("SELECT DISTINCT job FROM failures").fetchall() == [(kept.key,)]


# Answers beside their prompts.


async def part(rig: Desk, job: str, caller: Caller = ALICE, **asked: Any) -> JobAnswers:
    return await rig.operations.reads.answers.part(caller, job, AnswersAsked(**asked))


async def mixed(rig: Desk) -> LiveJob:
    """A running job: lines 1, 3 and 5 answered, 2 no request, 4 failed, 6 open."""
    live = await rig.take("a", {"nope": 1}, {"prompt": "c", "id": "mine"}, "d", "e", "f")
    await rig.answer(live, 1, 3, 5, text="<b>\u202e\x00yes</b>")
    await rig.answer(live, 4, fault=NO)
    return live


async def test_answers_of_a_running_job_stand_beside_their_prompts(rig: Desk) -> None:
    live = await mixed(rig)
    found = await part(rig, live.row.job)
    assert [(one.at, one.line, one.outcome, one.prompt) for one in found.results] == [
        (1, 1, "succeeded", "a"), (2, 2, "failed", '{"nope": 1}'), (3, 3, "succeeded", "c"), (4, 4, "failed", "d"),
        (5, 5, "succeeded", "e"),
    ]  # fmt: skip
    assert [one.raw for one in found.results if one.raw] == [True] and found.next is None
    assert (found.results[2].id, found.results[2].record["response"]) == ("mine", "<b>\u202e\x00yes</b>")
    assert found.results[3].advice and found.results[3].record["code"] == "bad_request"
    with pytest.raises(NotFoundError):
        await part(rig, live.row.job, BOB)
    assert (await part(rig, live.row.job, ADMIN)).results == found.results


async def test_parts_of_any_size_have_each_answer_once(rig: Desk) -> None:
    live = await mixed(rig)
    for limit in (1, 2, 3, 5, 6):
        places, after = list[int](), 0
        while True:
            found = await part(rig, live.row.job, after=after, limit=limit)
            places += [one.at for one in found.results]
            assert len(found.results) <= limit
            if found.next is None:
                break
            after = found.next
        assert places == [1, 2, 3, 4, 5]
    assert [one.at for one in (await part(rig, live.row.job, outcome="failed")).results] == [2, 4]
    assert [one.at for one in (await part(rig, live.row.job, outcome="succeeded", after=1)).results] == [3, 5]
    assert [one.at for one in (await part(rig, live.row.job, code="missing_prompt")).results] == [2]
    assert (await part(rig, live.row.job, outcome="expired")).results == []


async def test_a_part_ends_early_where_answers_are_large(rig: Desk) -> None:
    live = await rig.take("a", "b", "c")
    await rig.answer(live, text="x" * 3_000_000)
    await rig.published(live)
    found = await part(rig, live.row.job)
    assert [one.at for one in found.results] == [1] and found.next == 1
    assert len(found.results[0].record["response"]) == 3_000_000


async def test_it_is_told_to_which_place_nothing_is_missing(rig: Desk) -> None:
    live = await rig.take("a", "b", "c", "d")
    await rig.answer(live, 1, 2, 4)
    assert [(await part(rig, live.row.job, after=after, settled=True)).settled for after in (0, 2)] == [2, 2]
    await rig.answer(live, 3)
    await rig.published(live)
    done = (await part(rig, live.row.job, settled=True)).settled
    assert isinstance(done, int) and done > 4


async def test_answers_are_read_from_the_outbox_when_input_and_store_are_given_up(rig: Desk) -> None:
    live = await mixed(rig)
    await rig.answer(live)
    await rig.published(live)
    row = rig.row(live)
    before = await part(rig, row.job)
    rig.work.store.release(row)
    rig.work.store.of(row).erase([row.key])
    rig.work.request_file(row).unlink()
    after = await part(rig, row.job)
    # The fields of the drop that obatchd did not use stand in the outbox alone.
    assert [one.record for one in after.results] == [
        one.record | ({"input": {"nope": 1}} if one.line == 2 else {}) for one in before.results
    ]
    assert [one.prompt for one in after.results] == ["a", None, "c", "d", "e", "f"]
    assert [one.at for one in (await part(rig, row.job, after=2, limit=2, outcome="succeeded")).results] == [3, 5]
    (rig.work.outbox_of(row) / "summary.json").unlink()
    with pytest.raises(ControlError, match="not kept any more") as gone:
        await part(rig, row.job)
    assert gone.value.code == "results_gone"


async def test_several_answers_to_a_prompt_are_told_apart(rig: Desk) -> None:
    live = await rig.take("a", repeat=2)
    await rig.answer(live)
    await rig.published(live)
    found = await part(rig, live.row.job)
    assert [(one.line, one.repeat) for one in found.results] == [(1, 1), (1, 2)]
    assert [one.repeat for one in (await part(rig, live.row.job, after=found.results[0].at)).results] == [2]


async def test_a_refused_drop_has_no_answers_and_no_causes(rig: Desk) -> None:
    row = rig.accept(b"\x00\x01\x02 neither text nor anything")
    await rig.engine.intake.begin([row])
    await until(lambda: rig.row(row).state is JobState.REFUSED)
    assert (await part(rig, row.job)).results == []
    assert (await rig.operations.jobs.failures(ALICE, row.job)).failures == []


# What was.


def columns(path: Path, span_s: float, points: int = 720) -> tuple[Grid, History]:
    history = History(path)
    now_s = time.time()
    return history.grid(now_s - span_s, now_s, points), history


@pytest.mark.parametrize(
    ("span_s", "points", "step_s"),
    [
        (3600, 720, 60),
        (DAY_S, 720, 120),
        (2 * DAY_S, 720, 300),
        (90 * DAY_S, 720, 10_800),
        (DAY_S, 48, 1800),
        (90 * DAY_S, 36, 5 * DAY_S),
    ],
)
def test_the_step_is_the_finest_that_fits(tmp_path: Path, span_s: float, points: int, step_s: int) -> None:
    grid, history = columns(tmp_path / "history.db", span_s, points)
    assert grid.step_s == step_s and grid.steps <= points + 1
    assert grid.at_s[0] <= time.time() - span_s < grid.at_s[1] and grid.at_s[-1] <= time.time() < grid.until_s + 1
    history.close()


def test_what_is_kept_by_the_hour_is_not_asked_for_by_the_minute(tmp_path: Path) -> None:
    history, now_s = History(tmp_path / "history.db"), time.time()
    assert history.grid(now_s - 3 * DAY_S, now_s - 3 * DAY_S + 3600, 720).step_s == 3600
    history.close()


def test_columns_have_what_was_and_holes_where_nothing_was(tmp_path: Path) -> None:
    make_history(tmp_path / "history.db", 2, time.time())
    grid, history = columns(tmp_path / "history.db", DAY_S)
    first, second = history.cards(grid)
    assert (first.uuid, first.serial, first.slot) == (UUID(0), "SIM0000000000", "1")
    assert all(len(values) == grid.steps for values in first.columns.values())
    with closing(sqlite3.connect(tmp_path / "history.db")) as database:
        query = "SELECT avg(power_w), max(temp_max_c) FROM samples WHERE uuid = ? AND at_s >= ? AND at_s < ?"
        for place in (3, 300, 600):
            begin_s = grid.at_s[place]
            power_w, hottest_c = database.execute(query, (UUID(0), begin_s, begin_s + grid.step_s)).fetchone()
            assert first.columns["power_w"][place] == pytest.approx(power_w, abs=0.1)
            assert first.columns["temp_max_c"][place] == pytest.approx(hottest_c, abs=0.1)
    holes = [place for place, value in enumerate(second.columns["temp_c"][:-1]) if value is None]
    assert holes == [place for place, at_s in enumerate(grid.at_s[:-1]) if at_s // DAY_S % 2]
    months, again = columns(tmp_path / "history.db", 90 * DAY_S)
    assert sum(value is not None for value in again.cards(months)[0].columns["temp_c"]) >= months.steps - 2
    history.close()
    again.close()


def test_work_is_a_rate_over_the_time_that_was_watched_and_a_server_without_any_did_nothing(tmp_path: Path) -> None:
    history, minute_s = History(tmp_path / "history.db"), int(time.time()) // 60 * 60 - 600
    for look in range(12):  # two minutes, the second without work
        busy = look < 6
        whole = Work("", 10.0, 50.0 * busy, 2.0 * busy, busy, 100 - look, 4 * busy, 0)
        each = [Work("gpu0", 10.0, 50.0, 0, 0, 0, 4, 0)] if busy else []
        history.worked(minute_s + 10 * look, [whole, *each])
    work = history.work(Grid(minute_s - 60, 60, 4))
    assert work[""]["tokens_per_s"] == [None, 5.0, 0.0, None]
    assert work[""]["requests_per_s"] == [None, 0.2, 0.0, None] and work[""]["failed_per_s"][1] == 0.1
    assert work[""]["queued"] == [None, 97.5, 91.5, None] and work[""]["waiting_people"] == [None, 0.0, 0.0, None]
    assert work["gpu0"]["tokens_per_s"] == [None, 5.0, 0.0, None]
    assert work["gpu0"]["in_flight"] == [None, 4.0, 0.0, None]
    assert history.work(Grid(minute_s, 120, 1))["gpu0"]["tokens_per_s"] == [2.5]
    history.close()


def test_an_hour_drawn_together_says_the_same_as_its_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hour_s = int(time.time()) // 3600 * 3600 - 3600
    history = History(tmp_path / "history.db")
    for minute in range(0, 60, 3):
        whole = Work("", 60.0, 60.0, 6.0, 1.0, 10 + minute, 2, 1)
        history.worked(hour_s + 60 * minute, [whole, *([Work("gpu0", 60.0, 60.0, 0, 0, 0, 2, 0)] * (minute < 30))])
    before = history.work(Grid(hour_s, 3600, 1))
    with monkeypatch.context() as later:
        later.setattr(time, "time", lambda: hour_s + 2 * DAY_S + 7200.0)
        later.setattr(history, "_tidied_s", 0.0)
        history.flush(quiet=True)
        assert history.work(Grid(hour_s, 3600, 1)) == before
    with closing(sqlite3.connect(tmp_path / "history.db")) as database:
        assert database.execute("SELECT DISTINCT seconds FROM work").fetchall() == [(3600,)]
    history.close()


def test_an_idle_host_writes_nothing_for_minutes(tmp_path: Path) -> None:
    history, begin_s = History(tmp_path / "history.db"), int(time.time()) // 60 * 60
    idle = Work("", 10.0, 0, 0, 0, 0, 0, 0)

    def written() -> int:
        with closing(sqlite3.connect(tmp_path / "history.db")) as database:
            count: int = database.execute("SELECT count(*) FROM work").fetchone()[0]
            return count

    history.worked(begin_s - 120, [idle])
    history.flush()
    assert written() == 0
    history.worked(begin_s - 900, [idle])
    history.flush()
    assert written() == 2
    history.close()


async def test_the_history_of_a_gpu_follows_its_serial_number_and_names_its_events(rig: Desk) -> None:
    now_s, uuid = time.time(), rig.gpus[0].uuid
    rig.read()
    for at_s, text in ((now_s - 7200, "long ago"), (now_s - 600, "lately")):
        rig.watch.history.health_event(GpuEvent(at_s, uuid, "", "1", "xid", "", "79", text))
    reading = msgspec.structs.replace(rig.probe.readings[uuid], at_s=now_s - 300)
    rig.watch.history.readings_of_cards([(rig.policy.monitor.tracks[uuid].identity, reading)])
    history = rig.operations.reads.history
    found = await history.gpus(SpanAsked(now_s - 3600, now_s, 60), None)
    assert [event.text for event in found.events] == ["lately"] and not found.more_events and found.events[0].at
    assert [(gpu.uuid, gpu.index) for gpu in found.gpus] == [(uuid, 0)]
    assert [value for value in found.gpus[0].temp_c if value is not None] == [60.0]
    assert (await history.gpus(SpanAsked(now_s - 3600, now_s, 60), "1")).gpus == []
    with pytest.raises(NotFoundError, match="no GPU 7"):
        await history.gpus(SpanAsked(now_s - 3600, now_s, 60), "7")


async def test_work_is_looked_at_and_kept(rig: Desk) -> None:
    looks = WorkLooks(rig.engine, rig.watch.history, rig.failures)
    at_s = int(time.time()) // 60 * 60 - 180
    looks.look(at_s, 0.0)
    live = await rig.take("a", "b", "c")
    await rig.answer(live, 1)
    await rig.answer(live, 2, fault=NO)
    await rig.begun(live)
    looks.look(at_s + 10, 10.0)
    await rig.answer(live)
    looks.look(at_s + 70, 70.0)
    found = await rig.operations.reads.history.work(SpanAsked(at_s, at_s + 120, 10))
    assert found.host.tokens_per_s[:2] == [0.5, pytest.approx(5 / 60, abs=0.001)]
    assert (found.host.requests_per_s[0], found.host.failed_per_s[0]) == (0.2, 0.1)
    assert (found.host.queued[0], found.host.in_flight[0]) == (0.0, 1.0)
    assert sum(server.tokens_per_s[0] or 0 for server in found.servers) == 0.5
    await rig.published(live)


async def test_a_server_that_is_made_anew_counts_from_zero(rig: Desk) -> None:
    looks = WorkLooks(rig.engine, rig.watch.history, rig.failures)
    at_s, links = int(time.time()) // 60 * 60 - 180, rig.engine.dispatcher.links
    links["gpu0"].tokens_done = 500
    looks.look(at_s, 0.0)
    links["gpu0"].tokens_done = 20
    looks.look(at_s + 10, 10.0)
    found = await rig.operations.reads.history.work(SpanAsked(at_s, at_s + 60, 10))
    assert found.host.tokens_per_s[0] == 2.0


async def test_months_are_read_once_for_many_tabs(rig: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, read = SpanAsked(time.time() - DAY_S, time.time(), 100), list[Grid]()
    really = rig.watch.history.cards

    def counted(grid: Grid, uuid: str | None = None) -> Any:
        read.append(grid)
        return really(grid, uuid)

    monkeypatch.setattr(rig.watch.history, "cards", counted)
    history = rig.operations.reads.history
    found = await asyncio.gather(*(history.gpus(asked, None) for _ in range(5)))
    assert len(read) == 1 and all(one == found[0] for one in found)
