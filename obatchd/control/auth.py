"""Who is at the other end of a Unix socket, and what they may do."""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import socket
import struct
import time
from typing import NamedTuple

from obatchd.errors import ForbiddenError
from obatchd.settings import AccessSettings

_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7)
_REMEMBER_S = 30.0  # a directory service may take long to say who is in a group


class Peer(NamedTuple):
    """The process at the other end when it connected; the pid may be somebody else's by now, so only log it."""

    pid: int
    uid: int
    gid: int


class Caller(NamedTuple):
    """Somebody who may use the daemon. Administrators may see and do everything, others what is theirs."""

    uid: int
    is_administrator: bool

    def may_see(self, owner: int) -> bool:
        """Whether what belongs to ``owner`` may be shown to, and changed by, this caller."""
        return self.is_administrator or owner == self.uid


def daemon_itself() -> Caller:
    """The daemon asking about itself."""
    return Caller(os.geteuid(), is_administrator=True)


def peer_of(descriptor: int) -> Peer:
    """The peer of a connected Unix socket, by the kernel's word (SO_PEERCRED)."""
    # A duplicate, because uvloop's transport does not offer getsockopt on the socket it owns.
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        return Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


class Access:
    """Decides who may use the daemon.

    Args:
        settings: personal mode answers the daemon's own user and root alone; service mode also the members of two
            groups, by the user database rather than by the caller's process, which may be older than the membership.
    """

    def __init__(self, settings: AccessSettings) -> None:
        self._settings = settings
        self._groups: dict[int, tuple[float, set[int]]] = {}  # of a uid, and when they were looked up (monotonic)

    @property
    def is_shared(self) -> bool:
        """Whether anybody but the daemon's own user may be answered."""
        return self._settings.mode == "service"

    async def caller(self, peer: Peer) -> Caller:
        """Who the peer is.

        Raises:
            ForbiddenError: the peer may not use the daemon, with what to do.
        """
        if peer.uid in (os.geteuid(), 0):
            return Caller(peer.uid, is_administrator=True)
        if not self.is_shared:
            raise ForbiddenError(
                f"uid {peer.uid} may not use this daemon; it answers only its own user (uid {os.geteuid()}) and root"
            )
        groups = {peer.gid} | await self._groups_of(peer.uid)
        settings = self._settings
        if group_id(settings.admin_group) in groups:
            return Caller(peer.uid, is_administrator=True)
        if group_id(settings.submit_group) in groups:
            return Caller(peer.uid, is_administrator=False)
        self._groups.pop(peer.uid, None)  # whoever is added now is not made to wait
        name = _user_name(peer.uid)
        raise ForbiddenError(
            f"{name} is not in the group {settings.submit_group} and may not use obatchd. Ask an administrator for:  "
            f"sudo usermod -aG {settings.submit_group} {name}   Then log out and in again."
        )

    async def _groups_of(self, uid: int) -> set[int]:
        looked_s, groups = self._groups.get(uid, (float("-inf"), set[int]()))
        if time.monotonic() - looked_s > _REMEMBER_S:
            groups = await asyncio.to_thread(_groups_of, uid)
            self._groups[uid] = (time.monotonic(), groups)
        return groups


def group_id(name: str) -> int | None:
    """The id of a group; None where there is no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _groups_of(uid: int) -> set[int]:
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return set()
    return set(os.getgrouplist(user.pw_name, user.pw_gid))


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
