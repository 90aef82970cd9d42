"""Directories per owner, and what one owner may have open."""

from __future__ import annotations

import errno
import os
import pwd
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from spool_support import Disk

from obatchd.errors import SpoolError
from obatchd.intake.limits import OwnerLimits
from obatchd.live.job import LiveJob
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.settings.tables.spool import LimitSettings
from obatchd.spool.drop import Drop
from obatchd.spool.inbox import Inbox
from obatchd.spool.layout import Layout
from obatchd.spool.owners import OwnerDirectories

ME = os.geteuid()


def test_a_service_has_a_directory_per_owner_and_its_files_inherit_the_list(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path, OwnerDirectories(admin_gid=54321))
    assert layout.outbox.stat().st_mode & 0o777 == 0o711
    layout.make_owner(12345)
    layout.make_owner(12345)
    box = layout.outbox_dir("job", b"a.jsonl", 12345)
    assert box.parent == layout.outbox / "12345"
    box.mkdir()
    (box / "summary.json").write_text("{}")
    for path in (box.parent, box, box / "summary.json", layout.failed / "12345"):
        assert path.stat().st_mode & 0o007 == 0, path
        granted = os.getxattr(path, "system.posix_acl_access")
        assert (12345).to_bytes(4, "little") in granted and (54321).to_bytes(4, "little") in granted
    assert list(layout.outbox_dirs()) == [box]


def test_the_name_of_an_owner_is_a_link(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path, OwnerDirectories(None))
    name = pwd.getpwuid(ME).pw_name
    (layout.outbox / name).symlink_to("4711")  # of somebody who had the name before
    layout.make_owner(ME)
    assert os.readlink(layout.outbox / name) == str(ME)


def test_a_file_system_without_lists_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(SpoolError, match="access control lists") as caught:
        Layout.open(tmp_path, OwnerDirectories(None))
    assert caught.value.code == "no_acl"


def test_a_directory_that_cannot_be_prepared_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(SpoolError, match="outbox cannot be prepared for its users: Disk quota exceeded") as caught:
        Layout.open(tmp_path, OwnerDirectories(None))
    assert caught.value.code == "spool"
    assert not list((tmp_path / "outbox").iterdir()), "the trial leaves nothing"


def test_a_trial_that_a_killed_daemon_left_behind_hinders_nobody(tmp_path: Path) -> None:
    (tmp_path / "outbox" / ".acl").mkdir(parents=True)
    layout = Layout.open(tmp_path, OwnerDirectories(None))
    assert not list(layout.outbox.iterdir())


ACL_ENTRIES = [  # acl(5): tag, permissions, whom it is for
    (0x01, 7, None), (0x02, 5, 12345), (0x04, 0, None), (0x08, 5, 54321), (0x10, 5, None), (0x20, 0, None)
]  # fmt: skip


@pytest.mark.parametrize("admin_gid", [54321, None])
def test_an_owner_may_read_and_enter_administrators_may_and_nobody_else(tmp_path: Path, admin_gid: int | None) -> None:
    """The list itself, as the kernel keeps it. Another owner's results would be the prompts of somebody else."""
    layout = Layout.open(tmp_path, OwnerDirectories(admin_gid))
    layout.make_owner(12345)
    wanted = [entry for entry in ACL_ENTRIES if admin_gid is not None or entry[0] != 0x08]
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        packed = os.getxattr(layout.outbox / "12345", name)
        assert packed[:4] == (2).to_bytes(4, "little")
        entries = [struct.unpack_from("<HHI", packed, start) for start in range(4, len(packed), 8)]
        assert [(tag, allowed, None if who == 2**32 - 1 else who) for tag, allowed, who in entries] == wanted


def test_nobody_sees_a_directory_before_it_has_its_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout.open(tmp_path, OwnerDirectories(None))

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "setxattr", killed)
        layout.make_owner(12345)
    assert not (layout.outbox / "12345").exists()
    [unfinished] = layout.outbox.iterdir()
    assert unfinished.stat().st_mode & 0o777 == 0o700
    layout.make_owner(12345)
    assert os.getxattr(layout.outbox / "12345", "system.posix_acl_default")
    assert [path.name for path in layout.outbox.iterdir()] == ["12345"]


