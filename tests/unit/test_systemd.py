from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from obatchd.daemon import systemd


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        monkeypatch.chdir(tmp_path)  # keeps the address short
        receiver.bind("notify")
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "notify")
        yield receiver


def test_what_is_sent(manager: socket.socket) -> None:
    systemd.ready("watching")
    assert manager.recv(999) == b"READY=1\nSTATUS=watching"
    systemd.status("3 servers")
    assert manager.recv(999) == b"STATUS=3 servers"
    systemd.watchdog()
    assert manager.recv(999) == b"WATCHDOG=1"
    systemd.stopping("bye")
    assert manager.recv(999) == b"STOPPING=1\nSTATUS=bye"
    systemd.reloading()
    first, second = manager.recv(999).decode().split("\n")
    assert first == "RELOADING=1"
    assert int(second.removeprefix("MONOTONIC_USEC=")) > 0


def test_abstract_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"obatchd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        systemd.watchdog()
        assert receiver.recv(99) == b"WATCHDOG=1"


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.watchdog()
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    systemd.watchdog()


def test_watchdog_interval_is_half_of_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert systemd.watchdog_interval_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert systemd.watchdog_interval_s() == 15
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert systemd.watchdog_interval_s() is None
