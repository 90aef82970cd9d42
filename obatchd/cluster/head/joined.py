"""One host that joined, here or away, with its servers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Literal

import attrs

from obatchd import log
from obatchd.cluster.head.care.siblings import SiblingBoard
from obatchd.cluster.head.sensors import HostSensors
from obatchd.cluster.head.server import HostedListener, HostedServer
from obatchd.cluster.head.trust import MOST_SERVERS, lie
from obatchd.cluster.head.workers import HostedWorkers
from obatchd.cluster.messages import Hello, HostNews, ServerNews, ToHead
from obatchd.cluster.session import Session
from obatchd.dispatch.dispatcher import Dispatcher
from obatchd.servers.server import ServerFace
from obatchd.tasks import TaskSet

_log = log.get(__name__)
HostState = Literal["here", "away", "draining", "leaving"]
_NEVER = "it has not come since obatchd started"
_LEAVING_PATIENCE_S = 30.0  # for requests of a host that leaves, until others answer them


@attrs.define(eq=False)
class Attached:
    """Where servers of hosts are known at the head."""

    dispatcher: Dispatcher
    guests: dict[str, ServerFace]  # of :class:`obatchd.servers.fleet.Fleet`
    listener: HostedListener
    tasks: TaskSet
    board: SiblingBoard = attrs.field(factory=SiblingBoard, init=False)


@attrs.define(eq=False)
class JoinedHost:
    """One host."""

    name: str
    _attached: Attached
    session: Session[ToHead] | None = attrs.field(default=None, init=False)
    hello: Hello | None = attrs.field(default=None, init=False)  # of its latest session
    news: HostNews | None = attrs.field(default=None, init=False)  # the latest
    reason: str = attrs.field(default=_NEVER, init=False)  # of its state
    code: str = attrs.field(default="", init=False)  # of the error that ended its latest session; empty: none did
    since_s: float = attrs.field(factory=time.time, init=False)  # epoch; of its coming or going
    skew_s: float = attrs.field(default=0.0, init=False)  # how far its clock is ahead of ours
    until_s: float | None = attrs.field(default=None, init=False)  # epoch; when its allocation ends
    drained: str = attrs.field(default="", init=False)  # why an administrator gives it no work
    servers: dict[str, HostedServer] = attrs.field(factory=dict, init=False)  # by full id
    sensors: HostSensors = attrs.field(factory=HostSensors, init=False)
    workers: HostedWorkers = attrs.field(init=False)
    _told: set[str] = attrs.field(factory=set, init=False)  # servers that it told of in this session

    def __attrs_post_init__(self) -> None:
        self.workers = HostedWorkers(self.name)

    @property
    def state(self) -> HostState:
        if self.session is None:
            return "away"
        if self.leaving:
            return "leaving"
        return "draining" if self.drained else "here"

    @property
    def leaving(self) -> str:
        """Why it is about to go, or has gone as it was to; empty: it stays."""
        if self.news is not None and self.news.leaving:
            return self.news.leaving
        is_over = self.until_s is not None and time.time() >= self.until_s
        return "its allocation is over" if is_over and self.session is None else ""

    # Its sessions.

    def begin(self, session: Session[ToHead], hello: Hello) -> None:
        """It is here; what there is of it is told next."""
        self.session, self.hello, self.news = session, hello, None
        self.skew_s = hello.clock_s - time.time()
        self.reason, self.code, self.since_s = "", "", time.time()
        self._told.clear()

    def lost(self, reason: str, code: str) -> None:
        """Its session has ended: what its servers had in hand goes elsewhere, and no attempt counts."""
        self.session, self.code, self.since_s = None, code, time.time()
        left = self.leaving
        self.reason = f"it has left: {left}" if left else reason
        for server in self.servers.values():
            server.lost(self.reason)
        self.workers.session_ended(reason)
        if left:
            self._detach(list(self.servers))

    def gone(self) -> None:
        """Nobody waits for it: its servers are none of ours any more."""
        self._detach(list(self.servers))

    # Its news.

    def server_told(self, news: ServerNews, session: Session[ToHead]) -> None:
        """Checked before, but for what the head knows. Raises ClusterError (``untrue``) where that cannot be."""
        name = f"{self.name}.{news.id}"
        server = self.servers.get(name)
        if server is None:
            server = self._attach(name, news)
        self._told.add(name)
        server.heard(news, session)

    def _attach(self, name: str, news: ServerNews) -> HostedServer:
        if len(self.servers) >= MOST_SERVERS:
            raise lie(f"it has more than {MOST_SERVERS} servers")
        if name in self._attached.dispatcher.links:
            raise lie(f"a server called {name} is known already; join this host under another name")
        server = self.servers[name] = HostedServer(self.name, news, self._attached.listener, self.sensors)
        server.keep(self._kept)
        self._attached.guests[name] = server
        self._attached.dispatcher.attach(server, self.workers)
        return server

    def server_gone(self, local_id: str) -> None:
        """It has that server no more."""
        self._detach([f"{self.name}.{local_id}"])

    def _detach(self, names: Iterable[str]) -> None:
        for name in names:
            if (server := self.servers.pop(name, None)) is None:
                continue
            self._attached.guests.pop(name, None)
            self.workers.forget(name)
            self._attached.tasks.start(self._attached.dispatcher.detach(server), f"detach-{name}")

    def host_told(self, news: HostNews) -> None:
        """Checked before. Those before it, in a session, told of all servers."""
        first, old = self.news is None, self.leaving
        self.news = news
        self.sensors.heard(news.readings, self.skew_s)
        if first:
            self._detach([name for name in self.servers if name not in self._told])
        if news.leaving and not old:
            _log.info("host_leaves", host=self.name, reason=news.leaving)
            for server in self.servers.values():
                self._attached.tasks.start(self._empty(server.id, _LEAVING_PATIENCE_S), f"leave-{server.id}")
        if news.leaving != old:
            self.keep()

    # Whether it gets work.

    @property
    def _kept(self) -> str:
        return f"its host is about to go: {self.leaving}" if self.leaving else self.drained

    def keep(self) -> None:
        """Have its servers get new work, or none, as is right now."""
        for server in self.servers.values():
            server.keep(self._kept)

    async def empty(self, patience_s: float) -> None:
        """Wait ``patience_s`` for its requests, then have others answer the rest."""
        for name in list(self.servers):
            await self._empty(name, patience_s)

    async def _empty(self, name: str, patience_s: float) -> None:
        if (link := self._attached.dispatcher.links.get(name)) is not None:
            await self._attached.dispatcher.vacate(link, patience_s, f"host {self.name} gets no more work")
