"""Man pages, completions, the rules for the ports, and where obatchctl looks for a daemon."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from obatchd.cli import manual, obatchctl, port_guard
from obatchd.client import runtime
from obatchd.settings import reading


def test_the_pages_name_every_setting_and_command_and_man_accepts_them(tmp_path: Path) -> None:
    manual.main(tmp_path)
    settings = (tmp_path / "man/man5/obatchd.toml.5").read_text()
    control = (tmp_path / "man/man1/obatchctl.1").read_text().replace("\\-", "-")
    for leaf in reading.leaves():
        assert leaf.variable in settings
    for command in obatchctl.main.list_commands(None):  # type: ignore[arg-type]
        assert f".SS obatchctl {command}" in control
    assert ".SS obatchctl servers restart" in control
    assert "_obatchctl_completion" in (tmp_path / "bash-completion/completions/obatchctl").read_text()
    if shutil.which("man") is None:
        pytest.skip("man is not here")
    for page in tmp_path.glob("man/*/*"):
        shown = subprocess.run(
            ["man", "--warnings", "-P", "cat", "-l", page], capture_output=True, text=True, check=True,
            env={"PATH": os.environ["PATH"], "MANWIDTH": "200", "LANG": "C.UTF-8"},
        )  # fmt: skip
        assert shown.stderr == "" and len(shown.stdout) > 1000


def test_the_rules_let_the_daemon_and_root_through_alone() -> None:
    assert "tcp dport 11500-11563 meta skuid != { 0, 123 } reject" in port_guard.rules(123, 11500, 11563)
    assert port_guard.main(["shut"]) == 2


def test_a_service_has_fixed_ports() -> None:
    environment = {"OBATCHD_ACCESS_MODE": "service"}
    assert reading.load(None, environ=environment, flags={}).servers.base_port == 11500
    assert reading.load(None, environ={}, flags={}).servers.base_port == 0
    other = {**environment, "OBATCHD_SERVERS_BASE_PORT": "12000"}
    assert reading.load(None, environ=other, flags={}).servers.base_port == 12000


def test_guarded_ports(tmp_path: Path) -> None:
    record = tmp_path / "ports"
    assert len(runtime.guarded_ports(record)) == 0
    record.write_text('{"first": 11500, "last": 11563}')
    assert 11563 in runtime.guarded_ports(record) and 11564 not in runtime.guarded_ports(record)
    record.write_text("{")
    assert len(runtime.guarded_ports(record)) == 0


def test_a_users_own_daemon_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(runtime, "SYSTEM_SPOOL", tmp_path / "system")
    assert runtime.default_spool() == tmp_path / "system"
    (tmp_path / "obatch").mkdir()
    assert runtime.default_spool() == tmp_path / "obatch"
    (tmp_path / "system").mkdir()
    assert runtime.default_spool() == tmp_path / "system"
    (tmp_path / "obatch" / runtime.RECORD).write_text("{}")
    assert runtime.default_spool() == tmp_path / "obatch"


def test_the_spool_that_variables_name_is_that_of_obatchctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OBATCH_SPOOL", raising=False)
    monkeypatch.setenv("OBATCHD_SPOOL", "/srv/own")
    assert runtime.spool_of_variables() == Path("/srv/own")
    monkeypatch.setenv("OBATCH_SPOOL", "~/batch")
    assert runtime.spool_of_variables() == Path.home() / "batch"
