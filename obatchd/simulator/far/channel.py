"""A channel in memory between dispatch and its workers that drops, doubles and delays messages, as a network may.

:class:`FarWorkers` stands in front of any maker of workers. Messages are numbered in each direction; one that is
missing, or comes twice, ends the connection, and with it the worker: as for a host that is lost. What becomes of a
message depends on nothing but the seed, the server, the number of the connection and its own number.

``OBATCHD_SIMULATOR_CHANNEL`` (JSON, :class:`Trouble`) has a daemon use it; see docs/internals/dispatch.md.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import Protocol

import attrs
import msgspec

from obatchd import log
from obatchd.child import End
from obatchd.dispatch import protocol
from obatchd.dispatch.workers import WorkerHandle, WorkerLife, WorkerMaker, WorkerPlace
from obatchd.errors import ConfigError
from obatchd.frames import FULL_BYTES, Drained, frame

VARIABLE = "OBATCHD_SIMULATOR_CHANNEL"
HOST = "elsewhere"
_log = log.get(__name__)
_BEAT_S = 0.05  # after the last message its number is told, by which the other end sees that it is missing


class Trouble(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What happens to how many of the messages; shares from 0 to 1.

    The first ``spared`` messages of each direction of a connection arrive, so that each connection gets something done.
    """

    seed: int
    drop: float = 0.01
    double: float = 0.01
    delay: float = 0.1
    longest_delay_s: float = 0.02
    spared: int = 8


def far(workers: WorkerMaker, text: str) -> WorkerMaker:
    """``workers``, behind a channel with the trouble that ``text`` says. Raises ConfigError where that is nonsense."""
    try:
        trouble = msgspec.json.decode(text, type=Trouble)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{VARIABLE}: {error}") from None
    _log.info("channel_simulated", seed=trouble.seed, drop=trouble.drop, double=trouble.double, delay=trouble.delay)
    return FarWorkers(workers, trouble)


@attrs.define(eq=False)
class FarWorkers:
    """Makes the workers of another maker seem far away. Implements WorkerMaker."""

    _near: WorkerMaker
    _trouble: Trouble

    def keep(self, server_id: str, place: WorkerPlace) -> WorkerLife:
        return self._near.keep(server_id, _FarPlace(server_id, place, self._trouble))


@attrs.define(eq=False)
class _FarPlace:
    """The other machine's end. Implements WorkerPlace, for the near maker."""

    _server_id: str
    _place: WorkerPlace
    _trouble: Trouble
    _connections: int = attrs.field(default=0, init=False)
    _connection: _Connection | None = attrs.field(default=None, init=False)

    def started(self, worker: WorkerHandle) -> None:
        self._connections += 1
        name = f"{self._trouble.seed}/{self._server_id}/{self._connections}"
        self._connection = _Connection(worker, self._place, self._trouble, name)
        self._place.started(self._connection)

    def heard(self, message: protocol.ToMain) -> None:
        if self._connection is not None:
            self._connection.up.put(message)

    def ended(self, end: End) -> float | None:
        connection, self._connection = self._connection, None
        if connection is None:
            return self._place.ended(end)
        connection.close()
        if not connection.broken:
            return self._place.ended(end)
        words = f"is lost with its connection: {connection.broken}"
        pause_s = self._place.ended(End(words, end.lived_s, host=HOST))
        return None if pause_s is None else 0.0


class _Connection:
    """One worker's, from its beginning to its end. Implements WorkerHandle, for dispatch."""

    def __init__(self, worker: WorkerHandle, place: WorkerPlace, trouble: Trouble, name: str) -> None:
        self.broken = ""  # why it ended, where it did
        self._worker = worker
        self._listener: Drained | None = None
        self._place = place
        self.up = _Line(self, trouble, f"{name}/up")
        self._down = _Line(self, trouble, f"{name}/down")

    @property
    def pid(self) -> int:
        return self._worker.pid

    @property
    def away_s(self) -> float:
        return self._worker.away_s

    @property
    def is_full(self) -> bool:
        return self._down.waiting_bytes > FULL_BYTES or self._worker.is_full

    def listen(self, listener: Drained) -> None:
        self._listener = listener
        self._worker.listen(listener)

    def send(self, message: object) -> bool:
        size_bytes = len(frame(message))  # raises where a real one would
        if self._down.closed:
            return False
        self._down.put(message, size_bytes)
        return True

    def kill(self) -> None:
        self.close()
        self._worker.kill()

    def close(self) -> None:
        self.up.close()
        self._down.close()

    def received(self, line: _Line, message: object) -> None:
        if line is self.up:
            self._place.heard(message)  # type: ignore[arg-type]
            return
        self._worker.send(message)
        if self._listener is not None and not self._down.waiting_bytes and not self._worker.is_full:
            self._listener.drained()

    def broke(self, reason: str) -> None:
        self.broken = reason
        self.kill()


class _Ends(Protocol):
    """Whoever has the ends of a line."""

    def received(self, line: _Line, message: object) -> None:
        """The next message has come."""

    def broke(self, reason: str) -> None:
        """A message got lost, or came twice; called once."""


class _Line:
    """One direction: what is put in comes out in order and once, or the line breaks."""

    def __init__(self, ends: _Ends, trouble: Trouble, name: str) -> None:
        self._ends, self._trouble, self._name = ends, trouble, name
        self._random = random.Random(name)
        self._under_way: deque[tuple[int, object, int]] = deque()  # their number, and size in bytes
        self._sent = self._received = 0
        self._timer: asyncio.TimerHandle | None = None  # of the first one that is under way
        self._beat: asyncio.TimerHandle | None = None
        self.waiting_bytes = 0
        self.closed = False

    def put(self, message: object, size_bytes: int = 0) -> None:
        if self.closed:
            return
        trouble, chance = self._trouble, self._random.random()
        self._sent += 1
        copies = 1
        if self._sent > trouble.spared:
            copies = 0 if chance < trouble.drop else 2 if chance < trouble.drop + trouble.double else 1
        for _ in range(copies):
            self._under_way.append((self._sent, message, size_bytes))
            self.waiting_bytes += size_bytes
        if not copies and self._beat is None:
            self._beat = asyncio.get_running_loop().call_later(_BEAT_S, self._tell_number)
        if self._timer is None and copies:
            if chance > 1 - trouble.delay:
                delay_s = self._random.random() * trouble.longest_delay_s
                self._timer = asyncio.get_running_loop().call_later(delay_s, self._arrive)
            else:
                self._arrive()

    def close(self) -> None:
        self.closed = True
        self._under_way.clear()
        for timer in (self._timer, self._beat):
            if timer is not None:
                timer.cancel()

    def _arrive(self) -> None:
        self._timer = None
        while self._under_way and not self.closed:
            number, message, size_bytes = self._under_way.popleft()
            self.waiting_bytes -= size_bytes
            if self._expect(number):
                self._ends.received(self, message)

    def _expect(self, number: int) -> bool:
        if number == self._received + 1:
            self._received = number
            return True
        what = "came twice" if number <= self._received else f"came after {self._received}"
        self._ends.broke(f"message {number} of {self._name} {what}")
        return False

    def _tell_number(self) -> None:
        self._beat = None
        if self._timer is None and self._received < self._sent:
            self._ends.broke(f"message {self._received + 1} of {self._name} is missing")
        elif self._received < self._sent:
            self._beat = asyncio.get_running_loop().call_later(_BEAT_S, self._tell_number)
