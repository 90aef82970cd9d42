"""Workers that run on a joined host, at the other end of its session: each in a channel of its own.

The life of a worker is from WorkerStarted to WorkerEnded, or to the end of the session. The host keeps them: it starts
another one after each that ends, in this session and in the next.
"""

from __future__ import annotations

import asyncio
import time

import attrs
import msgspec

from obatchd import log
from obatchd.child import End
from obatchd.cluster.head.trust import Ledger, lie
from obatchd.cluster.messages import KillWorker, ToHead, WorkerEnded, WorkerStarted
from obatchd.cluster.session import Session
from obatchd.cluster.wire import WHOLE_BYTES
from obatchd.dispatch import protocol, records
from obatchd.dispatch.workers import WorkerPlace
from obatchd.frames import Drained
from obatchd.ollama import faults

_log = log.get(__name__)
MOST_REQUEST_BYTES = WHOLE_BYTES // 3  # its answer has to come back as one message, and quotes it
# After which a worker that was told to end has ended; its host's word of that may have 8 MiB of answers before it.
END_S = 120.0
_FURTHER = 1.5  # so many times as far it may seem after one ping: a loop that stood still is no distance
_encode = msgspec.msgpack.Encoder().encode


@attrs.define(eq=False)
class HostedWorker:
    """One worker of a joined host. Implements :class:`obatchd.dispatch.workers.WorkerHandle`."""

    _server: str  # its id, as the head has it
    _session: Session[ToHead]
    _channel: int
    pid: int
    _place: WorkerPlace
    began_s: float = attrs.field(factory=time.monotonic, init=False)
    listener: Drained | None = attrs.field(default=None, init=False)
    _ledger: Ledger = attrs.field(init=False)
    _ended: bool = attrs.field(default=False, init=False)  # nobody listens to it any more
    _too_long: int = attrs.field(default=0, init=False)  # requests that were not sent and have failed by that
    _failing: int = attrs.field(default=0, init=False)  # those that are about to
    _pinged: tuple[int, float] = attrs.field(
        default=(-1, 0.0), init=False
    )  # the latest new count, and when (monotonic)
    _must_end: asyncio.TimerHandle | None = attrs.field(default=None, init=False)  # it was told to end
    away_s: float = attrs.field(default=0.0, init=False)  # the way there and back; 0: not known yet

    def __attrs_post_init__(self) -> None:
        self._ledger = Ledger(self._server)

    @property
    def is_full(self) -> bool:
        return self._session.is_full

    def listen(self, listener: Drained) -> None:
        self.listener = listener

    def send(self, message: object) -> bool:
        """Queue a message; raises ValueError where none can be so long."""
        match message:
            case protocol.Offer():
                return self._offer(message)
            case protocol.Ping():  # it is asked about those that were sent
                message = protocol.Ping(message.offered - self._too_long - self._failing)
                self._note_ping(message)
        data = _encode(message)
        if len(data) > WHOLE_BYTES:
            raise ValueError(f"a message of {len(data)} bytes")
        return self._session.send(self._channel, data)

    def _offer(self, offer: protocol.Offer) -> bool:
        small = [item for item in offer.items if len(item.raw) + len(item.prepared) <= MOST_REQUEST_BYTES]
        if len(small) < len(offer.items):
            for item in offer.items:
                if len(item.raw) + len(item.prepared) > MOST_REQUEST_BYTES:
                    self._failing += 1
                    asyncio.get_running_loop().call_soon(self._fail, item)
            offer = msgspec.structs.replace(offer, items=small)
        if not small:
            return not self._session.is_over
        self._ledger.offered(offer)
        sent = self._session.send(self._channel, _encode(offer))
        if self._pinged[0] <= 0:  # how far it is has to be known before its slots become free
            ping = protocol.Ping(self._ledger.got)
            self._note_ping(ping)
            self._session.send(self._channel, _encode(ping))
        return sent

    def _note_ping(self, ping: protocol.Ping) -> None:
        if ping.offered != self._pinged[0]:
            self._pinged = (ping.offered, time.monotonic())

    def _fail(self, item: protocol.OfferItem) -> None:
        """Answer for a request that is too long to be sent."""
        self._failing -= 1
        self._too_long += 1
        if self._ended:
            return  # it was given back
        size, most = (len(item.raw) + len(item.prepared)) // 2**20, MOST_REQUEST_BYTES // 2**20
        words = f"the request has {size} MiB with its sources, and one for a server of another host may have {most} MiB"
        fault = faults.Fault(faults.REQUEST, "too_long_for_hosts", words)
        record = records.lost(item.raw, item.line, item.attempt, [*item.servers, self._server], fault)
        failed = protocol.ResultItem(item.job, item.line, item.attempt, False, record, 0.0, 0, 0, *fault)
        self._place.heard(protocol.Results([failed]))

    def kill(self) -> None:
        if self._must_end is None:
            self._must_end = asyncio.get_running_loop().call_later(END_S, self._has_not_ended)
        self._ended = True
        self._session.say(KillWorker(self._channel))

    def _has_not_ended(self) -> None:
        """Its requests would wait for its end for ever."""
        self._session.end(f"the worker of {self._server} has not ended within {END_S:g} s of being told to")

    # What comes from its host.

    def heard(self, data: bytes) -> None:
        """Bytes of its channel. Raises ClusterError or msgspec.MsgspecError where the worker cannot have said that."""
        if self._ended:
            return
        message = self._ledger.check(protocol.to_main.decode(data))
        if isinstance(message, protocol.Progress):
            self._measure(message)
            message = msgspec.structs.replace(message, got=message.got + self._too_long)
        self._place.heard(message)

    def _measure(self, told: protocol.Progress) -> None:
        """Only the first word after a ping has the ping's new count: so long were both on the way."""
        offered, pinged_s = self._pinged
        if told.offered == offered and pinged_s:
            self._pinged = (offered, 0.0)
            took_s = time.monotonic() - pinged_s
            self.away_s = min(took_s, self.away_s * _FURTHER) if self.away_s else took_s

    def ended(self, end: End) -> None:
        self.forgotten()
        self._place.ended(end)

    def forgotten(self) -> None:
        """Nobody at the head has to do with it any more; its host ends it with its server, or with the session."""
        self._ended = True
        if self._must_end is not None:
            self._must_end.cancel()


