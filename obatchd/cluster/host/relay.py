"""The workers of a host for the length of one session: at each server one, whose frames pass untouched.

What goes up waits in the session. When that is full, the workers are not heard any more, so that the memory of the host
stays bounded, and they wait for their sockets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import attrs
import msgspec

from obatchd import log
from obatchd.child import Child, End, Keeper
from obatchd.cluster import messages
from obatchd.cluster.host.shortening import LONGEST_BYTES, shortened
from obatchd.dispatch.worker import worker
from obatchd.tasks import TaskSet

_log = log.get(__name__)
_raw: msgspec.msgpack.Decoder[msgspec.Raw] = msgspec.msgpack.Decoder(msgspec.Raw)


class Way(Protocol):
    """The way to the head: the part of a session that is used here."""

    def say(self, message: object) -> bool: ...
    def send(self, channel: int, data: bytes) -> bool: ...

    @property
    def is_full(self) -> bool: ...


@attrs.define(eq=False)
class Relay:
    """Keeps a worker at each server while a session lasts. Channels count up; those of workers that ended are dead."""

    _way: Way
    _tasks: TaskSet = attrs.field(alias="owner", converter=TaskSet)  # without which a server has no worker any more
    _places: dict[int, _Place] = attrs.field(factory=dict, init=False)  # by channel, of workers that run
    _channels: int = attrs.field(default=0, init=False)
    _over: bool = attrs.field(default=False, init=False)

    def start(self, servers: Iterable[str]) -> None:
        """Start a worker for each of these servers, in the background."""
        for server_id in servers:
            keeper = Keeper(f"worker-{server_id}", worker.main, _raw, _Place(server_id, self))
            self._tasks.start(keeper.run(), keeper.name)

    async def stop(self) -> None:
        """End all workers, of which the head is told nothing: it takes them for lost when the session ends."""
        self._over = True
        await self._tasks.stop()

    # The head.

    def frame(self, channel: int, data: bytes) -> None:
        """Bytes for a worker; those of a channel that is dead are dropped."""
        if (place := self._places.get(channel)) is not None:
            place.send(data)

    def kill(self, channel: int) -> None:
        """End a worker that hangs; another one follows."""
        if (place := self._places.get(channel)) is not None:
            place.kill()

    def drained(self) -> None:
        """There is room again in the way to the head."""
        for place in self._places.values():
            place.resume()

    # The workers.

    def began(self, place: _Place, pid: int) -> int:
        """A worker runs; its channel."""
        self._channels += 1
        self._places[self._channels] = place
        self._way.say(messages.WorkerStarted(place.server_id, self._channels, pid))
        return self._channels

    def carry(self, place: _Place, data: bytes) -> None:
        """Bytes of a worker."""
        for part in (data,) if len(data) <= LONGEST_BYTES else shortened(data):
            self._way.send(place.channel, part)
        if self._way.is_full:
            place.pause()

    def ended(self, place: _Place, end: End) -> None:
        """A worker is gone, or could not be started."""
        if self._places.pop(place.channel, None) is not None and not self._over:
            self._way.say(messages.WorkerEnded(place.channel, end.words, end.lived_s, end.silent))
        _log.warning("worker_lost", server=place.server_id, reason=f"it {end.words}")


@attrs.define(eq=False)
class _Place:
    """The workers of one server, one after another. Implements :class:`obatchd.child.Parent`."""

    server_id: str
    _relay: Relay
    channel: int = attrs.field(default=0, init=False)  # of the one that runs
    _child: Child | None = attrs.field(default=None, init=False)

    def started(self, child: Child) -> None:
        self._child = child
        self.channel = self._relay.began(self, child.pid)
        _log.info("worker_started", server=self.server_id, pid=child.pid)

    def heard(self, frame: msgspec.Raw) -> None:
        self._relay.carry(self, bytes(frame))

    def ended(self, end: End) -> float:
        self._child = None
        self._relay.ended(self, end)
        return end.pause_s

    def send(self, data: bytes) -> None:
        if self._child is not None:
            self._child.send(msgspec.Raw(data))

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()

    def pause(self) -> None:
        if self._child is not None:
            self._child.pause()

    def resume(self) -> None:
        if self._child is not None:
            self._child.resume()
