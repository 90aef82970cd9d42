"""A machine joins a head as its user types it: obatchctl hosts code, obatchd-join, obatchctl hosts, forget."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_support import Daemon
from port_support import free_ports

Start = Callable[..., Daemon]


def run_join(*arguments: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from obatchd.cli.join import main; main()", *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def head(daemon: Start) -> Daemon:
    settings = {"cluster": {"listen": f"127.0.0.1:{free_ports(1)}"}, "gpus": {"use": "simulated:1"}}
    running = daemon(settings)
    running.ready()
    return running


def link(head: Daemon) -> str:
    told = head.control("hosts", "code", "--json")
    assert told.returncode == 0, told.stdout + told.stderr
    return str(json.loads(told.stdout)["link"])


def test_a_machine_joins_and_is_forgotten(head: Daemon, tmp_path: Path) -> None:
    first, place = link(head), tmp_path / "host"
    done = run_join(first, "--name", "node07", "--dir", place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"obatchd host --dir {place}" in done.stdout
    credential = (place / "credential").read_text().strip()
    assert stat.S_IMODE((place / "credential").stat().st_mode) == 0o600
    written = tomllib.loads((place / "host.toml").read_text())["cluster"]
    assert written["name"] == "node07" and written["fingerprint"].startswith("sha256:")
    again = run_join(first, "--name", "node08", "--dir", tmp_path / "other")
    assert again.returncode == 1 and "a code is good once" in again.stderr and "node07" in again.stderr
    shown = head.control("hosts")
    assert shown.returncode == 0 and "node07" in shown.stdout and "away" in shown.stdout
    # No secret is anywhere but where it belongs.
    secret = first.partition("#")[2].partition(".")[0]
    kept = b"".join(path.read_bytes() for path in head.spool.rglob("*") if path.is_file()) + head.log().encode()
    assert secret.encode() not in kept and credential.encode() not in kept
    assert head.control("hosts", "forget", "node07").returncode == 0
    assert "No hosts yet" in head.control("hosts").stdout
    kinds = [entry["kind"] for entry in json.loads(head.control("audit", "--json").stdout)["entries"]]
    assert [kind for kind in kinds if kind.startswith("host_")] == ["host_code_made", "host_joined", "host_forgotten"]


def test_an_enrolment_is_handed_over_by_a_file(head: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "enrolment"
    made = head.control("hosts", "enrol", "--out", str(file), "--valid", "2h", "--json")
    assert made.returncode == 0 and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "obatch://" not in made.stdout
    twice = head.control("hosts", "enrol", "--out", str(file))
    assert twice.returncode == 1 and "not there yet" in twice.stderr
    for number in (1, 2):
        place = tmp_path / f"host{number}"
        source, given = (file, "") if number == 1 else ("-", file.read_text())
        assert run_join(source, "--name", f"node0{number}", "--dir", place, given=given).returncode == 0
    enrolment = json.loads(made.stdout)["id"]
    assert f"{enrolment}: good until" in head.control("hosts").stdout
    gone = head.control("hosts", "forget", "--enrolment", enrolment, "--json")
    assert json.loads(gone.stdout)["hosts"] == ["node01", "node02"]
    late = run_join(file, "--name", "node03", "--dir", tmp_path / "host3")
    assert late.returncode == 1 and "was revoked" in late.stderr


def test_settings_of_the_host_stay_when_it_joins_again(head: Daemon, tmp_path: Path) -> None:
    place = tmp_path / "host"
    place.mkdir()
    (place / "host.toml").write_text('# mine\n[cluster]\nname = "old"\n# kept\n[gpus]\nexclude = [3]\n')
    assert run_join(link(head), "--name", "node07", "--dir", place).returncode == 0
    text = (place / "host.toml").read_text()
    found = tomllib.loads(text)
    assert found["cluster"]["name"] == "node07" and found["gpus"]["exclude"] == [3]
    assert text.startswith("# mine") and "# kept" in text
    (place / "host.toml").write_text("[cluster\n")
    unreadable, unused = run_join(second := link(head), "--dir", place), tmp_path / "unused"
    assert unreadable.returncode == 1 and "cannot be read as TOML" in unreadable.stderr
    assert run_join(second, "--name", "node08", "--dir", unused).returncode == 0  # it was not used up


def test_the_credential_is_written_through_no_link(head: Daemon, tmp_path: Path) -> None:
    place, elsewhere = tmp_path / "host", tmp_path / "elsewhere"
    place.mkdir()
    elsewhere.write_text("somebody else's")
    (place / "credential").symlink_to(elsewhere)
    (place / ".credential.new").symlink_to(elsewhere)
    assert run_join(link(head), "--name", "node07", "--dir", place).returncode == 0
    assert elsewhere.read_text() == "somebody else's" and not (place / "credential").is_symlink()


def test_what_is_wrong_is_said_in_words(tmp_path: Path) -> None:
    assert "cannot be read as a file" in run_join(tmp_path / "nothing").stderr
    assert "obatchctl hosts code" in run_join("-", given="hello").stderr
    wrong = f"obatch://127.0.0.1:{free_ports(1)}/#{'x' * 43}.{'0' * 64}"
    assert "cannot be reached" in run_join(wrong, "--dir", tmp_path / "host").stderr
    assert "small letters" in run_join(wrong, "--name", "Node 7", "--dir", tmp_path / "host").stderr
    assert not (tmp_path / "host" / "credential").exists()


def test_a_daemon_without_a_door_says_how_to_get_one(daemon: Start) -> None:
    running = daemon({"gpus": {"use": "simulated:1"}})
    running.ready()
    assert "[cluster] listen is empty" in running.control("hosts").stdout
    refused = running.control("hosts", "code")
    assert refused.returncode == 1 and "set listen in [cluster]" in refused.stderr
    assert not (running.spool / "work" / "cluster").exists()


def test_a_daemon_refuses_the_file_of_a_host(tmp_path: Path) -> None:
    file = tmp_path / "host.toml"
    file.write_text(f'[cluster]\nhead = "10.0.0.1:7700"\nfingerprint = "sha256:{"0" * 64}"\n')
    command = [sys.executable, "-c", "from obatchd.cli.obatchd import main; main()", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78 and "type  obatchd host  instead" in done.stderr