def test_a_new_directory_is_durable_before_results_are_put_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout.open(tmp_path, OwnerDirectories(None))
    disk = Disk(monkeypatch)
    layout.make_owner(12345)
    assert disk.order == [layout.outbox, layout.failed]
    layout.make_owner(12345)
    assert len(disk.order) == 2, "what is there costs nothing"


@pytest.mark.parametrize("name", ["4712", "../alice", ".ssh"])
def test_a_name_that_could_be_taken_for_another_place_gets_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Names come from whatever directory service the host asks."""
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name=name))
    layout = Layout.open(tmp_path, OwnerDirectories(None))
    layout.make_owner(4711)
    assert [path.name for path in layout.outbox.iterdir()] == ["4711"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["failed", "inbox", "outbox", "work"]


def test_a_link_is_made_once_and_never_in_the_place_of_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="alice"))
    layout = Layout.open(tmp_path, OwnerDirectories(None))
    (layout.outbox / "alice").mkdir()
    layout.make_owner(4711)
    assert not (layout.outbox / "alice").is_symlink()
    link = layout.failed / "alice"
    made = link.lstat().st_ino
    layout.make_owner(4711)
    assert (os.readlink(link), link.lstat().st_ino) == ("4711", made)


def test_what_is_no_directory_of_an_owner_holds_no_jobs(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path, OwnerDirectories(None))
    layout.make_owner(12345)
    (layout.outbox / "12345" / "drop.job").mkdir()
    (layout.outbox / "12345" / "note.txt").write_text("")
    (layout.outbox / "12346").write_text("")
    (layout.outbox / "lost+found" / "inside").mkdir(parents=True)
    (layout.outbox / "alice").symlink_to("12345")
    assert [path.name for path in layout.outbox_dirs()] == ["drop.job"]


def test_a_personal_outbox_is_flat(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path)
    layout.make_owner(12345)
    assert layout.outbox_dir("job", b"a.jsonl", 12345).parent == layout.outbox
    assert not list(layout.outbox.iterdir())


def live(owner: int, size: int, requests: int) -> LiveJob:
    row = SimpleNamespace(owner=owner, size=size)
    return cast(LiveJob, SimpleNamespace(row=row, requests=requests, finished=0))


@pytest.mark.parametrize(
    ("settings", "setting"),
    [({"open_jobs": 3}, "open_jobs"), ({"open_bytes": 250}, "open_bytes"), ({"open_requests": 20}, "open_requests")],
)
def test_limits_hold_up_one_owner_alone(settings: dict[str, int], setting: str) -> None:
    limits = OwnerLimits(LimitSettings(**settings), [live(1, 100, 10), live(1, 100, 10), live(2, 1, 1)])
    answers = [limits.room(1, 50) for _ in range(3)]
    assert setting in answers[-1]
    assert limits.room(2, 50) == ""


def test_no_limit_and_a_drop_larger_than_the_limit() -> None:
    assert OwnerLimits(LimitSettings(), [live(1, 100, 10)] * 1000).room(1, 10**12) == ""
    assert OwnerLimits(LimitSettings(open_bytes=10), []).room(1, 1000) == ""


def test_what_has_to_wait_keeps_nobody_else_back(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path)
    now = [100.0]
    inbox = Inbox(layout, Current(Settings.model_validate({"inbox": {"claim_batch": 2}})), clock=lambda: now[0])
    for name in ("a", "b", "c", "d"):
        (layout.inbox / f"{name}.json").write_text("{}")
        os.utime(layout.inbox / f"{name}.json", (ord(name), ord(name)))
    inbox.scan()
    now[0] += 30

    def hindrance(drop: Drop) -> str:
        return "too many" if drop.name in (b"a.json", b"b.json") else ""

    report = inbox.scan(hindrance)
    assert [drop.label for drop in report.ready] == ["c.json", "d.json"]
    assert [(held.name, held.reason, held.owner) for held in report.blocked] == [
        ("a.json", "too many", ME),
        ("b.json", "too many", ME),
    ]
    now[0] += 3
    assert {drop.label for drop in inbox.scan().ready} >= {"a.json", "b.json"}
