"""The process that writes response files, through its end in the daemon."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
from task_support import Failures

from obatchd.delivery.responses import ResponseWriter
from obatchd.spool.outbox import JobOutbox


class Rig:
    """A writer that runs, and the process at its other end."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.writer = ResponseWriter(Failures())

    async def start(self) -> Rig:
        before = processes()
        await self.writer.start()
        await self.until(lambda: bool(processes() - before))
        self.process = psutil.Process(max(processes() - before))  # the last that was made: a forkserver may be new, too
        return self

    def outbox(self, job: str) -> Path:
        box = JobOutbox(self._root / "outbox" / f"drop.{job}")
        box.create()
        return box.directory

    async def written(self, *given: tuple[Path, list[tuple[int, bytes]], str]) -> None:
        """Give these responses and wait until they are written, or known not to be."""
        self.writer.write(given)
        async with asyncio.timeout(10):
            await self.writer.settle([outbox for outbox, *_ in given])

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not done():
                await asyncio.sleep(0.01)


def processes() -> set[int]:
    """Pids of all processes below this one."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


def answer(name: str, text: str = "yes") -> bytes:
    return json.dumps({"id": name, "response": text}).encode()


def names(outbox: Path) -> list[str]:
    return sorted(path.name for path in (outbox / "responses").iterdir())


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = await Rig(tmp_path).start()
    yield rig
    await rig.writer.stop()


async def test_responses_of_several_jobs_are_written_each_with_the_ending_of_its_job(rig: Rig) -> None:
    one, other = rig.outbox("one"), rig.outbox("other")
    await rig.written((one, [(1, answer("a")), (2, answer("../b"))], ".txt"), (other, [(7, answer("a", "# A"))], ".md"))
    assert names(one) == ["__b.2.json", "__b.2.txt", "a.json", "a.txt"]
    assert names(other) == ["a.json", "a.md"]
    assert (other / "responses" / "a.md").read_text() == "# A\n"
    assert (rig.writer.incomplete, rig.writer.backlog) == (set(), 0)


async def test_a_later_response_of_a_request_replaces_the_earlier(rig: Rig) -> None:
    outbox = rig.outbox("job")
    for number in range(20):
        rig.writer.write([(outbox, [(1, answer("a", f"{number}"))], ".txt")])
    await rig.written((outbox, [(1, answer("a", "the last"))], ".txt"))
    assert (outbox / "responses" / "a.txt").read_text() == "the last\n"


async def test_a_job_that_cannot_be_written_is_remembered_and_holds_up_no_other(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = rig.outbox("good"), rig.outbox("bad")
    (bad / "responses").write_text("somebody's file in its place")
    for _ in range(2):
        await rig.written((bad, [(1, answer("a"))], ".txt"), (good, [(1, answer("a")), (2, answer("b"))], ".txt"))
    assert names(good) == ["a.json", "a.txt", "b.json", "b.txt"]
    assert (rig.writer.incomplete, rig.writer.backlog) == ({bad}, 0)
    assert "event=responses_not_written job=bad responses=1" in caplog.text


async def test_the_signals_of_a_terminal_do_not_end_it_before_the_daemon_does(rig: Rig) -> None:
    """Ctrl-C reaches the whole process group, and the daemon drains first."""
    outbox = rig.outbox("job")
    await rig.written((outbox, [(1, answer("a"))], ".txt"))
    for number in (signal.SIGINT, signal.SIGTERM):
        rig.process.send_signal(number)
    await rig.written((outbox, [(2, answer("b"))], ".txt"))
    assert names(outbox) == ["a.json", "a.txt", "b.json", "b.txt"]
    assert rig.process.is_running() and not rig.writer.incomplete


async def test_it_ends_with_the_daemon_and_everything_given_is_written_before(rig: Rig) -> None:
    outbox = rig.outbox("job")
    for line in range(1, 101):
        rig.writer.write([(outbox, [(line, answer(f"r{line}"))], ".txt")])
    await rig.writer.stop()
    assert len(names(outbox)) == 200
    await rig.until(lambda: not rig.process.is_running() or rig.process.status() == psutil.STATUS_ZOMBIE)


async def test_another_one_follows_one_that_was_killed(rig: Rig) -> None:
    outbox, later = rig.outbox("job"), rig.outbox("later")
    rig.process.suspend()
    rig.writer.write([(outbox, [(1, answer("a"))], ".txt")])
    os.kill(rig.process.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        await rig.writer.settle([outbox])
    assert rig.writer.incomplete == {outbox}, "it is written again from the store when the job is published"
    while not (later / "responses").exists():
        await rig.written((later, [(1, answer("a"))], ".txt"))
        await asyncio.sleep(0.01)
    assert names(later) == ["a.json", "a.txt"]
