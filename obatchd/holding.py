"""A file that one process holds at a time. The kernel lets go of it however that process ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_PID_BYTES = 32


class HeldError(Exception):
    """Another process holds the file; ``pid``: which, as text."""

    def __init__(self, pid: str) -> None:
        super().__init__(f"held by pid {pid}")
        self.pid = pid


def hold(file: Path) -> int:
    """Hold ``file``, which is made where it is missing, and write our pid into it. Returns the descriptor to close.

    Raises HeldError where another process holds it, OSError where it cannot be locked, as on some network file systems.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        holder = os.pread(descriptor, _PID_BYTES, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise HeldError(holder or "unknown") from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
