"""What ``obatchctl doctor`` tells a user of somebody else's spool."""

from __future__ import annotations

import grp
import os
import pwd
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from settings_support import nobody

from obatchd.cli.doctor import account, host_checks, spool_checks, store_checks
from obatchd.cli.doctor.doctor import examine
from obatchd.cli.doctor.result import CheckResult
from obatchd.client import runtime
from obatchd.errors import DaemonDownError, ForbiddenError
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
    monkeypatch.setattr(os, "getgroups", lambda: [4000])
    group = SimpleNamespace(gr_name="submitters", gr_gid=4001, gr_mem=members)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: group)
    [finding] = spool_checks.directories(tmp_path)
    assert finding.level == level and text in finding.text and (finding.next_command or "") == next_command
    monkeypatch.setattr(os, "getgroups", lambda: [4001])
    [finding] = spool_checks.directories(tmp_path)
    assert may_drop or "although you are in its group" in finding.text


@pytest.mark.parametrize("uid", [0, 4321])
def test_an_inbox_that_is_shut_to_its_group_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int
) -> None:
    """Before, a member was told to log out and in again, and root nothing."""
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox").chmod(0o2755)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + uid)
    monkeypatch.setattr(os, "access", lambda path, mode: uid == 0)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: SimpleNamespace(gr_name="submitters"))
    [finding] = spool_checks.directories(tmp_path)
    assert finding.level == "bad" and finding.next_command == f"sudo chmod 3730 {tmp_path / 'inbox'}"
    assert "inbox does not let its group submitters in" in finding.text
    monkeypatch.setattr(runtime, "SYSTEM_SPOOL", tmp_path)
    [finding] = spool_checks.directories(tmp_path)
    assert finding.next_command == "sudo systemd-tmpfiles --create obatch.conf"


@pytest.mark.parametrize(("euid", "owner", "home"), [(0, 4321, "service"), (0, 0, "own"), (4321, 4321, "own")])
def test_root_is_told_of_the_models_of_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, euid: int, owner: int, home: str
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "own"))
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    user = SimpleNamespace(pw_name="obatch", pw_gid=4321, pw_dir=str(tmp_path / "service"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: user)
    for module in (account, store_checks):
        monkeypatch.setattr(module, "owner_of", lambda spool: owner)
    [finding] = store_checks.model_store(Settings(), tmp_path, tmp_path / "work/models")
    assert str(tmp_path / home) in finding.text


def test_a_store_without_models_and_a_configuration_without_one_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_checks, "_LOW_STORE_BYTES", 0)

    settings = Settings.model_validate({"servers": {"models_dir": str(tmp_path / "models")}})

    def told() -> str:
        [line] = store_checks.model_store(settings, tmp_path, tmp_path / "work/models")
        return line.text.partition(" free; ")[2]

    assert told() == "made by the first pull"
    (tmp_path / "models").mkdir()
    assert told() == "no model in it yet"
    (tmp_path / "models/manifests").mkdir()
    assert told() == ""
    config = tmp_path / "obatchd.toml"
    for text, more in (("", "; it names no model, so each job has to"), ('model = "m"', "")):
        config.write_text(text)
        assert next(examine(tmp_path / "spool", config)).text == f"{config}{more}"


def test_nobody_is_told_of_the_models_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, the caller's own store was named, which that daemon never uses."""
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 4321)
    assert [*store_checks.model_store(Settings(), tmp_path, tmp_path / "work/models")] == []


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


