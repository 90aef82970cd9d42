"""Ports for tests that run side by side."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile
from pathlib import Path


class _Ports:
    """Ports of this process alone, below those that the kernel gives to clients: tests run side by side, and a daemon
    that is killed must find its port again. Each port is handed out late again, once all others were."""

    _FIRST, _LAST, _BLOCK = 20000, 32000, 240

    def __init__(self) -> None:
        self._lock, self._first = self._claim()
        self._next = self._first

    def _claim(self) -> tuple[int, int]:
        """A block that no other process of tests has; the lock on its file ends with this process."""
        directory = Path(tempfile.gettempdir(), f"obatchd-test-ports-{os.getuid()}")
        directory.mkdir(exist_ok=True)
        for first in range(self._FIRST, self._LAST, self._BLOCK):
            lock = os.open(directory / str(first), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
            else:
                return lock, first
        raise AssertionError("too many processes test at a time")

    def take(self, count: int) -> int:
        for _ in range(self._BLOCK):
            if self._next + count > self._first + self._BLOCK:
                self._next = self._first
            first, self._next = self._next, self._next + count
            with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                return first
        raise AssertionError("no free ports")


_ports: list[_Ports] = []


def free_ports(count: int) -> int:
    """The first of ``count`` consecutive ports that nobody uses now, and no other process of tests will."""
    if not _ports:
        _ports.append(_Ports())
    return _ports[0].take(count)
