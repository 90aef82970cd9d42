"""What ``obatchctl doctor`` says of a system service: systemd's part in it, and what its own user may do."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from obatchd.cli.doctor import spool_checks, store_checks
from obatchd.client import runtime
from obatchd.settings.settings import Settings

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


# What keeps the daemon's user out keeps root out of nothing, so these need root to become that user.
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory that everybody may enter, unlike those of pytest."""
    place = Path(tempfile.mkdtemp(dir="/var/tmp"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def nobodys(disk: Path, systemd: Systemd) -> Path:
    """The spool of a service of the user nobody."""
    systemd(ProtectSystem="no")
    spool = disk / "spool"
    nobody = pwd.getpwnam("nobody")
    for name in ("", "inbox", "work", "outbox", "failed"):
        (spool / name).mkdir()
        os.chown(spool / name, nobody.pw_uid, nobody.pw_gid)
    (spool / "inbox").chmod(0o3730)
    return spool


def models(spool: Path, store: Path) -> tuple[str, str, str]:
    settings = Settings.model_validate({"servers": {"models_dir": str(store)}})
    [line] = store_checks.model_store(settings, spool, spool / "work/models")
    return line.level, line.text, line.next_command


@as_root
def test_root_is_told_what_the_daemons_user_may_not_do_with_the_store(nobodys: Path, disk: Path) -> None:
    """Before, root was asked what root may do, and all was well while no server could start."""
    level, text, command = models(nobodys, disk / "modles")
    assert level == "bad" and command == f"sudo install -d -o nobody {disk / 'modles'}"
    assert text == (
        f"there is no directory {disk / 'modles'}, and nobody, the daemon's user, may not make it in {disk}, so no "
        "server can start"
    )
    store = disk / "models"
    store.mkdir()
    level, text, command = models(nobodys, store)
    assert (level, command) == ("bad", f"ls -ld {store}") and text.endswith("to write, so no server can start")
    (store / "blobs").mkdir()
    level, text, _ = models(nobodys, store)
    assert level == "warn" and text.endswith("not nobody's to write, so nothing can be pulled or removed")
    store.chmod(0o777)
    assert models(nobodys, store)[0] != "bad"
    store.chmod(0o700)
    level, text, command = models(nobodys, store)
    assert (level, command) == ("bad", f"namei -l {store}") and "may not look into" in text


@as_root
def test_a_store_that_the_unit_shuts_is_named_with_the_way_to_open_it(
    nobodys: Path, disk: Path, systemd: Systemd
) -> None:
    """Before, all was well for doctor, and no server started: its unit lets a service write to its spool alone."""
    opened, store = str(nobodys), disk / "models"
    disk.chmod(0o777)
    moved = {"ProtectSystem": "strict", "StateDirectory": "obatch"}
    systemd(ReadWritePaths=opened, **moved)
    # A path that is not there must not stand in ReadWritePaths.
    assert models(nobodys, store)[2] == f"sudo install -d -o nobody {store}"
    store.mkdir()
    store.chmod(0o777)
    level, text, command = models(nobodys, store)
    assert (level, command) == ("bad", "sudo systemctl edit obatchd")
    assert "no server can start. Write these two lines into its unit, and restart it: [Service] and R" in text
    assert text.endswith(f"ReadWritePaths={store}")
    (store / "blobs").mkdir()
    level, text, _ = models(nobodys, store)
    assert level == "warn" and "only read there, so nothing can be pulled or removed" in text
    systemd(ReadWritePaths=f"{opened} -{disk}", **moved)
    assert models(nobodys, store)[0] == models(nobodys, nobodys / "work")[0] != "bad"


@as_root
def test_a_directory_that_is_not_the_daemons_is_told_to_root(nobodys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, the spool was writable, for root is, and the daemon refused to start on it."""
    assert [line.level for line in spool_checks.directories(nobodys)] == ["ok"]
    os.chown(nobodys / "inbox", 0, 0)
    monkeypatch.setattr(runtime, "SYSTEM_SPOOL", nobodys)
    [line] = spool_checks.directories(nobodys)
    assert (line.level, line.next_command) == ("bad", "sudo systemd-tmpfiles --create obatch.conf")
    assert line.text == f"{nobodys / 'inbox'} is not nobody's to read and write; it must be the daemon's"