@pytest.mark.parametrize("tables", [{"gpus": {"use": "simulated:2"}}, {"servers": {"ollama": "simulator"}}])
def test_stand_ins_need_no_ollama(monkeypatch: pytest.MonkeyPatch, tables: dict[str, Any]) -> None:
    monkeypatch.setenv("PATH", "")
    assert host_checks.ollama(Settings(**tables)).level == "ok"


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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No program of the host is asked."""
    monkeypatch.setattr(host_checks, "_run", lambda *_: "")


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch, quick: None) -> dict[str, Any]:
    """The status of a daemon that answers."""
    found: dict[str, Any] = {
        "state": "running", "pid": 1, "version": "1", "notices": [], "reasons": [], "servers": [],
    }  # fmt: skip
    monkeypatch.setattr("obatchd.cli.doctor.doctor.ControlClient", lambda spool: SimpleNamespace(get=lambda _: found))
    return found


def test_the_configuration_is_the_one_that_the_running_daemon_has_read(tmp_path: Path, status: dict[str, Any]) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("modle = 1")
    runtime.create(tmp_path, "u", config=config, environ={"TMPDIR": str(tmp_path)})
    lines = {line.about: line for line in examine(tmp_path, None)}
    assert str(config) in lines["config"].text and "did you mean model?" in lines["config"].text
    config.write_text('model = "m"')
    lines = {line.about: line for line in examine(tmp_path, None)}
    assert lines["config"].text == f"{config} (of the running daemon)"
    runtime.create(tmp_path, "u", environ={"TMPDIR": str(tmp_path)})
    lines = {line.about: line for line in examine(tmp_path, None)}
    words = "no file: the running daemon has the defaults, unless OBATCHD_… variables say otherwise"
    assert lines["config"].text == f"{words}; it names no model, so each job has to"
    given = tmp_path / "given.toml"
    given.touch()
    lines = {line.about: line for line in examine(tmp_path, given)}
    assert lines["config"].text == f"{given}; it names no model, so each job has to"


@pytest.mark.usefixtures("quick")
def test_the_file_of_the_system_is_not_the_one_of_every_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "system.toml").write_text("modle = 1")
    monkeypatch.setattr("obatchd.cli.doctor.doctor.SYSTEM_FILE", tmp_path / "system.toml")
    assert next(examine(tmp_path, None)).level == "ok"
    monkeypatch.setattr("obatchd.cli.doctor.doctor.SYSTEM_SPOOL", tmp_path)
    assert next(examine(tmp_path, None)).level == "bad"


@pytest.mark.usefixtures("quick")
def test_a_configuration_of_somebody_else_is_no_fault_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "closed.toml"
    config.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: path != config)
    first = next(examine(tmp_path, config))
    assert first.level == "warn" and first.text.startswith("you may not read ")


def _ports(listen: str, base: int, status: dict[str, Any] | None = None) -> CheckResult:
    return host_checks.ports(Settings.model_validate({"servers": {"listen": listen, "base_port": base}}), status)


def test_an_address_of_another_host_is_named_so() -> None:
    for status in (None, {"servers": []}):
        finding = _ports("192.0.2.7", 11500, status)  # RFC 5737: nobody has it
        assert finding.level == "bad"
        assert finding.text == "servers.listen = 192.0.2.7 is no address of this host: no server can start"


def test_ports_are_in_use_where_somebody_uses_them() -> None:
    with socket.socket() as taken, socket.socket() as free:
        for each in (taken, free):
            each.bind(("127.0.0.1", 0))
        taken.listen()
        used, unused = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        status = {"servers": [{"kind": "managed", "url": f"http://127.0.0.1:{port}"} for port in (used, unused)]}
        status["servers"].append({"kind": "remote", "url": "http://10.0.0.1:11434"})
        assert _ports("127.0.0.1", used, status).text == f"the daemon's servers use {used}"
        assert _ports("127.0.0.1", used, {"servers": []}).text == "no server of the daemon uses one now"
        assert str(used) in _ports("127.0.0.1", used).text


@pytest.mark.usefixtures("quick")
def test_the_next_command_is_the_one_that_starts_this_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def advice() -> str:
        return {line.about: line for line in examine(tmp_path, None)}["daemon"].next_command

    assert advice() == f"obatchd --spool {tmp_path}"
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox").chmod(0o3730)  # of a service
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert advice() == "sudo systemctl start obatchd"
    with pytest.raises(DaemonDownError, match="To start it: sudo systemctl start obatchd"):
        runtime.read_record(tmp_path)
    groups = [4000]
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    monkeypatch.setattr(os, "getgroups", lambda: groups)
    monkeypatch.setattr(grp, "getgrnam", lambda name: SimpleNamespace(gr_gid=27 if name == "sudo" else 4001))
    assert advice() == "ask your administrator: sudo systemctl start obatchd"
    groups.append(27)
    assert advice() == "sudo systemctl start obatchd"


def test_what_is_worth_knowing_is_told_of_a_degraded_daemon_too(tmp_path: Path, status: dict[str, Any]) -> None:
    status.update(state="degraded", reasons=["no server"], notices=["ports are open"])
    told = [(line.level, line.text) for line in examine(tmp_path, None) if line.about == "daemon"]
    assert told == [("warn", "ports are open"), ("bad", "no server")]


def test_alarms_that_do_not_arrive_are_one_line(tmp_path: Path, status: dict[str, Any]) -> None:
    """Before, one line said that all is well with them, and another one that they do not arrive."""
    trouble = "alarms do not arrive: the webhook at x failed at 10:00 (x cannot be reached)"
    status["notices"] = [f"{trouble}. Try it: obatchctl alarms test"]
    lines = [line for line in examine(tmp_path, None) if line.about == "alarms" or "arrive:" in line.text]
    assert lines == [CheckResult("bad", "alarms", trouble, "obatchctl alarms test")]


def test_of_a_wrong_configuration_no_line_takes_the_defaults(tmp_path: Path, status: dict[str, Any]) -> None:
    """Before, doctor found all well with models, ports and alarms that nobody had asked for."""
    config = tmp_path / "obatchd.toml"
    config.write_text("modle = 1")
    told = {line.about for line in examine(tmp_path, config)}
    assert told.isdisjoint({"models", "ports", "alarms"}) and {"config", "gpus", "disk"} <= told


def test_who_is_in_no_group_is_told_what_to_ask_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, the daemon's own ports were in its way, and the next command was the one that had just been refused."""
    words = "bob is not in the group lab and may not use obatchd."
    command = "sudo usermod -aG lab bob"
    refusal = ForbiddenError(f"{words} Ask an administrator for:  {command}   Then log out and in again.")
    assert spool_checks.daemon(tmp_path, refusal) == [CheckResult("bad", "daemon", words, command)]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = Settings.model_validate({"servers": {"base_port": port}})
        finding = host_checks.ports(settings, None, runs=True)
        assert finding.level == "ok" and finding.text.startswith(f"used by obatchd, which runs: {port}")


