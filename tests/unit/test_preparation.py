"""Requests that name sources wait for them, whatever becomes of the process that fetches these."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from settings_support import reload
from work_support import NoFeeder, Outcomes, add_live, make_work

from obatchd.child import End
from obatchd.context.model import Alive, Prepared, Rules, Wish
from obatchd.intake import preparation as module
from obatchd.intake.preparation import Preparation
from obatchd.jobs.lane import Lane, Pending
from obatchd.jobs.model import Intent, Profile
from obatchd.jobs.queue import JobQueue
from obatchd.settings.job import JobSettings


async def test_requests_that_come_while_a_dead_preparer_is_not_noticed_yet_end_nothing(tmp_path: Path) -> None:
    work = make_work(tmp_path, context={"enabled": True})
    work.store.state.accept([Intent("job", b"a.jsonl", 1, 1, 1, 10, "file", 0.0)])
    add_live(work, *work.store.state.find(["job"]))
    preparation = Preparation(work, Outcomes())
    queue = JobQueue(NoFeeder())
    lane = Lane(1, 1, 1000, Profile("tiny", 4096), "normal", 0.0)

    def give(line: int) -> None:
        asked = Pending(line, b'{"prompt": "x", "urls": ["http://192.0.2.1/"]}')
        assert preparation.ready(lane, [asked], queue) == []

    give(1)
    async with asyncio.timeout(30):
        while preparation._preparer is None:
            await asyncio.sleep(0.01)
    os.kill(preparation._preparer.pid, signal.SIGKILL)
    for line in range(2, 10):
        give(line)
        await asyncio.sleep(0)
    preparation.settings_changed()
    await preparation.stop()
    work.store.close()
    assert work.owner == []


class Preparer:
    """In place of the process: remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.gone = False

    def send(self, message: Any) -> bool:
        self.told.append(message)
        return not self.gone

    def wishes(self) -> list[Any]:
        return [(message.job, message.line) for message in self.told if isinstance(message, Wish)]


