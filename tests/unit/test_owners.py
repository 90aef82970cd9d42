"""Directories per owner, and what one owner may have open."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from obatchd.errors import SpoolError
from obatchd.intake.limits import OwnerLimits
from obatchd.live.job import LiveJob
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.settings.tables.limits import LimitSettings
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
    import pwd

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
    now[0] += 3

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
