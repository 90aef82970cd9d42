"""What administrators do with hosts that joined, and with what lets others join."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

from attrs import define, field

from obatchd import log
from obatchd.control.auth import Caller
from obatchd.documents.audit import (
    ENROLMENT_MADE,
    ENROLMENT_REVOKED,
    HOST_CODE_MADE,
    HOST_DRAINED,
    HOST_FORGOTTEN,
    HOST_UNDRAINED,
)
from obatchd.documents.engine import EngineState
from obatchd.documents.hosts import EnrolmentEntry, Forgotten, HostDoor, HostEntry, HostList, HostsExamined, NewLink
from obatchd.errors import ClusterError, ConfigError, NotFoundError
from obatchd.live.audit import AuditLog
from obatchd.operations.audit import entry_of, recorded
from obatchd.settings.addresses import Address, reachable
from obatchd.tasks import TaskSet
from obatchd.times import clock, duration, instant

if TYPE_CHECKING:  # without a door nothing of it is imported
    from obatchd.cluster.head.door import Door
    from obatchd.cluster.head.hosts import Hosts
    from obatchd.cluster.head.joined import JoinedHost
    from obatchd.cluster.head.roster import Made, Member, Roster

if TYPE_CHECKING:
    from obatchd.cluster.head.launcher import Launcher

_log = log.get(__name__)
_DRAIN_S = 3.0  # longest wait of whoever drains a host; the rest goes on
_NO_DOOR = (
    'hosts cannot join this obatchd: set listen in [cluster] to an IP address of this host with a port, such as "'
    '10.0.0.1:7700", and restart it'
)
_READY = "ready"


class Joined(NamedTuple):
    """The parts of a head with a door."""

    roster: Roster
    hosts: Hosts
    door: Door


@define(eq=False)
class JoinedHostCommands:
    """Implements :class:`obatchd.control.hosts.JoinedHostOperations`, whose words say what each method does."""

    _audit: AuditLog
    _joined: Joined | None  # None: hosts cannot join
    launcher: Launcher | None = field(default=None, init=False)  # None: no engine starts hosts
    _actions: TaskSet = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._actions = TaskSet(self)

    def task_failed(self, name: str, error: BaseException) -> None:
        """A drain failed by a defect; its caller is told while waiting."""

    def door(self) -> HostDoor | None:
        return self._joined.door.state() if self._joined is not None else None

    def all(self) -> HostList:
        if (joined := self._joined) is None:
            return HostList(None, [], [], self._engine())
        names = sorted({*joined.roster.names(), *joined.hosts.hosts})
        by_enrolment: dict[str, list[str]] = {}
        for name in joined.roster.names():
            if (member := joined.roster.member(name)) is not None:
                by_enrolment.setdefault(member.enrolment, []).append(name)
        enrolments = [
            EnrolmentEntry(one.id, instant(one.made_s) or "", instant(one.until_s) or "", by_enrolment.get(one.id, []))
            for one in joined.roster.enrolments()
        ]
        entries = [_entry(name, joined) for name in names]
        return HostList(joined.door.state(), entries, enrolments, self._engine())

    async def examine(self) -> HostsExamined:
        return HostsExamined(await self._joined.hosts.examine() if self._joined is not None else [])

    def _engine(self) -> EngineState | None:
        return self.launcher.state() if self.launcher is not None else None

    async def code(self, caller: Caller, head: str) -> NewLink:
        joined, reached = self._with_door(head)
        async with recorded(self._audit, entry_of(caller, HOST_CODE_MADE)):
            made = await asyncio.to_thread(joined.roster.make_code)
        _log.info("host_code_made", uid=caller.uid)
        return _link(made, joined, reached)

    async def enrol(self, caller: Caller, valid_s: float, head: str) -> NewLink:
        joined, reached = self._with_door(head)
        async with recorded(self._audit, entry_of(caller, ENROLMENT_MADE, detail=f"good for {duration(valid_s)}")):
            made = await asyncio.to_thread(joined.roster.make_enrolment, valid_s)
        _log.info("host_enrolment_made", enrolment=made.id, uid=caller.uid)
        return _link(made, joined, reached)

    async def drain(self, caller: Caller, name: str) -> HostEntry:
        joined = self._known(name)
        reason = f"by an administrator at {clock(time.time(), '%H:%M')}; back with: obatchctl hosts resume {name}"
        async with recorded(self._audit, entry_of(caller, HOST_DRAINED, name)):
            if name not in joined.hosts.hosts:  # it has joined, and has not come yet
                await asyncio.to_thread(joined.roster.set_drained, name, reason)
            else:
                task = self._actions.start(joined.hosts.drain(name, reason), f"drain-{name}")
                # Long answers may be in flight: the caller hears how far it is, the rest goes on.
                done, _ = await asyncio.wait({task}, timeout=_DRAIN_S)
                for ended in done:
                    ended.result()  # its caller is not to hear that all is well
        return _entry(name, joined)

    async def resume(self, caller: Caller, name: str) -> HostEntry:
        joined = self._known(name)
        async with recorded(self._audit, entry_of(caller, HOST_UNDRAINED, name)):
            if name in joined.hosts.hosts:
                joined.hosts.undrain(name)
            else:
                await asyncio.to_thread(joined.roster.set_drained, name, "")
        return _entry(name, joined)

    async def forget(self, caller: Caller, name: str) -> Forgotten:
        joined = self._known(name)
        async with recorded(self._audit, entry_of(caller, HOST_FORGOTTEN, name)):
            if joined.roster.member(name) is not None:
                await asyncio.to_thread(joined.roster.forget, name)
            self._gone(joined, [name])
        return Forgotten([name])

    async def revoke(self, caller: Caller, enrolment: str) -> Forgotten:
        joined = self._with_door("")[0]
        async with recorded(self._audit, entry_of(caller, ENROLMENT_REVOKED, enrolment)):
            names = await asyncio.to_thread(joined.roster.revoke, enrolment)
            _log.info("host_enrolment_revoked", enrolment=enrolment, hosts=len(names))
            self._gone(joined, names)
        return Forgotten(names)

    def _gone(self, joined: Joined, names: list[str]) -> None:
        for name in names:
            if name in joined.hosts.hosts:
                joined.hosts.forget(name, "it was forgotten by an administrator")
            _log.info("host_forgotten", host=name)

    def _with_door(self, head: str) -> tuple[Joined, Address | None]:
        """Raises ClusterError where hosts cannot join, ConfigError where ``head`` is no address."""
        if self._joined is None:
            raise ClusterError(_NO_DOOR, code="no_door")
        try:
            return self._joined, reachable(head) if head else None
        except ValueError as error:
            raise ConfigError(f"head: {error}", code="bad_request") from None

    def _known(self, name: str) -> Joined:
        joined, _ = self._with_door("")
        if joined.roster.member(name) is None and name not in joined.hosts.hosts:
            known = ", ".join(joined.roster.names()) or "none"
            raise NotFoundError(f"no host {name} has joined; there are: {known} (obatchctl hosts)")
        return joined


def _link(made: Made, joined: Joined, head: Address | None) -> NewLink:
    return NewLink(str(joined.door.link(made.secret, head)), instant(made.until_s) or "", made.id)


def _entry(name: str, joined: Joined) -> HostEntry:
    host, member = joined.hosts.hosts.get(name), joined.roster.member(name)
    if host is None:
        joined_s = member.joined_s if member is not None else time.time()
        return _document(name, "away", "it has joined, and has not come yet", joined_s, member, None)
    return _document(name, host.state, host.reason, host.since_s, member, host)


def _document(
    name: str, state: str, reason: str, since_s: float, member: Member | None, host: JoinedHost | None
) -> HostEntry:
    servers = list(host.servers.values()) if host is not None else []
    hello = host.hello if host is not None else None
    return HostEntry(
        name=name,
        state=state,
        reason=reason,
        since=instant(since_s) or "",
        gpus=len(host.news.gpus.gpus) if host is not None and host.news is not None else 0,
        servers=len(servers),
        ready=sum(server.state.value == _READY for server in servers),
        version=hello.version if hello is not None else "",
        allocation=hello.allocation if hello is not None else "",
        drained=member.drained if member is not None else "",
        enrolment=member.enrolment if member is not None else "",
        joined_at=instant(member.joined_s) if member is not None else None,
        until=instant(member.until_s) if member is not None else None,
        clock_ahead_s=round(host.skew_s, 1) if host is not None and host.hello is not None else None,
    )
