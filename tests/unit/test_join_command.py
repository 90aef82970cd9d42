"""``obatchd-join`` as root: for the service of this machine, which is started with what it now has."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from obatchd.cli import join as command
from obatchd.cluster import joining
from obatchd.cluster.host import directory
from obatchd.cluster.joining import Joined
from obatchd.cluster.keeping import with_table
from obatchd.cluster.links import Link
from obatchd.settings.addresses import Address

LINK = f"obatch://10.0.0.1:7700/#{'s' * 43}.{'0a' * 32}"


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with the service, all below one directory; what systemctl is asked for stands in ``asked``."""
    monkeypatch.delenv("OBATCH_HOST_DIR", raising=False)
    monkeypatch.setattr(directory, "SERVICE_DIRECTORY", tmp_path / "var")
    monkeypatch.setattr(directory, "SERVICE_FILE", tmp_path / "etc" / "host.toml")
    monkeypatch.setattr(directory, "default_directory", lambda: tmp_path / "var")
    owner = SimpleNamespace(pw_uid=os.geteuid(), pw_gid=os.getegid())
    monkeypatch.setattr(command.pwd, "getpwnam", {"obatch": owner}.__getitem__)
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(command, "_SYSTEMD", tmp_path / "run")
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\n[ ! -e {tmp_path}/broken ] || exit 5\n')
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{systemctl.parent}:{os.environ['PATH']}")

    async def join(link: Link, name: str, machine: str) -> Joined:
        return Joined(name, Address("10.0.0.1", 7700), link.fingerprint, "the-credential")

    monkeypatch.setattr(joining, "join", join)
    return tmp_path


def test_root_makes_the_service_a_host(service: Path) -> None:
    done = CliRunner().invoke(command.main, [LINK, "--name", "node07"])
    assert done.exit_code == 0, done.output
    credential, file = service / "var" / "credential", service / "etc" / "host.toml"
    assert credential.read_text() == "the-credential\n" and stat.S_IMODE(credential.stat().st_mode) == 0o600
    assert stat.S_IMODE(credential.parent.stat().st_mode) == 0o700
    assert 'name = "node07"' in file.read_text() and "the-credential" not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert (service / "asked").read_text().splitlines() == [
        "enable obatchd-host.service", "restart obatchd-host.service",
    ]  # fmt: skip
    assert "obatchctl hosts" in done.output


def test_a_service_that_does_not_start_is_told(service: Path) -> None:
    (service / "broken").touch()
    done = CliRunner().invoke(command.main, [LINK, "--name", "node07"])
    assert done.exit_code == 1 and "it has joined, but systemctl enable obatchd-host.service failed" in done.output


def test_without_the_package_root_is_told(service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.pwd, "getpwnam", {}.__getitem__)
    done = CliRunner().invoke(command.main, [LINK])
    assert done.exit_code == 1 and "install the package" in done.output and not (service / "var").exists()


def test_without_systemd_it_says_what_to_type_later(service: Path) -> None:
    (service / "run").rmdir()
    done = CliRunner().invoke(command.main, [LINK, "--name", "node07"])
    assert done.exit_code == 0 and "systemctl enable --now obatchd-host.service" in done.output


def test_a_directory_that_is_a_link_is_refused_before_the_code_is_used(service: Path) -> None:
    (service / "elsewhere").mkdir()
    (service / "var").symlink_to(service / "elsewhere")
    done = CliRunner().invoke(command.main, [LINK, "--name", "node07"])
    assert done.exit_code == 1 and "is a link" in done.output
    assert list((service / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", '\n[cluster]\nhead = "x"\n'),
        ('[cluster] # ours\nhead="old"\nlease_s = 5\n[gpus]\nname = 1\n',
         '[cluster] # ours\nhead = "x"\nlease_s = 5\n[gpus]\nname = 1\n'),
        ("use = 1\n", 'use = 1\n\n[cluster]\nhead = "x"\n'),
    ],
)  # fmt: skip
def test_the_table_is_put_where_it_belongs(before: str, after: str) -> None:
    assert with_table(before, {"head": "x"}) == after