def test_a_group_that_is_not_there_is_told(tmp_path: Path, status: dict[str, Any]) -> None:
    """Before, only the daemon's log said why everybody was locked out."""
    config = tmp_path / "obatchd.toml"
    config.write_text('[access]\nmode = "service"\nsubmit_group = "no-such-group"\nadmin_group = "root"\n')
    [line] = [line for line in examine(tmp_path, config) if line.about == "groups"]
    assert (line.level, line.next_command.removeprefix("ask your administrator: ")) == (
        "bad", "sudo groupadd --system no-such-group",
    )  # fmt: skip
    assert "there is no group no-such-group (access.submit_group)" in line.text


def test_every_server_in_trouble_has_a_line_with_what_to_do(tmp_path: Path, status: dict[str, Any]) -> None:
    """Before, all reasons stood in one line, whose next command repeated them, and seven servers were well."""
    states = ["ready", "ready", "backoff", "failed", "quarantined", "draining"]
    servers = [{"id": f"far{n}", "kind": "remote", "state": state} for n, state in enumerate(states)]
    servers[1]["cannot_have"] = "tiny"  # one that is a list in truth
    reasons = [
        "server far1 cannot serve tiny: no network. Run on the host of far1: ollama pull tiny.",
        "server far2 is down: h:1 cannot be reached: Name or service not known. (next try at 17:00:04)",
        "server far3 is failed: no answer",
        "server far4 is quarantined: it smells",
        "server far5 waits: pid 7",
    ]
    status.update(state="degraded", reasons=reasons, servers=servers, spool=str(tmp_path))
    lines = [line for line in examine(tmp_path, None) if line.about in ("ollama", "server", "daemon")]
    control = f"obatchctl --spool {tmp_path}"
    assert [tuple(line)[:3] for line in lines] == [
        ("warn", "ollama", "3 of 6 remote servers answer"),
        *(("bad", "server", reason) for reason in reasons),
        ("bad", "daemon", "degraded, pid 1, version 1: see the lines above"),
    ]
    assert [line.next_command for line in lines] == [
        f"{control} status",
        f"{control} servers resume far1",
        "check its address in [ollama_instances]",
        f"{control} servers resume far3",
        f"{control} gpus",
        f"{control} status",
        f"{control} status",
    ]
    status["reasons"].append("the disk is full")
    told = [(line.about, line.text) for line in examine(tmp_path, None) if line.about == "daemon"]
    assert told == [("daemon", "the disk is full")]


@pytest.mark.parametrize(
    ("said", "next_command"),
    [
        ("http://h:1 cannot be reached: Connection refused.", "start Ollama at http://h:1, then: {} servers resume it"),
        ("http://h:1 cannot be reached: No route to host.", "{} servers resume it"),
        ("http://h:1/api answered 404 (a), not as Ollama does: it", "check its address in [ollama_instances]"),
    ],
)
def test_the_next_command_for_a_server_elsewhere_fits_its_trouble_and_is_not_said_twice(
    tmp_path: Path, status: dict[str, Any], said: str, next_command: str
) -> None:
    again = "(tried 7 times; next try at 17:00:00{})"
    reason = f"server it is failed: {said} {again.format(', at once with: obatchctl servers resume it')}"
    servers = [{"id": "it", "kind": "remote", "state": "failed", "url": "http://h:1"}]
    status.update(state="degraded", reasons=[reason], servers=servers, spool=str(tmp_path))
    [line] = [line for line in examine(tmp_path, None) if line.about == "server"]
    assert line.next_command == next_command.format(f"obatchctl --spool {tmp_path}")
    assert line.text.endswith(f"{said} {again.format('')}")


def test_settings_that_wait_for_a_restart_are_named(tmp_path: Path, status: dict[str, Any]) -> None:
    """Before, only the answer to the reload said so, and nothing later."""
    status["waiting_for_restart"] = ["ollama_instances", "servers.slots"]
    [line] = [line for line in examine(tmp_path, None) if line.about == "config" and line.level == "warn"]
    assert line.text == "changed, and waiting for a restart of the daemon: ollama_instances, servers.slots"
    assert line.next_command == f"stop it with Ctrl-C, then: obatchd --spool {tmp_path}"


@pytest.mark.parametrize(("state", "word"), [("drained", "undrain"), ("draining", "undrain"), ("paused", "resume")])
def test_a_daemon_that_was_told_to_wait_is_named_with_the_way_back(
    tmp_path: Path, status: dict[str, Any], state: str, word: str
) -> None:
    status["state"] = state
    [line] = [line for line in examine(tmp_path, None) if line.about == "daemon"]
    assert (line.level, line.next_command) == ("warn", f"obatchctl --spool {tmp_path} {word}")
    assert line.text == f"{state}, pid 1, version 1; no prompt is sent to a server"
