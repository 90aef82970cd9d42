"""When the parts of a daemon or a host are to stop: a signal came, a part is gone, or they are to be made anew."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol


class Parts(Protocol):
    """Whoever makes the parts; :class:`obatchd.daemon.life.Daemon` and :class:`obatchd.daemon.host_life.HostDaemon`."""

    async def run_parts(self) -> None:
        """Make the parts and run them until they are to stop; tell ``Stop.started`` in between."""


class Stop:
    """Whether the parts are to stop, and how.

    Attributes:
        asked: set while they are to stop.
        hurry: set when nobody waits for running answers any more: a second signal came.
        again: they are stopped to be made anew, in this process.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()
        self.again = False
        self._starting: asyncio.Task[Any] | None = None  # the task of run, while parts are being started

    async def run(self, parts: Parts) -> None:
        """Run parts, and others after those that are to be made anew, until they are to stop for good."""
        while not self.asked.is_set():
            self._starting = task = asyncio.current_task()
            assert task is not None
            try:
                await parts.run_parts()
            except asyncio.CancelledError:
                if not self.asked.is_set():
                    raise
                task.uncancel()  # the start was cut short
            if self.again:
                self.again = False
                self.asked.clear()

    def started(self) -> None:
        """All parts run: what stops them from now on is ``asked`` alone."""
        self._starting = None

    def signalled(self) -> bool:
        """Whether this signal is the first one; by a second one running answers are given up."""
        first = not self.asked.is_set() or self.again
        if not first:
            self.hurry.set()
        return first

    def end(self) -> None:
        """Stop for good; a start in progress is cut short."""
        self.again = False
        self.asked.set()
        starting, self._starting = self._starting, None  # once: what it has started is stopped then
        if starting is not None:
            starting.cancel()

    def begin_again(self) -> bool:
        """Have the parts made anew; False: they are to stop for good."""
        if self.asked.is_set():
            return False
        self.again = True
        self.asked.set()
        return True

    async def unless_hurried(self, work: asyncio.Task[Any]) -> bool:
        """Wait for ``work``, or for a second signal. Whether the work was done by then; it goes on where it was not."""
        hurry = asyncio.create_task(self.hurry.wait())
        await asyncio.wait([work, hurry], return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        return work.done()
