"""Who is at the other end of a Unix socket, and whether they may use it."""

from __future__ import annotations

import os
import socket
import struct
from typing import NamedTuple

from obatchd.errors import ForbiddenError

_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7)


class Peer(NamedTuple):
    """The process at the other end when it connected; the pid may be somebody else's by now, so only log it."""

    pid: int
    uid: int
    gid: int


def peer_of(descriptor: int) -> Peer:
    """The peer of a connected Unix socket, by the kernel's word (SO_PEERCRED)."""
    # A duplicate, because uvloop's transport does not offer getsockopt on the socket it owns.
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        return Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def require_owner(peer: Peer) -> None:
    """Personal mode: only the daemon's own user and root.

    Raises:
        ForbiddenError: the peer is somebody else.
    """
    if peer.uid not in (os.geteuid(), 0):
        raise ForbiddenError(
            f"uid {peer.uid} may not use this daemon; it answers only its own user (uid {os.geteuid()}) and root"
        )
