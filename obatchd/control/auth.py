"""The peer of a Unix socket, and its rights."""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import socket
import struct
import time
from typing import NamedTuple

from attrs import define, field

from obatchd.documents.audit import ITSELF
from obatchd.errors import ForbiddenError
from obatchd.settings.tables.people import AccessSettings

_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7)
_REMEMBER_S = 30.0  # a directory service may take long to say who is in a group


class Peer(NamedTuple):
    """The process at the other end when it connected; the pid may be somebody else's by now, so only log it."""

    pid: int
    uid: int
    gid: int


class Origin(NamedTuple):
    """Where a caller comes from, for the audit log. A ``door`` is one of :mod:`obatchd.documents.audit`."""

    door: str = ITSELF
    address: str = ""  # of the other end of HTTP
    pid: int = 0  # of the other end of a socket
    key: str = ""  # its id, or that of a session of the page
    key_label: str = ""


_NOWHERE = Origin()


class Caller(NamedTuple):
    """Somebody who may use the daemon. Administrators may see and do everything, others only their own jobs."""

    uid: int
    is_administrator: bool
    origin: Origin = _NOWHERE

    def may_see(self, owner: int) -> bool:
        """Whether this caller may see and change a job of ``owner``."""
        return self.is_administrator or owner == self.uid


class _User(NamedTuple):
    """Answers of the user database. They may take long, so a thread asks, and they are remembered."""

    looked_s: float  # monotonic
    name: str
    groups: set[int]
    admin_gid: int | None
    submit_gid: int | None


def daemon_itself() -> Caller:
    """The daemon asking about itself."""
    return Caller(os.geteuid(), is_administrator=True)


def peer_of(descriptor: int) -> Peer:
    """The peer of a connected Unix socket, by the kernel's word (SO_PEERCRED)."""
    # A duplicate, because uvloop's transport does not offer getsockopt on the socket it owns.
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        return Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


@define(eq=False)
class Access:
    """Decides who may use the daemon.

    Personal mode answers the daemon's own user and root alone; service mode also the members of two groups, by the
    user database rather than by the caller's process, which may be older than the membership.
    """

    _settings: AccessSettings
    _users: dict[int, _User] = field(factory=dict, init=False)

    @property
    def is_shared(self) -> bool:
        """Whether anybody but the daemon's own user may be answered."""
        return self._settings.mode == "service"

    @property
    def admin_group(self) -> str:
        """The group whose members are administrators."""
        return self._settings.admin_group

    async def caller(self, peer: Peer) -> Caller:
        """The peer as a caller.

        Raises:
            ForbiddenError: the peer may not use the daemon, with what to do.
        """
        if peer.uid in (os.geteuid(), 0):
            return Caller(peer.uid, is_administrator=True)
        if not self.is_shared:
            raise ForbiddenError(
                f"uid {peer.uid} may not use this daemon; it answers only its own user (uid {os.geteuid()}) and root"
            )
        known = await self._known(peer.uid)
        groups = {peer.gid} | known.groups
        if known.admin_gid in groups:
            return Caller(peer.uid, is_administrator=True)
        if known.submit_gid in groups:
            return Caller(peer.uid, is_administrator=False)
        self._users.pop(peer.uid, None)  # whoever is added now is not made to wait
        wanted = self._settings.submit_group
        if known.submit_gid is None:
            raise ForbiddenError(
                f"{known.name} may not use obatchd: there is no group {wanted} on this host, which its configuration "
                f"names (access.submit_group). Ask an administrator for:  sudo groupadd --system {wanted}"
            )
        raise ForbiddenError(
            f"{known.name} is not in the group {wanted} and may not use obatchd. Ask an administrator for:  "
            f"sudo usermod -aG {wanted} {known.name}   Then log out and in again."
        )

    async def _known(self, uid: int) -> _User:
        user = self._users.get(uid)
        if user is None or time.monotonic() - user.looked_s > _REMEMBER_S:
            user = self._users[uid] = await asyncio.to_thread(self._look_up, uid)
        return user

    def _look_up(self, uid: int) -> _User:
        try:
            user = pwd.getpwuid(uid)
            name, groups = user.pw_name, set(os.getgrouplist(user.pw_name, user.pw_gid))
        except KeyError:
            name, groups = f"uid {uid}", set()
        gids = group_id(self._settings.admin_group), group_id(self._settings.submit_group)
        return _User(time.monotonic(), name, groups, *gids)


def group_id(name: str) -> int | None:
    """The id of a group; None where there is no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
