"""The directory of a host: who it is, one process at a time, facts that survive, files that are no links."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from obatchd.cluster.host import directory as directory_module
from obatchd.cluster.host import membership
from obatchd.cluster.host.directory import HostDirectory, allocation, default_directory, default_name, machine
from obatchd.cluster.host.facts import FileFacts
from obatchd.cluster.host.membership import Membership
from obatchd.errors import ConfigError, HostError
from obatchd.settings.tables.cluster import ClusterSettings


def test_a_directory_is_its_users_alone_and_keeps_its_identity(tmp_path: Path) -> None:
    made = HostDirectory.open(tmp_path / "a" / "host")
    assert made.root.stat().st_mode & 0o777 == 0o700
    made.root.chmod(0o755)
    assert HostDirectory.open(made.root).instance == made.instance != ""
    assert made.root.stat().st_mode & 0o777 == 0o700
    (made.root / "instance").write_text("none")
    assert HostDirectory.open(made.root).instance != made.instance


def test_one_process_works_on_a_directory(tmp_path: Path) -> None:
    made = HostDirectory.open(tmp_path / "host")
    with made.lock(), pytest.raises(HostError, match=rf"pid {os.getpid()}\b.*--dir"), made.lock():
        pass
    with made.lock():
        pass


def test_a_link_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(HostError, match="--dir"):
        HostDirectory.open(tmp_path / "link")
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="--dir"):
        HostDirectory.open(tmp_path / "file")


def test_facts_survive_and_are_found_by_their_beginning(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    facts = FileFacts(path)
    assert facts.get("port/gpu0") is None
    facts.set("port/gpu0", "20000")
    facts.set("gpu/GPU-1", "{}")
    again = FileFacts(path)
    assert again.get("port/gpu0") == "20000" and again.starting_with("gpu/") == {"gpu/GPU-1": "{}"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["facts.json"]


def test_facts_may_be_set_by_several_threads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    facts = FileFacts(tmp_path / "facts.json")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: facts.set(f"port/gpu{number}", str(number)), range(40)))
    assert len(FileFacts(tmp_path / "facts.json").starting_with("port/")) == 40 and not caplog.text


def test_damaged_facts_are_set_aside_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(b'{"port/gpu0": 7}')
    facts = FileFacts(path)
    facts.set("port/gpu0", "20000")
    assert "host_file_damaged" in caplog.text and "facts.json.damaged" in caplog.text
    assert path.with_name("facts.json.damaged").read_bytes() == b'{"port/gpu0": 7}'
    assert FileFacts(path).get("port/gpu0") == "20000"


def test_facts_are_not_written_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b'{"port/gpu0": "1"}')
    (tmp_path / "facts.json").symlink_to(target)
    facts = FileFacts(tmp_path / "facts.json")
    assert facts.get("port/gpu0") is None
    facts.set("port/gpu0", "2")
    assert target.read_bytes() == b'{"port/gpu0": "1"}'


def test_facts_that_the_disk_refuses_are_kept_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    facts = FileFacts(tmp_path / "gone" / "facts.json")
    facts.set("port/gpu0", "2")
    assert facts.get("port/gpu0") == "2" and "host_file_not_written" in caplog.text


@pytest.mark.parametrize(
    ("hostname", "name"), [("Node07.cluster.example", "node07"), ("GPU_box", "gpu-box"), ("-", "host"), ("", "host")]
)
def test_the_short_name_of_the_machine_is_made_a_name(
    monkeypatch: pytest.MonkeyPatch, hostname: str, name: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: hostname)
    assert default_name() == name


def test_a_machine_is_known_by_its_id_which_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "machine-id").write_text("0123456789abcdef\n")
    monkeypatch.setattr(directory_module, "_MACHINE_IDS", (tmp_path / "none", tmp_path / "machine-id"))
    assert machine() == machine() and "0123456789abcdef" not in machine()


def test_whoever_lends_the_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert allocation() == ""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert allocation() == "Slurm job 4711"
    monkeypatch.setenv("OBATCH_HOST_ALLOCATION", "Ray node 3f")
    assert allocation() == "Ray node 3f"


def test_the_directory_is_that_of_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OBATCH_HOST_DIR", str(tmp_path / "there"))
    assert default_directory() == tmp_path / "there"


def test_a_host_is_called_as_the_command_line_says_or_its_file(tmp_path: Path) -> None:
    made = HostDirectory.open(tmp_path / "host")
    settings = ClusterSettings(head="10.0.0.1:7700", fingerprint="sha256:" + "0" * 64, name="node07")
    found = membership.known(settings, made, None)
    assert found == Membership("node07", "10.0.0.1:7700", settings.fingerprint)
    assert membership.known(settings, made, "other").name == "other"
    with pytest.raises(ConfigError, match="obatchctl hosts code"):
        membership.place_of(found, made)
    made.credential_file.write_text("secret\n")
    assert membership.place_of(found, made) == ("10.0.0.1:7700", settings.fingerprint, "secret")
    with pytest.raises(ConfigError, match="obatchctl hosts code"):
        membership.known(ClusterSettings(), made, None)
