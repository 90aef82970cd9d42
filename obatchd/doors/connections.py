"""Connections of one door: so many, of each address or user so many, and none that says nothing for long."""

from __future__ import annotations

import contextlib
import ipaddress
import resource
import socket
from collections import Counter
from collections.abc import Callable

_IN_ALL = 512
_OF_ONE = 128
_SHARE = 4  # of the files that the process may have open, the most for the connections of one door: one in so many


class Crowd:
    """The connections of one door. ``whose`` names the user or the address behind one, and may raise OSError."""

    def __init__(self, whose: Callable[[socket.socket], str]) -> None:
        self._whose = whose
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._in_all = _IN_ALL if files == resource.RLIM_INFINITY else min(_IN_ALL, files // _SHARE)
        self._open: Counter[str] = Counter()
        self._silent: dict[socket.socket, None] = {}  # that have made no call yet, the oldest first

    def enter(self, connection: socket.socket) -> str | None:
        """Count a new connection; whose it is, or None where there are too many. Raises OSError where it has gone."""
        who = self._whose(connection)
        # Behind the loopback address is everybody on this host, and every proxy.
        if self._open[who] >= (self._in_all if _is_loopback(who) else _OF_ONE) or self._open.total() >= self._in_all:
            return None
        if self._open.total() == self._in_all - 1 and self._silent:
            self.close_if_silent(next(iter(self._silent)))  # room for one that says something
        self._open[who] += 1
        self._silent[connection] = None
        return who

    def leave(self, who: str, connection: socket.socket) -> None:
        self._open[who] -= 1
        if not self._open[who]:
            del self._open[who]
        self._silent.pop(connection, None)

    def spoke(self, connection: socket.socket) -> None:
        """It has made a call."""
        self._silent.pop(connection, None)

    def close_if_silent(self, connection: socket.socket) -> None:
        """End a connection that has made no call; its transport, or the handshake of TLS, then sees that it is over."""
        if connection in self._silent:
            del self._silent[connection]
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def address_of(connection: socket.socket) -> str:
    """The address behind a connection over TCP; raises OSError where it has gone."""
    return str(connection.getpeername()[0])


def _is_loopback(who: str) -> bool:
    try:
        return ipaddress.ip_address(who).is_loopback
    except ValueError:
        return False
