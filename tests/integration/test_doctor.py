from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from control_support import obatchctl, serving

from obatchd.cli.doctor import spool_checks
from obatchd.cli.doctor.doctor import examine


async def findings(spool: Path, *arguments: str | Path) -> dict[str, dict[str, Any]]:
    """Doctor's lines by what they are about."""
    _, printed = await obatchctl(spool, "doctor", "--json", *arguments)
    return {finding["about"]: finding for finding in json.loads(printed)["findings"]}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A stand-in ollama binary."""
    file = tmp_path / "ollama"
    file.write_text("#!/bin/sh\necho 'Warning: could not connect'; echo 'Warning: client version is 0.24.0'\n")
    file.chmod(0o755)
    return file


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


async def test_it_names_the_program_that_answers_and_its_version(tmp_path: Path, program: Path) -> None:
    config = tmp_path / "obatchd.toml"
    config.write_text(f'[servers]\nollama = "{program}"\n')
    lines = await findings(tmp_path / "spool", "--config", config)
    assert lines["ollama"] == {
        "level": "ok",
        "about": "ollama",
        "text": f"0.24.0 at {program}",
        "next_command": "",
        "host": "",
    }


async def test_with_the_daemon_down(tmp_path: Path) -> None:
    config = tmp_path / "obatchd.toml"
    config.write_text(f'gpus = "simulated:2"\n[servers]\nmodels_dir = "{tmp_path}/models"\n')
    lines = await findings(tmp_path / "spool", "--config", config)
    assert lines["config"]["level"] == "ok"
    assert lines["ollama"]["text"] == "stand-ins answer: Ollama need not be installed on this host"
    assert "made by the first pull" in lines["models"]["text"] or lines["models"]["level"] == "warn"
    assert lines["daemon"]["level"] == "warn"
    assert lines["spool"]["text"].endswith("does not exist yet; the daemon makes it")
    assert {"gpus", "ports", "others", "clock", "disk"} <= lines.keys()
    assert all(line["next_command"] for line in lines.values() if line["level"] != "ok")


def test_what_may_not_be_looked_at_does_not_end_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    (closed / "models").mkdir(parents=True)
    config = tmp_path / "obatchd.toml"
    config.write_text(f'gpus = "simulated:2"\n[servers]\nmodels_dir = "{closed}/models"\n')
    look = os.stat

    def refusing(path: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(f"{closed}/"):
            raise PermissionError(13, "Permission denied")
        return look(path, **options)

    monkeypatch.setattr(os, "stat", refusing)
    lines = {finding.about: finding for finding in examine(tmp_path / "spool", config)}
    for finding in (lines["models"], *spool_checks.directories(closed / "spool")):
        assert (finding.level, finding.next_command) == ("warn", f"ls -ld {closed}")
        assert "you may not look" in finding.text
    assert {"disk", "daemon", "clock"} <= lines.keys()


async def test_with_a_daemon(tmp_path: Path) -> None:
    async with serving(tmp_path) as (engine, spool):
        lines = await findings(spool)
        assert lines["daemon"]["level"] == "ok"
        assert lines["spool"]["level"] == "ok"
        engine.state, engine.reasons = "degraded", ["no server"]
        assert (await findings(spool))["daemon"]["text"] == "no server"


async def test_what_is_wrong_is_bad_and_exit_code_1(tmp_path: Path, taken_port: int) -> None:
    config = tmp_path / "obatchd.toml"
    config.write_text(
        f'[servers]\nollama = "no-such-ollama"\nbase_port = {taken_port}\n[disk]\nmin_free_bytes = {2**62}\n'
    )
    lines = await findings(tmp_path, "--config", config)
    assert lines["ollama"]["level"] == "bad"
    assert str(taken_port) in lines["ports"]["text"]
    assert lines["disk"]["level"] == "bad"
    code, page = await obatchctl(tmp_path, "doctor", "--config", config)
    assert code == 1
    assert "bad   ollama" in page
    assert "→ which ollama" in page


async def test_a_wrong_configuration_does_not_end_the_page(tmp_path: Path) -> None:
    config = tmp_path / "obatchd.toml"
    config.write_text("modle = 1")
    lines = await findings(tmp_path, "--config", config)
    assert lines["config"]["level"] == "bad"
    assert "did you mean model?" in lines["config"]["text"]
    assert "disk" in lines


async def test_remote_servers_need_neither_driver_nor_binary(tmp_path: Path) -> None:
    config = tmp_path / "obatchd.toml"
    config.write_text('[ollama_instances]\n"10.0.0.5:11434" = 0\n')
    lines = await findings(tmp_path, "--config", config)
    assert lines["gpus"]["level"] == lines["ollama"]["level"] == "ok"
    assert "models" not in lines
