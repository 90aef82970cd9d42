"""What ``obatchctl doctor`` tells a user of somebody else's spool."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from settings_support import nobody

from obatchd.cli.doctor import host_checks, spool_checks
from obatchd.cli.doctor.doctor import examine
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


@pytest.mark.parametrize("home", [None, ""])
def test_a_page_without_a_home_or_an_entry_in_passwd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    nobody(monkeypatch, home)
    found = {result.about: result for result in examine(tmp_path, None)}
    assert found["models"].text.startswith(str(tmp_path / "work/models")) and {"spool", "disk"} <= found.keys()
    config = tmp_path / "obatchd.toml"
    config.write_text('[servers]\nmodels_dir = "~/models"\n')
    models = next(result for result in examine(tmp_path, config) if result.about == "models")
    assert (models.level, "the home directory is not known" in models.text) == ("bad", True)


def test_an_ollama_that_needs_a_home_tells_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody(monkeypatch)
    program = tmp_path / "ollama"
    program.write_text(
        '#!/bin/sh\n[ -n "$HOME" ] && echo client version is 0.24.0 || echo "panic: \\$HOME is not defined"\n'
    )
    program.chmod(0o755)
    finding = host_checks.ollama(Settings(servers={"ollama": str(program)}))
    assert (finding.level, finding.text) == ("ok", f"0.24.0 at {program}")


@pytest.mark.parametrize("decoy", ["obatchd/__init__.py", "pynvml.py", "json.py"])
def test_the_driver_is_asked_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoy: str) -> None:
    (tmp_path / decoy).parent.mkdir(exist_ok=True)
    (tmp_path / decoy).write_text("raise RuntimeError('from the current directory')\n")
    monkeypatch.chdir(tmp_path)
    assert "usable NVIDIA driver" in host_checks.driver(Settings()).text


def test_a_program_that_cannot_be_imported_is_no_fault_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_checks, "_run", lambda command: "Traceback …\nModuleNotFoundError: No module named 'x'\n")
    finding = host_checks.driver(Settings())
    assert (finding.level, "nvidia-smi" in finding.next_command) == ("bad", False)
    assert "No module named 'x'" in finding.text and "installation is incomplete" in finding.text
