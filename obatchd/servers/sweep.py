"""Ending processes that an earlier daemon left behind: servers, and runners whose server is gone but which hold VRAM.

Ollama's runners have no death signal and survive a SIGKILL of their server, so a process is recognised by the mark
that it inherited in its environment, never by name, and killed by pidfd, so that a reused pid cannot be hit.
"""

from __future__ import annotations

import os
import select
import signal
import time

import psutil

import obatchd.log
from obatchd.servers.environment import INSTANCE_MARK, SERVER_MARK

log = obatchd.log.get(__name__)

_ROUNDS = 5  # a process may start another between the look and the kill


def sweep(instance: str, *, timeout_s: float = 10.0) -> list[int]:
    """Kill every process of our uid that carries the mark of this spool, and wait until they are gone; their pids.

    One that is stuck in the kernel is reported in the log and left.
    """
    killed: list[int] = []
    deadline_s = time.monotonic() + timeout_s
    for _ in range(_ROUNDS):
        held = [fd for process in marked(instance) if (fd := _kill(process, killed)) is not None]
        if not held:
            break
        if stuck := _wait_gone(held, deadline_s):
            remedy = "it does not react to SIGKILL: look at dmesg, reboot the host"
            log.error("orphan_stuck", count=stuck, remedy=remedy)
            break
    return killed


def marked(instance: str) -> list[psutil.Process]:
    """Living processes of our uid with the mark of this spool."""
    return [process for process in psutil.process_iter() if is_marked(process, instance)]


def is_marked(process: psutil.Process, instance: str) -> bool:
    try:
        return (
            process.pid != os.getpid()
            and process.uids().real == os.getuid()
            and process.environ().get(INSTANCE_MARK) == instance
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except (psutil.Error, OSError):
        return False  # gone, or not ours to read


def _kill(process: psutil.Process, killed: list[int]) -> int | None:
    """SIGKILL one process; a descriptor that becomes readable when it is gone."""
    try:
        server = process.environ().get(SERVER_MARK, "")
        fd = os.pidfd_open(process.pid)
    except (psutil.Error, OSError):
        return None
    try:
        if not process.is_running():  # compares the start time: the pid may have changed hands before the open
            raise ProcessLookupError
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except OSError:
        os.close(fd)
        return None
    killed.append(process.pid)
    log.warning("orphan_killed", pid=process.pid, server=server)
    return fd


def _wait_gone(fds: list[int], deadline_s: float) -> int:
    """Wait until all pidfds are readable and close them; how many still live at the deadline."""
    poll = select.poll()
    waiting = set(fds)
    for fd in fds:
        poll.register(fd, select.POLLIN)
    while waiting and (left_s := deadline_s - time.monotonic()) > 0:
        for fd, _ in poll.poll(left_s * 1000):
            poll.unregister(fd)
            waiting.discard(fd)
    for fd in fds:
        os.close(fd)
    return len(waiting)