@attrs.define(eq=False)
class HostedLife:
    """The workers of one server. Implements :class:`obatchd.dispatch.workers.WorkerLife`."""

    name: str
    place: WorkerPlace
    tried: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    worker: HostedWorker | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.tried.set()  # nobody waits for a host

    async def run(self) -> None:
        """Wait for the end: whatever happens is told by the host."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if self.worker is not None:
                self.worker.forgotten()
                self.worker = None


@attrs.define(eq=False)
class HostedWorkers:
    """Those of one host. Implements :class:`obatchd.dispatch.workers.WorkerMaker`."""

    _host: str
    _lives: dict[str, HostedLife] = attrs.field(factory=dict, init=False)  # by server
    _channels: dict[int, tuple[str, HostedWorker]] = attrs.field(factory=dict, init=False)  # with its server
    _latest: int = attrs.field(default=0, init=False)  # channel of this session

    def keep(self, server_id: str, place: WorkerPlace) -> HostedLife:
        life = self._lives[server_id] = HostedLife(f"worker-{server_id}", place)
        return life

    def forget(self, server_id: str) -> None:
        """A server is gone for good: nobody listens to its worker any more."""
        life = self._lives.pop(server_id, None)
        if life is not None and life.worker is not None:
            life.worker.forgotten()
            life.worker = None

    def started(self, message: WorkerStarted, session: Session[ToHead]) -> None:
        """Raises ClusterError where that cannot be."""
        server = f"{self._host}.{message.server}"
        life = self._lives.get(server)
        if life is None:
            raise lie(f"a worker of server {message.server[:80]!r}, which it has not told of")
        if message.channel <= self._latest or message.pid < 0:
            raise lie(f"a worker in channel {message.channel} after that in {self._latest}")
        if any(name == server for name, _ in self._channels.values()):
            raise lie(f"a second worker of server {message.server}")
        self._latest = message.channel
        worker = HostedWorker(server, session, message.channel, message.pid, life.place)
        self._channels[message.channel] = (server, worker)
        life.worker = worker
        life.place.started(worker)

    def heard(self, channel: int, data: bytes) -> None:
        """Bytes of a worker; of one that has ended they are dropped. Raises ClusterError where there was none."""
        if (found := self._channels.get(channel)) is not None:
            found[1].heard(data)
        elif not 0 < channel <= self._latest:
            raise lie(f"bytes in channel {channel}, which it has not told of")

    def ended(self, message: WorkerEnded) -> None:
        """Raises ClusterError where there was none."""
        found = self._channels.pop(message.channel, None)
        if found is None:
            raise lie(f"the end of a worker in channel {message.channel}, where there is none")
        lived_s = time.monotonic() - found[1].began_s  # by our own clock
        self._over(*found, End(message.words[:1000], lived_s, message.silent))

    def session_ended(self, reason: str) -> None:
        """The session is over: all its workers are gone."""
        gone, self._channels, self._latest = self._channels, {}, 0
        for server, worker in gone.values():
            lived_s = time.monotonic() - worker.began_s
            self._over(server, worker, End(f"went with its host: {reason}", lived_s, host=self._host))

    def _over(self, server: str, worker: HostedWorker, end: End) -> None:
        life = self._lives.get(server)
        if life is not None and life.worker is worker:
            life.worker = None
            worker.ended(end)

    def drained(self) -> None:
        """There is room again on the way to the host."""
        for _, worker in list(self._channels.values()):
            if worker.listener is not None:
                worker.listener.drained()