class Rig:
    """A preparation with one live job, whose preparers the test plays."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, **context: Any) -> None:
        self.parent: Any = None
        self.runs = 0
        rig = self

        class Keeper:
            def __init__(self, name: str, work: Any, decoder: Any, parent: Any, *, silent_s: float) -> None:
                rig.parent = parent

            async def run(self) -> None:
                rig.runs += 1
                await asyncio.Event().wait()

        monkeypatch.setattr(module, "Keeper", Keeper)
        self.work = make_work(directory, context={"enabled": True, **context})
        self.outcomes = Outcomes()
        self.preparation = Preparation(self.work, self.outcomes)
        self.queue = JobQueue(NoFeeder())

    def live(self, kind: str = "file", **settings: Any) -> Lane:
        job = f"job-{len(self.work.jobs)}"
        self.work.store.state.accept([Intent(job, b"a.jsonl", 1000, 1, 1, 10, kind, 0.0)])
        [row] = self.work.store.state.find([job])
        row.settings = JobSettings(**settings)
        add_live(self.work, row)
        return self.queue.add_lane(Lane(row.key, 0, 1000, Profile("tiny", 4096), "normal", 0.0))

    def ready(self, lane: Lane, *requests: dict[str, Any]) -> list[int]:
        pending = [Pending(line, json.dumps(request).encode()) for line, request in enumerate(requests, 1)]
        return [one.line for one in self.preparation.ready(lane, pending, self.queue)]

    def begin(self) -> Preparer:
        preparer = Preparer()
        self.parent.started(preparer)
        return preparer

    def failures(self) -> list[tuple[int, str]]:
        assert all(not finished.succeeded for finished in self.outcomes)
        return [(finished.line, json.loads(finished.record)["code"]) for finished in self.outcomes]


@pytest.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def rig(**context: Any) -> Rig:
        made.append(Rig(tmp_path, monkeypatch, **context))
        return made[-1]

    yield rig
    for each in made:
        await each.preparation.stop()
        each.work.store.close()
        assert each.work.owner == []


PLAIN = {"prompt": "x"}
NAMED = {"prompt": "x", "urls": ["http://192.0.2.1/"]}
LINKED = {"prompt": "see [this](http://192.0.2.1/)"}


async def test_only_what_names_a_source_waits_and_starts_the_preparer(make: Callable[..., Rig]) -> None:
    rig = make()
    lane = rig.live()
    assert rig.ready(lane, PLAIN, LINKED) == [1, 2]
    await asyncio.sleep(0)
    assert rig.runs == 0
    assert rig.ready(lane, PLAIN, NAMED, {"prompt": "x", "files": ["a.txt"]}) == [1]
    assert lane.preparing == 2
    assert rig.ready(lane, NAMED) == []
    await asyncio.sleep(0)
    assert rig.runs == 1


async def test_links_in_prompts_are_sources_where_that_is_wanted(make: Callable[..., Rig]) -> None:
    rig = make(from_links=True)
    assert rig.ready(rig.live(), PLAIN, LINKED) == [1]


async def test_nothing_waits_where_sources_are_off(make: Callable[..., Rig]) -> None:
    rig = make(enabled=False)
    assert rig.ready(rig.live(), NAMED) == [1]


async def test_a_prepared_request_comes_to_the_queue_and_needs_nothing_more(make: Callable[..., Rig]) -> None:
    rig = make()
    lane = rig.live()
    assert rig.ready(lane, NAMED, NAMED) == []
    preparer = rig.begin()
    assert isinstance(preparer.told[0], Rules) and preparer.wishes() == [(lane.job, 1), (lane.job, 2)]
    rig.parent.heard(Alive())
    rig.parent.heard(Prepared(lane.job, 2, b"sources"))
    rig.parent.heard(Prepared(lane.job, 2, b"twice"))
    [taken] = rig.queue.take(lane.profile, 9)
    assert (taken.pending.line, taken.pending.prepared, lane.preparing) == (2, b"sources", 1)
    assert list(rig.preparation.ready(lane, [taken.pending], rig.queue)) == [taken.pending]


async def test_a_source_that_cannot_be_had_fails_its_request_alone(make: Callable[..., Rig]) -> None:
    rig = make()
    lane = rig.live()
    rig.ready(lane, NAMED, NAMED)
    rig.begin()
    rig.parent.heard(Prepared(lane.job, 1, b"", "fetch_failed", "no route"))
    assert rig.failures() == [(1, "fetch_failed")]
    assert lane.preparing == 1 and rig.queue.take(lane.profile, 9) == []


async def test_a_wish_says_what_the_preparer_has_to_know_of_the_job(make: Callable[..., Rig]) -> None:
    rig = make()
    file, folder = rig.live(), rig.live(kind="folder", sample=3)
    preparer = rig.begin()
    rig.ready(file, NAMED)
    rig.ready(folder, NAMED)
    first, second = [message for message in preparer.told if isinstance(message, Wish)]
    assert (first.owner, first.folder, first.keep_full_prompt) == (1000, "", False)
    assert (second.folder, second.keep_full_prompt) == (str(rig.work.input_of(rig.work.jobs[folder.job].row)), True)


async def test_a_retry_of_a_dropped_folder_finds_the_files_of_the_folder(make: Callable[..., Rig]) -> None:
    rig = make()
    folder, file = rig.live(kind="folder"), rig.live()
    of_folder, of_file = rig.live(lines_of="job-0"), rig.live(lines_of="job-1")
    gone = rig.live(lines_of="job-that-is-erased")
    preparer = rig.begin()
    for lane in (of_folder, of_file, gone):
        rig.ready(lane, NAMED)
    folders = [message.folder for message in preparer.told if isinstance(message, Wish)]
    assert folders == [str(rig.work.input_of(rig.work.jobs[folder.job].row)), "", ""]
    assert file.preparing == 0


async def test_another_preparer_is_told_again_and_one_request_that_ends_two_fails(make: Callable[..., Rig]) -> None:
    rig = make()
    lane = rig.live()
    rig.ready(lane, NAMED)
    rig.begin()
    assert rig.parent.ended(End("died of signal 9", 10.0)) == 0.0
    assert rig.failures() == []
    second = rig.begin()
    assert second.wishes() == [(lane.job, 1)]
    assert rig.parent.ended(End("died of signal 9", 0.1)) == 1.0
    assert rig.failures() == [(1, "preparer_lost")]
    assert rig.begin().wishes() == [] and lane.preparing == 0


async def test_a_request_of_a_job_that_is_over_is_not_prepared(make: Callable[..., Rig]) -> None:
    rig = make()
    lane, other = rig.live(), rig.live()
    rig.ready(lane, NAMED)
    rig.ready(other, NAMED)
    del rig.work.jobs[lane.job]
    assert rig.begin().wishes() == [(other.job, 1)]


async def test_a_preparer_that_is_gone_unnoticed_is_not_blamed_on_what_it_never_got(make: Callable[..., Rig]) -> None:
    rig = make()
    lane = rig.live()
    rig.begin().gone = True
    rig.ready(lane, NAMED)
    for _ in range(2):
        rig.parent.ended(End("died", 10.0))
        rig.begin()
    assert rig.failures() == []


async def test_new_rules_are_told_at_once(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.preparation.settings_changed()  # nobody is there to be told
    preparer = rig.begin()
    reload(rig.work.settings, "context.timeout_s", 3)
    rig.preparation.settings_changed()
    assert [message.settings["timeout_s"] for message in preparer.told] == [30, 3]
