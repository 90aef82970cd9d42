"""The hosts that joined: which there are, and their sessions."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Literal, Protocol

import attrs

from obatchd.cluster.head.server import HostedServer
from obatchd.cluster.messages import Hello, HostNews, ToHead
from obatchd.cluster.session import Session, Socket

HostState = Literal["here", "away", "draining", "leaving"]


class KnownHosts(Protocol):
    """The hosts that may come, kept across restarts; :class:`obatchd.cluster.head.roster.Roster`."""

    def names(self) -> Iterable[str]:
        """Of all that joined and were not forgotten."""
        ...

    def is_drained(self, name: str) -> bool:
        """Whether an administrator said that a host gets no work."""
        ...


@attrs.define(eq=False)
class JoinedHost:
    """One host, here or away."""

    name: str
    session: Session[ToHead] | None = attrs.field(default=None, init=False)
    hello: Hello | None = attrs.field(default=None, init=False)  # of its latest session
    news: HostNews | None = attrs.field(default=None, init=False)  # the latest
    reason: str = attrs.field(default="it has not come since obatchd started", init=False)  # of its state
    since_s: float = attrs.field(factory=time.time, init=False)  # epoch; of its coming or going
    skew_s: float = attrs.field(default=0.0, init=False)  # how far its clock is ahead of ours
    drained: bool = attrs.field(default=False, init=False)
    servers: dict[str, HostedServer] = attrs.field(factory=dict, init=False)  # by full id

    @property
    def state(self) -> HostState:
        if self.session is None:
            return "away"
        if self.news is not None and self.news.leaving:
            return "leaving"
        return "draining" if self.drained else "here"


class Hosts:
    """All hosts that joined."""

    def __init__(self, known: KnownHosts) -> None:
        self._known = known
        self._hosts = {name: JoinedHost(name) for name in known.names()}

    @property
    def hosts(self) -> Mapping[str, JoinedHost]:
        """Every known host, by name."""
        return self._hosts

    async def attend(self, socket: Socket, name: str, until_s: float | None = None) -> None:
        """Run one session with host ``name``, whose credential was checked, from Challenge to its end."""
        raise NotImplementedError

    def cut_off(self, name: str, reason: str) -> None:
        """End the session with a host, if there is one."""
        if (host := self._hosts.get(name)) is not None and host.session is not None:
            host.session.end(reason)
