"""Tells systemd how the daemon is doing (sd_notify(3)); does nothing where no service manager listens."""

from __future__ import annotations

import os
import socket
import time


def _send(*assignments: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # systemd's notation for Linux's abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(assignments).encode(), address)
    except OSError:
        pass  # as libsystemd: a service manager that cannot be told is no reason to fail


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
