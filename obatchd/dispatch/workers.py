"""Whatever drives a server, as the rest of dispatch sees it: a worker, its place, and those that make workers.

A worker is a process that speaks :mod:`obatchd.dispatch.protocol`; where it runs is known to its maker alone. The maker
comes with the server (:meth:`obatchd.dispatch.dispatcher.Dispatcher.attach`): :data:`LOCAL` starts children of ours,
another one may have them started elsewhere, at the other end of a connection.

What a maker promises: messages arrive whole, once and in the order in which they were sent, or the worker ends. What
was sent to a worker that ended is lost, and what it said last may be; dispatch offers its requests again.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from obatchd.child import End, Keeper
from obatchd.dispatch import protocol
from obatchd.dispatch.worker import worker
from obatchd.frames import Drained


class WorkerHandle(Protocol):
    """A worker that runs; :class:`obatchd.child.Child` is one."""

    @property
    def pid(self) -> int:
        """Of its process, on the machine where that runs."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether more than :data:`obatchd.frames.FULL_BYTES` wait to be sent: it is offered nothing then."""
        ...

    @property
    def away_s(self) -> float:
        """How long a message takes to it and its answer back, beside the work; 0 on the same machine."""
        ...

    def listen(self, listener: Drained) -> None:
        """Have ``listener`` hear whenever ``is_full`` was true and is not any more, whoever filled the way there."""

    def send(self, message: object) -> bool:
        """Queue a :data:`obatchd.dispatch.protocol.ToWorker`. False: it is known to be gone, the message with it."""
        ...

    def kill(self) -> None:
        """End it, and listen to it no longer; its place then hears of its end as of any other."""


class WorkerPlace(Protocol):
    """Where the workers of one server are heard, one after another; called in the event loop. As
    :class:`obatchd.child.Parent`."""

    def started(self, worker: WorkerHandle) -> None:
        """A worker runs. It can get its first messages at once."""

    def heard(self, message: protocol.ToMain) -> None:
        """The worker said something."""

    def ended(self, end: End) -> float | None:
        """The worker is gone, or could not be started. Returns seconds until the next is started; None: none is.

        ``end.host`` is for one whose whole host is lost: nobody is to blame then, and no attempt counts.
        """


class WorkerLife(Protocol):
    """Keeps one worker at a server: another one follows each that ends. :class:`obatchd.child.Keeper` is one."""

    @property
    def name(self) -> str:
        """Of its task, for the log."""
        ...

    @property
    def tried(self) -> asyncio.Event:
        """Set when the first worker runs, could not be started, or has to wait for its host."""
        ...

    async def run(self) -> None:
        """Do so for ever; cancelled, end the worker that runs, of which the place is not told."""


class WorkerMaker(Protocol):
    """Knows where workers of a server run."""

    def keep(self, server_id: str, place: WorkerPlace) -> WorkerLife:
        """The life of its workers, which has not begun."""
        ...


class LocalWorkers:
    """Makes children of this process, by the forkserver."""

    def keep(self, server_id: str, place: WorkerPlace) -> WorkerLife:
        return Keeper(f"worker-{server_id}", worker.main, protocol.to_main, place)


LOCAL = LocalWorkers()
