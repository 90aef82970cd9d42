"""Parts that are started, stopped, made anew, and cut short in their start."""

from __future__ import annotations

import asyncio

import pytest

from obatchd.daemon.stop import Stop


class Made:
    """Parts whose start lasts for as long as the test says."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.begun, self.ended = 0, 0
        self.may_start = asyncio.Event()
        self.running = asyncio.Event()

    async def run_parts(self) -> None:
        self.begun += 1
        try:
            await self.may_start.wait()
            self.stop.started()
            self.running.set()
            await self.stop.asked.wait()
        finally:
            self.running.clear()
            self.ended += 1


async def test_the_end_is_that_of_parts_which_run() -> None:
    stop = Stop()
    made = Made(stop)
    made.may_start.set()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        run = tasks.create_task(stop.run(made))
        await made.running.wait()
        assert stop.signalled() and not stop.hurry.is_set()
        stop.end()
        assert not stop.signalled() and stop.hurry.is_set(), "a second signal waits for nobody"
    assert (made.begun, made.ended, run.cancelled()) == (1, 1, False)


async def test_a_start_is_cut_short() -> None:
    stop = Stop()
    made = Made(stop)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        run = tasks.create_task(stop.run(made))
        while not made.begun:
            await asyncio.sleep(0)
        stop.end()
    assert (made.begun, made.ended, run.cancelled()) == (1, 1, False)


async def test_whoever_cancels_the_run_is_heard() -> None:
    stop = Stop()
    run = asyncio.create_task(stop.run(Made(stop)))
    await asyncio.sleep(0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


async def test_parts_are_made_anew_unless_they_are_to_stop() -> None:
    stop = Stop()
    made = Made(stop)
    made.may_start.set()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(stop.run(made))
        await made.running.wait()
        assert stop.begin_again()
        assert stop.signalled(), "one that comes meanwhile is the first"
        while made.begun < 2:
            await asyncio.sleep(0)
        await made.running.wait()
        stop.end()
        assert not stop.begin_again()
    assert (made.begun, made.ended) == (2, 2)


async def test_work_that_lasts_is_waited_for_until_the_second_signal() -> None:
    stop = Stop()
    work = asyncio.create_task(asyncio.Event().wait())
    waiting = asyncio.create_task(stop.unless_hurried(work))
    await asyncio.sleep(0)
    stop.hurry.set()
    assert not await waiting and not work.done()
    work.cancel()
    over = asyncio.create_task(asyncio.sleep(0))
    assert await Stop().unless_hurried(over)
