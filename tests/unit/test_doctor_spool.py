"""What ``obatchctl doctor`` tells a user of somebody else's spool."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from obatchd.cli.doctor import host_checks, spool_checks
from obatchd.settings.settings import Settings


@pytest.mark.parametrize(
    ("may_drop", "members", "level", "text", "next_command"),
    [
        (True, [], "ok", "you may drop files", ""),
        (False, ["alice"], "bad", "log out and in again", "newgrp submitters"),
        (False, [], "bad", "only members of the group submitters", "sudo usermod -aG submitters alice"),
    ],
)
def test_a_user_of_a_service_is_told_which_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may_drop: bool, members: list[str], level: str, text: str,
    next_command: str,
) -> None:  # fmt: skip
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox").chmod(0o3730)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 4321)
    monkeypatch.setattr(os, "access", lambda path, mode: may_drop)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="alice"))
    monkeypatch.setattr(grp, "getgrgid", lambda gid: SimpleNamespace(gr_name="submitters", gr_mem=members))
    [finding] = spool_checks.directories(tmp_path)
    assert finding.level == level and text in finding.text and (finding.next_command or "") == next_command


@pytest.mark.parametrize(("euid", "owner", "home"), [(0, 4321, "service"), (0, 0, "own"), (4321, 4321, "own")])
def test_root_is_told_of_the_models_of_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, euid: int, owner: int, home: str
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "own"))
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_dir=str(tmp_path / "service")))
    spool = cast(Path, SimpleNamespace(stat=lambda: SimpleNamespace(st_uid=owner)))
    finding = host_checks.model_store(Settings(), spool)
    assert finding.text.startswith(f"{tmp_path / home}")
