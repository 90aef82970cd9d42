"""Tasks that do not die unseen: every long-lived task of the daemon is started through a :class:`TaskSet`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Coroutine
from typing import Any, Protocol, TypeVar

from obatchd import log

_log = log.get(__name__)
T = TypeVar("T")


async def set_within(timeout_s: float, event: asyncio.Event) -> bool:
    """Wait for ``event``, for ``timeout_s`` at most; whether it is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    return event.is_set()


async def to_its_end(work: Awaitable[T]) -> T:
    """Do what must not stop half-way, also where its caller is cancelled in the middle: that one waits for its end."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.info("nobody_told", reason=log.reason(error))
        raise


class TaskOwner(Protocol):
    """Answers for the tasks of a set."""

    def task_failed(self, name: str, error: BaseException) -> None:
        """The task ``name`` ended by an exception, which is in the log. Decide what follows; do not raise."""


class TaskSet:
    """The tasks of one owner.

    A task that returns or is cancelled is forgotten. One that ends by an exception is logged with its traceback, and
    its owner is told: a part that is gone must not stay unnoticed while the rest only seems to work.
    """

    def __init__(self, owner: TaskOwner) -> None:
        self._owner = owner
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run ``work`` as the task ``name``, in the running event loop."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def __len__(self) -> int:
        return len(self._tasks)

    async def stop(self) -> None:
        """Cancel every task of the set and wait until all have ended."""
        while tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._tasks.difference_update(tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        _log.exception("defect", error, task=task.get_name())
        self._owner.task_failed(task.get_name(), error)
