"""One session with the head as the host sees it, from the head's challenge to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Protocol

import attrs

from obatchd import __version__, log
from obatchd.cluster import messages
from obatchd.cluster.calls import Desk
from obatchd.cluster.host.head import Head
from obatchd.cluster.host.relay import Relay
from obatchd.cluster.session import Session, Socket
from obatchd.errors import ClusterError
from obatchd.servers.managed import ManagedServer

_log = log.get(__name__)
_GREETING_S = 20.0


class Identity(Protocol):
    """Who this host is; :class:`obatchd.cluster.host.directory.HostDirectory`."""

    @property
    def name(self) -> str: ...
    @property
    def instance(self) -> str: ...
    @property
    def machine(self) -> str: ...
    @property
    def allocation(self) -> str:
        """What started it, in words; empty: itself."""
        ...


class HostParts(Protocol):
    """What a session needs of a host; :class:`obatchd.daemon.host.HostParts`."""

    @property
    def asks(self) -> bool:
        """Whether there are no servers yet: the head says how it wants them, and the session is over."""
        ...

    @property
    def desks(self) -> Mapping[str, Desk]: ...
    def servers(self) -> Mapping[str, ManagedServer]:
        """By id."""
        ...

    def obey(self, terms: messages.Terms) -> None:
        """What the head decides counts from now on."""

    def entered(self) -> None:
        """The session has begun: tell all there is."""


@attrs.define(eq=False)
class Visit:
    """Greets, then relays. Implements :class:`obatchd.cluster.session.Heard`."""

    _identity: Identity
    _parts: HostParts
    _head: Head
    refused: messages.Refused | None = attrs.field(default=None, init=False)
    entered: bool = attrs.field(default=False, init=False)
    _session: Session[messages.ToHost] = attrs.field(init=False)
    _relay: Relay = attrs.field(init=False)

    async def run(self, socket: Socket) -> str:
        """Returns why the session ended; all its workers have ended then."""
        self._session = Session(socket, "the head", messages.to_host, self, self._parts.desks)
        self._relay = Relay(self._session, owner=self)
        late = asyncio.get_running_loop().call_later(_GREETING_S, self._is_late)
        try:
            return await self._session.run()
        finally:
            late.cancel()
            self._head.left(self._session)
            await self._relay.stop()
            for server in self._parts.servers().values():
                _keep_busy(server, False)

    def _is_late(self) -> None:
        if not self.entered:
            self._session.end(f"the head has not greeted within {_GREETING_S:g} s")

    def task_failed(self, name: str, error: BaseException) -> None:
        """A server would have no worker any more: the next session begins with all of them."""
        self._session.end(f"a defect of obatchd ({name}: {type(error).__name__})")

    # What the head says.

    def control(self, message: messages.ToHost) -> None:
        match message:
            case messages.Challenge() if not self.entered:
                self._session.say(self._hello(message))
            case messages.Refused():
                self.refused = message
                self._session.end(f"the head refuses this host: {message.message}")
            case messages.Accepted() if not self.entered:
                self._enter(message)
            case messages.Accepted() | messages.Challenge():
                raise ClusterError("the head greets twice", code="bad_frame")
            case _ if not self.entered:
                raise ClusterError("the head says something before it accepts this host", code="bad_frame")
            case messages.Terms():
                self._parts.obey(message)
            case messages.KillWorker():
                self._relay.kill(message.channel)
            case messages.Busy() | messages.Progressed() | messages.UseSlots() | messages.Fault():
                self._of_server(message)

    def _hello(self, challenge: messages.Challenge) -> messages.Hello:
        who, asks = self._identity, self._parts.asks
        return messages.Hello(
            challenge.nonce, who.name, __version__, who.instance, who.machine, time.time(), who.allocation, asks
        )

    def _enter(self, accepted: messages.Accepted) -> None:
        self.entered = True
        self._parts.obey(accepted.terms)
        self._head.entered(self._session)
        _log.info("head_reached", host=self._identity.name)
        self._parts.entered()
        self._relay.start(self._parts.servers())

    def _of_server(self, message: messages.Busy | messages.Progressed | messages.UseSlots | messages.Fault) -> None:
        if (server := self._parts.servers().get(message.server)) is None:
            return
        match message:
            case messages.Busy():
                _keep_busy(server, message.busy)
            case messages.Progressed():
                server.progress()
            case messages.UseSlots(slots=slots):
                if server.tuning is not None:
                    server.use(slots)
            case messages.Fault(broken=True):
                server.broken(message.reason)
            case messages.Fault():
                server.fault(message.reason)

    def frame(self, channel: int, data: bytes) -> None:
        self._relay.frame(channel, data)

    def drained(self) -> None:
        self._relay.drained()


def _keep_busy(server: ManagedServer, busy: bool) -> None:
    """Whether the head has work for a server that did not end."""
    server.in_flight = int(busy)
    if busy:
        server.idle.clear()
    else:
        server.idle.set()
