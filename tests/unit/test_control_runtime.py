from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from obatchd.cli.doctor import spool_checks
from obatchd.client import runtime
from obatchd.errors import DaemonDownError, SpoolError


def test_private_recorded_and_removed(tmp_path: Path) -> None:
    directory = runtime.create(tmp_path, "u1", environ={"TMPDIR": str(tmp_path)})
    record = runtime.read_record(tmp_path)
    assert record.runtime_dir == directory
    assert (record.pid, record.uuid) == (os.getpid(), "u1")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [runtime.RECORD]
    runtime.remove(tmp_path, directory)
    assert not directory.exists()
    with pytest.raises(DaemonDownError) as caught:
        runtime.read_record(tmp_path)
    assert caught.value.code == "daemon_down"


def test_the_users_runtime_directory_comes_first(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    if len(str(tmp_path)) < 70:
        assert runtime.create(tmp_path, "u", environ=environ) == tmp_path / "obatchd" / "u"


def test_a_long_path_is_passed_over(tmp_path: Path) -> None:
    spool = tmp_path / ("s" * 150)
    spool.mkdir()
    directory = runtime.create(spool, f"test-{os.getpid()}-{tmp_path.name}", environ={"XDG_RUNTIME_DIR": str(spool)})
    assert len(os.fsencode(directory / runtime.CONTROL_SOCKET)) <= 107
    assert runtime.read_record(spool).runtime_dir == directory
    runtime.remove(spool, directory)


def test_a_directory_that_others_may_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "obatchd").mkdir()
    (tmp_path / "obatchd").chmod(0o777)
    monkeypatch.setattr(runtime, "_parents", lambda environ: [tmp_path / "obatchd"])
    with pytest.raises(SpoolError, match="XDG_RUNTIME_DIR"):
        runtime.create(tmp_path, "u")


def test_a_missing_spool_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DaemonDownError) as caught:
        runtime.read_record(tmp_path / "nowhere")
    assert caught.value.code == "no_spool"


def test_who_has_no_service_is_told_of_a_spool_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "SYSTEM_SPOOL", tmp_path / "system")
    monkeypatch.setattr(runtime, "_UNITS", tmp_path)
    with pytest.raises(DaemonDownError) as caught:
        runtime.read_record(tmp_path / "system")
    assert caught.value.code == "no_spool" and "export OBATCH_SPOOL=~/batch" in caught.value.message
    assert caught.value.message.endswith(" start it: obatchd --spool ~/batch")
    assert spool_checks.daemon(tmp_path / "system", caught.value)[0].next_command == "obatchd --spool ~/batch"
    (tmp_path / "system").mkdir()  # of the units
    (tmp_path / "system" / "obatchd.service").touch()
    monkeypatch.setattr(runtime, "SYSTEM_SPOOL", tmp_path / "spool")
    with pytest.raises(DaemonDownError, match=r"There is no spool at .* start a daemon there: .*systemctl start"):
        runtime.read_record(tmp_path / "spool")


def test_the_advice_to_start_a_stopped_daemon_names_its_configuration(tmp_path: Path) -> None:
    spool, config = tmp_path / "my spool", tmp_path / "batch.toml"
    spool.mkdir()
    assert runtime.start_command(spool) == f"obatchd --spool '{spool}'"
    for given, words in ((config, f"--config {config} "), (None, "")):
        directory = runtime.create(spool, "u1", config=given, environ={"TMPDIR": str(tmp_path)})
        assert runtime.start_command(spool) == f"obatchd {words}--spool '{spool}'"
        runtime.remove(spool, directory)
        assert runtime.last_config(spool) == str(given or "")
        assert str(runtime.daemon_down(spool).message).endswith(f"To start it: obatchd {words}--spool '{spool}'")


def test_a_damaged_record_is_explained(tmp_path: Path) -> None:
    (tmp_path / runtime.RECORD).write_text("{")
    with pytest.raises(DaemonDownError, match="restart obatchd"):
        runtime.read_record(tmp_path)


def test_what_killed_daemons_left_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_parents", lambda environ: [Path("obatchd")])
    monkeypatch.chdir(tmp_path)  # the path of a socket has to be short
    parent = runtime.create(tmp_path, "own").parent
    for name in ("killed", "alive", "starting", "foreign"):
        (parent / name).mkdir(mode=0o700)
    (parent / "foreign" / "file").touch()
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as alive:
        dead.bind(f"obatchd/killed/{runtime.CONTROL_SOCKET}")
        dead.close()
        alive.bind(f"obatchd/alive/{runtime.CONTROL_SOCKET}")
        alive.listen()
        for name in ("own", "killed", "alive", "foreign"):
            os.utime(parent / name, (0, 0))
        runtime.create(tmp_path, "own")
    assert sorted(path.name for path in parent.iterdir()) == ["alive", "foreign", "own", "starting"]
