"""``obatchctl cluster slurm``: the file for sbatch, and the file with the secret beside it."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from obatchd.cli.obatchctl import main
from obatchd.client.control import ControlClient

LINK = "obatch://10.0.0.1:7700/#" + "s" * 43 + "." + "f" * 64


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What the head was asked for."""
    calls = []

    def post(_: ControlClient, path: str, **query: Any) -> dict[str, Any]:
        calls.append((path, query))
        return {"link": LINK, "until": "2026-12-06T22:00:00.000Z", "id": "enrol-1"}

    monkeypatch.setattr(ControlClient, "post", post)
    return calls


def call(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--spool", str(tmp_path), "cluster", "slurm", *arguments])


def test_the_secret_is_in_a_file_of_its_own_that_only_its_owner_reads(tmp_path: Path, asked: list[Any]) -> None:
    file = tmp_path / "hosts.sbatch"
    result = call(tmp_path, "-N", "7", "--gres=gpu:4", "--valid", "2d", "-o", str(file))
    assert result.exit_code == 0, result.output
    enrolment = tmp_path / "hosts.sbatch.enrolment"
    assert enrolment.read_text() == f"{LINK}\n"
    assert stat.S_IMODE(enrolment.stat().st_mode) == 0o600
    assert "s" * 43 not in file.read_text() + result.output
    assert str(enrolment) in file.read_text() and f"sbatch {file}" in result.output
    assert asked == [("hosts/enrolments", {"body": {"valid_s": 172800.0, "head": ""}})]


def test_an_enrolment_that_is_there_is_not_written_over(tmp_path: Path, asked: list[Any]) -> None:
    file = tmp_path / "hosts.sbatch"
    call(tmp_path, "-N", "7", "-o", str(file))
    result = call(tmp_path, "-N", "7", "-o", str(file))
    assert result.exit_code == 1 and "is not there yet" in result.output
    assert len(asked) == 1


def test_wrong_options_ask_the_head_for_nothing(tmp_path: Path, asked: list[Any]) -> None:
    for wrong in (["-N", "none"], ["-N", "7", "--time", "90"], ["-N", "7", "--gres", "gpu 4"]):
        assert call(tmp_path, *wrong, "-o", str(tmp_path / "f")).exit_code == 1
    for usage in (["-N", "7", "--with-head"], ["-N", "7", "--head-config", "x"], []):
        assert call(tmp_path, *usage).exit_code == 2
    assert asked == [] and list(tmp_path.iterdir()) == []


def test_without_a_name_the_file_is_printed_and_nothing_else(tmp_path: Path, asked: list[Any]) -> None:
    enrolment = tmp_path / "e"
    result = call(tmp_path, "-N", "7", "--enrolment", str(enrolment))
    assert result.stdout.startswith("#!/bin/bash\n#SBATCH ")
    told = json.loads(call(tmp_path, "-N", "7", "--enrolment", str(tmp_path / "e2"), "--json").stdout)
    assert told["sbatch"].startswith("#!/bin/bash\n") and told["enrolment"] == str(tmp_path / "e2")


def test_a_head_in_the_job_makes_its_enrolment_itself(tmp_path: Path, asked: list[Any]) -> None:
    result = call(tmp_path, "-N", "3", "--with-head", "--head-spool", str(tmp_path / "spool"), "--valid", "1d")
    assert result.exit_code == 0, result.output
    assert asked == []
    assert f"spool={tmp_path}/spool\n" in result.stdout and "valid=86400s\n" in result.stdout
