"""The hosts that joined: which there are, and their sessions."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Mapping
from typing import Protocol

import attrs

from obatchd import log
from obatchd.cluster import messages
from obatchd.cluster.head.attendance import Attendance
from obatchd.cluster.head.joined import Attached, JoinedHost
from obatchd.cluster.head.reporting import HostAlarms
from obatchd.cluster.head.standing import findings_of
from obatchd.cluster.messages import Hello, Refused, Terms
from obatchd.cluster.session import Session, Socket
from obatchd.cluster.terms import terms
from obatchd.documents.hosts import HostFindings
from obatchd.errors import NotFoundError
from obatchd.gpucare.siblings import Sibling
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

_log = log.get(__name__)
_MOST_PATIENCE_S = 3600.0
_FIRST_BAR_S = 1.0  # for a host that said what cannot be; each time twice as long
_LONGEST_BAR_S = 300.0
_TIDY_S = 60.0
_GOOD_S = 600.0  # a session that lasted so long is forgiven its end


class KnownHosts(Protocol):
    """The hosts that may come, kept across restarts; :class:`obatchd.cluster.head.roster.Roster`."""

    def names(self) -> Iterable[str]:
        """Of all that joined and were not forgotten."""
        ...

    def drained(self, name: str) -> str:
        """Why an administrator gives a host no work; empty: it gets some."""
        ...

    def set_drained(self, name: str, reason: str) -> None:
        """Keep that; empty: it gets work again."""

    def until_s(self, name: str) -> float | None:
        """When the credential of a host ends with its allocation (epoch); None: it does not."""
        ...


class _Bar:
    """For how long a host that said what cannot be gets no session."""

    def __init__(self) -> None:
        self._times = 0
        self._until_s = 0.0  # monotonic

    def lied(self, lasted_s: float) -> None:
        self._times = 1 if lasted_s >= _GOOD_S else self._times + 1
        self._until_s = time.monotonic() + min(_FIRST_BAR_S * 2 ** min(self._times - 1, 20), _LONGEST_BAR_S)

    @property
    def left_s(self) -> float:
        return max(0.0, self._until_s - time.monotonic())


class HeadDesk:
    """What one host may ask. Implements :class:`obatchd.cluster.desks.HeadDesk`."""

    def __init__(self, host: str, attached: Attached) -> None:
        self._host = host
        self._attached = attached

    async def vacate(self, server: str, patience_s: float, reason: str) -> None:
        dispatcher = self._attached.dispatcher
        link = dispatcher.links.get(f"{self._host}.{server}")
        if link is None:
            raise NotFoundError(f"the head knows no server {server[:80]} of host {self._host}")
        patience_s = min(patience_s, _MOST_PATIENCE_S) if math.isfinite(patience_s) else 0.0
        await dispatcher.vacate(link, max(0.0, patience_s), reason[:1000])

    async def siblings(self, own: list[Sibling]) -> list[Sibling]:
        return self._attached.board.exchange(self._host, own)


@attrs.define(eq=False)
class Hosts:
    """All hosts that joined. Implements :class:`obatchd.cluster.head.attendance.Reception`."""

    _known: KnownHosts
    _settings: Current[Settings]
    _attached: Attached
    _alarms: HostAlarms
    _hosts: dict[str, JoinedHost] = attrs.field(factory=dict, init=False)
    _present: dict[str, Attendance] = attrs.field(factory=dict, init=False)  # by host
    _all: set[Attendance] = attrs.field(factory=set, init=False)  # also of those that have not said hello
    _bars: dict[str, _Bar] = attrs.field(factory=dict, init=False)
    _closed: bool = attrs.field(default=False, init=False)  # the head is about to end

    def __attrs_post_init__(self) -> None:
        for name in self._known.names():
            self._host(name)

    def _host(self, name: str) -> JoinedHost:
        if (host := self._hosts.get(name)) is None:
            host = self._hosts[name] = JoinedHost(name, self._attached)
            host.drained, host.until_s = self._known.drained(name), self._known.until_s(name)
        return host

    @property
    def hosts(self) -> Mapping[str, JoinedHost]:
        """Every known host, by name."""
        return self._hosts

    # Sessions.

    async def attend(self, socket: Socket, name: str, until_s: float | None = None) -> None:
        """Run one session with host ``name``, whose credential was checked, from Challenge to its end.

        It ends at ``until_s`` (epoch), where that credential ends with an allocation.
        """
        attendance = Attendance(self._host(name), self, self._alarms)
        attendance.host.until_s = until_s
        desks = {"head": HeadDesk(name, self._attached)}
        session = attendance.session = Session(
            socket, f"host {name}", messages.to_head, attendance, desks, trusted=False
        )
        self._all.add(attendance)
        timers = attendance.begin()
        running = asyncio.create_task(session.run(), name=f"session-{name}")
        try:
            attendance.over(await session.over())
        finally:
            for timer in timers:
                timer.cancel()
            self._all.discard(attendance)
            attendance.over("its connection is gone")  # cancelled by that
            if self._present.get(name) is attendance:
                del self._present[name]
            if session.code:
                self._bars.setdefault(name, _Bar()).lied(time.monotonic() - session.began_s)
            await asyncio.wait([running])

    def may_come(self, host: JoinedHost) -> Refused | None:
        if self._closed:
            return Refused("stopping", "the head is about to end; it lets hosts in again after its next start")
        bar = self._bars.get(host.name)
        if bar is None or not bar.left_s:
            return None
        words = f"host {host.name} said what cannot be ({host.reason}); it may come again in {math.ceil(bar.left_s)} s"
        return Refused("untrue", words)

    def terms(self) -> Terms:
        return terms(self._settings.value)

    def came(self, attendance: Attendance, hello: Hello) -> None:
        host = attendance.host
        if (earlier := self._present.get(host.name)) is not None:
            _log.warning("host_replaced", host=host.name, reason="another session of it has begun")
            earlier.over("another session of this host has begun")
        self._present[host.name] = attendance
        host.begin(attendance.session, hello)

    def cut_off(self, name: str, reason: str) -> None:
        """End the session with a host, if there is one; also one that has begun and has not said hello."""
        for attendance in [one for one in self._all if one.host.name == name]:
            attendance.over(reason)

    def close(self) -> None:
        """Let in nobody more; those that are here go on."""
        self._closed = True

    async def tidy(self) -> None:
        """Give up, every minute, those that went as they were to: names of machines that an engine lends never end."""
        while True:
            known = set(self._known.names())
            for name, host in list(self._hosts.items()):
                if host.session is None and host.leaving:
                    host.gone()
                    if name not in known:
                        del self._hosts[name]
            await asyncio.sleep(_TIDY_S)

    async def stop(self) -> None:
        """End all sessions: the head ends. The hosts keep their models, and dial for the next one."""
        self.close()
        for attendance in list(self._all):
            attendance.over("the head has ended")
        await self._attached.tasks.stop()

    def settings_changed(self) -> None:
        """Tell every host what the head decides now."""
        told = self.terms()
        for attendance in self._present.values():
            attendance.session.say(told)

    async def examine(self) -> list[HostFindings]:
        """What each host that is here finds on its own machine, by the checks of doctor."""
        here = [host for _, host in sorted(self._hosts.items()) if host.session is not None]
        return await asyncio.gather(*map(findings_of, here))

    # Commands of administrators.

    def find(self, name: str) -> JoinedHost:
        """Raises NotFoundError where no such host has joined."""
        if (host := self._hosts.get(name)) is None:
            known = ", ".join(self._hosts) or "none"
            raise NotFoundError(f"no host {name} has joined; there are: {known} (obatchctl hosts)")
        return host

    async def drain(self, name: str, reason: str) -> None:
        """Give a host no new work, and wait for what it has in hand: ``drain_s``, then others answer the rest."""
        host = self.find(name)
        self._known.set_drained(name, reason)
        host.drained = reason
        host.keep()
        await host.empty(self._settings.value.servers.drain_s)

    def undrain(self, name: str) -> None:
        """Give a host work again."""
        host = self.find(name)
        self._known.set_drained(name, "")
        host.drained = ""
        host.keep()

    def forget(self, name: str, reason: str) -> None:
        """A host's credential is revoked: it goes, with its servers."""
        host = self.find(name)
        self.cut_off(name, reason)
        host.gone()
        self._bars.pop(name, None)
        del self._hosts[name]
