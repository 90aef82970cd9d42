"""Tells systemd how the daemon is doing (sd_notify(3)); does nothing where no service manager listens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time

from obatchd.control.auth import daemon_itself
from obatchd.control.operations import HostOperations
from obatchd.servers.states import ServerState
from obatchd.words import counted

STATUS_S = 5.0


def _send(*assignments: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # systemd's notation for Linux's abstract namespace
        address = "\0" + address[1:]
    # As libsystemd: a service manager that cannot be told is no reason to fail.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto("\n".join(assignments).encode(), address)


def ready(status_text: str) -> None:
    """The daemon works: sockets are open and the first look at the inbox is done; also ends ``reloading``."""
    _send("READY=1", f"STATUS={status_text}")


def status(text: str) -> None:
    """One line for ``systemctl status``."""
    _send(f"STATUS={text}")


def reloading() -> None:
    """Settings are being read again; ``ready`` must follow."""
    _send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping(status_text: str) -> None:
    """The daemon has begun to stop."""
    _send("STOPPING=1", f"STATUS={status_text}")


def watchdog() -> None:
    """The daemon is alive."""
    _send("WATCHDOG=1")


def watchdog_interval_s() -> float | None:
    """Seconds between two ``watchdog`` calls (half of what systemd allows); ``None`` when it does not watch."""
    limit_us = os.environ.get("WATCHDOG_USEC", "")
    if not limit_us.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(limit_us) / 2_000_000 or None


async def beat() -> None:
    """WATCHDOG while this loop turns, and nothing else: there are no parts now to tell of."""
    while True:
        watchdog()
        await asyncio.sleep(_period_s())


async def tell(host: HostOperations) -> None:
    """STATUS for ``systemctl status``, and WATCHDOG while this loop turns."""
    told_s = float("-inf")
    while True:
        watchdog()
        if time.monotonic() - told_s >= STATUS_S:
            told_s = time.monotonic()
            status(_status_line(host))
        await asyncio.sleep(_period_s())


def _period_s() -> float:
    interval_s = watchdog_interval_s()
    return min(interval_s / 2 if interval_s else STATUS_S, STATUS_S)


def _status_line(host: HostOperations) -> str:
    status = host.status(daemon_itself())
    ready = sum(1 for server in status.servers if server.state == ServerState.READY)
    queue = status.queue
    line = (
        f"{status.state}: {ready} of {len(status.servers)} servers ready, {counted(queue.jobs, 'job')}, "
        f"{queue.finished:,} of {queue.total:,} requests"
    )
    if not (left := queue.total - queue.finished) or not queue.requests_per_s:
        return line
    ends_s = time.time() + left / queue.requests_per_s
    return f"{line}, ETA {time.strftime('%a %H:%M', time.localtime(ends_s))}"
