"""What ``obatchctl doctor`` says of a system service: systemd's part in it, and what its own user may do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from obatchd.cli.doctor import spool_checks
from obatchd.client import runtime

Systemd = Callable[..., None]
REPAIR = "sudo systemctl reset-failed obatchd && sudo systemctl start obatchd"


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    """Says what systemctl and journalctl tell from now on."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")

    def tells(log: str = "", **properties: str) -> None:
        told = "".join(f"{key}={value}\n" for key, value in {"LoadState": "loaded", **properties}.items())
        for name, text in (("systemctl", told), ("journalctl", log)):
            (programs / name).write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
            (programs / name).chmod(0o755)

    return tells


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """The spool of a service."""
    (tmp_path / "spool/inbox").mkdir(parents=True)
    (tmp_path / "spool/inbox").chmod(0o3730)
    return tmp_path / "spool"


def test_a_service_that_systemd_has_given_up_is_repaired_first(spool: Path, systemd: Systemd) -> None:
    """Before, the advice was a plain start, which systemd refused: start request repeated too quickly."""
    systemd("obatchd: /var/spool/obatch/inbox cannot be read.", ActiveState="failed")
    error = runtime.daemon_down(spool)
    words = "it failed, and systemd has given up on it; its last words: /var/spool/obatch/inbox cannot be read."
    assert words[1:] in error.message and error.message.endswith(f"cannot be read. After the repair: {REPAIR}")
    [line] = spool_checks.daemon(spool, error)
    assert (line.level, line.next_command) == ("bad", REPAIR) and line.text.endswith(words)
    systemd("", ActiveState="failed")
    assert "systemd has given up on it. After the repair: sudo" in runtime.daemon_down(spool).message


def test_a_service_that_was_stopped_is_started(spool: Path, systemd: Systemd) -> None:
    systemd("obatchd: bye", ActiveState="inactive")
    error = runtime.daemon_down(spool)
    assert error.message.endswith("nothing is lost. To start it: sudo systemctl start obatchd")
    [line] = spool_checks.daemon(spool, error)
    assert (line.level, line.next_command) == ("warn", "sudo systemctl start obatchd")
    systemd(ActiveState="failed", LoadState="not-found")  # a service of another kind, as in a container
    assert runtime.start_command(spool) == "sudo systemctl start obatchd"
