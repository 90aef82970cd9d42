"""Words that people try first (help, version, start, stop, logs), completion, and the guard of the ports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import CompletionItem, ShellComplete
from click.testing import CliRunner, Result

from obatchd import __version__
from obatchd.cli import port_guard
from obatchd.cli.commands import service
from obatchd.cli.obatchctl import main
from obatchd.client.control import ControlClient
from obatchd.client.runtime import daemon_down
from obatchd.errors import DaemonDownError

_ANSWERS: dict[str, dict[str, Any]] = {
    "ping": {"version": "9.9", "pid": 41},
    "jobs": {
        "jobs": [
            {"job": "20261128-101500-abcd", "name": "rivers.jsonl"},
            {"job": "20261127-090000-efgh", "name": "lakes\n.csv"},
        ]
    },
    "models": {"models": [{"model": "llama3.2"}, {"model": "qwen3"}]},
    "gpus": {
        "gpus": [
            {"index": 0, "uuid": "GPU-aa", "name": "NVIDIA H100"},
            {"index": 1, "uuid": "GPU-bb", "name": "NVIDIA H100"},
        ]
    },
    "burnin": {"runs": [{"run": "20261101-000000", "state": "done"}]},
}  # fmt: skip


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(client: ControlClient, path: str, *names: str, **query: Any) -> dict[str, Any]:
        return _ANSWERS[path]

    monkeypatch.setattr(ControlClient, "get", get)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["--spool", "/srv/batch", *arguments])


@pytest.mark.parametrize("command", [(), ("jobs",), ("gpus", "lend")])
def test_help_is_a_command_too(command: tuple[str, ...]) -> None:
    shown = call("help", *command)
    assert (shown.exit_code, shown.stdout) == (0, call(*command, "--help").stdout)
    assert call("help", "statu").exit_code == 2 and "Did you mean 'status'?" in call("help", "statu").stderr
    assert call("help", "jobs", "all").stderr.endswith("jobs' has no commands of its own.\n")


def test_version_names_the_command_and_the_daemon(running: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("version").stdout == f"obatchctl {__version__}\nobatchd 9.9, running on /srv/batch\n"

    def get(client: ControlClient, path: str, **query: Any) -> dict[str, Any]:
        raise daemon_down(Path("/srv/batch"))

    monkeypatch.setattr(ControlClient, "get", get)
    assert call("version").stdout.endswith("obatchd is not running on /srv/batch\n")
    assert json.loads(call("version", "--json").stdout)["obatchd"] is None


def test_start_says_how_or_that_it_runs_already(running: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("start").stdout == "obatchd runs on /srv/batch already (pid 41).\n"
    monkeypatch.undo()
    told = CliRunner().invoke(main, ["--spool", str(tmp_path), "start"])
    assert told.exit_code == 3 and f"obatchd --spool {tmp_path}" in told.stderr


@pytest.mark.parametrize(
    ("group", "words", "journal"),
    [
        ("0::/system.slice/obatchd.service\n", "sudo systemctl stop obatchd", ["journalctl"]),
        (
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/obatchd.service\n",
            "systemctl --user stop obatchd", ["journalctl", "--user"],
        ),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", "Press Ctrl-C there, or type: kill 41", None),
    ],
)  # fmt: skip
def test_stop_and_logs_fit_the_way_in_which_obatchd_was_started(
    running: None, monkeypatch: pytest.MonkeyPatch, group: str, words: str, journal: list[str] | None
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: group if "41/cgroup" in str(path) else "")
    ran: list[list[str]] = []
    monkeypatch.setattr(service.os, "execvp", lambda file, command: ran.append(command))
    stopped = call("stop")
    assert (stopped.exit_code, stopped.stdout) == (1, "") and words in stopped.stderr
    shown = call("logs", "-n", "5", "-f")
    if journal is None:
        assert (
            shown.exit_code == 1 and "writes its log there" in shown.stderr and "obatchctl servers logs" in shown.stderr
        )
    else:
        assert ran == [[*journal, "--unit=obatchd", "--lines=5", "--follow"]]


def test_who_may_not_stop_the_service_is_told_whom_to_ask(running: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_of_systemd", lambda pid: ("sudo systemctl", ["journalctl"]))
    monkeypatch.setattr("obatchd.client.runtime.os.geteuid", lambda: 4321)
    monkeypatch.setattr("obatchd.client.runtime.os.getgroups", list)
    assert call("stop").stderr.endswith("To stop it: ask your administrator: sudo systemctl stop obatchd\n")


def test_erasing_may_take_as_long_for_one_job_as_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    def connect(client: ControlClient, name: str, timeout_s: float) -> Any:
        waited.append(timeout_s)
        raise daemon_down(Path("/srv/batch"))

    monkeypatch.setattr(ControlClient, "_connect", connect)
    client = ControlClient(Path("/srv/batch"))
    for erase in (lambda: client.delete("jobs", "a"), lambda: client.remove(["a"]), lambda: client.get("jobs", "a")):
        with pytest.raises(DaemonDownError):
            erase()
    one, many, look = waited
    assert one == many > look


def completed(arguments: list[str], typed: str) -> list[CompletionItem]:
    found = ShellComplete(main, {}, "obatchctl", "_OBATCHCTL_COMPLETE").get_completions(arguments, typed)
    return [item for item in found if item.type == "plain"]


@pytest.mark.parametrize(
    ("arguments", "typed", "offered"),
    [
        (["job"], "", ["20261128-101500-abcd", "20261127-090000-efgh"]),
        (["cancel"], "20261127", ["20261127-090000-efgh"]),
        (["results"], "riv", ["20261128-101500-abcd"]),
        (["submit", "--model"], "q", ["qwen3"]),
        (["burnin", "start", "--model"], "", ["llama3.2", "qwen3"]),
        (["gpus", "show"], "", ["0", "1"]),
        (["gpus", "lend"], "GPU-b", ["GPU-bb"]),
        (["gpus", "events"], "1", ["1"]),
        (["burnin", "start", "--gpus"], "0,", ["0,1"]),
        (["burnin", "bundle"], "0", ["0"]),
        (["burnin", "report"], "", ["20261101-000000"]),
    ],
)
def test_completion_offers_what_the_daemon_has(
    running: None, arguments: list[str], typed: str, offered: list[str]
) -> None:
    assert [item.value for item in completed(arguments, typed)] == offered


def test_jobs_are_offered_with_their_names_and_nothing_is_offered_without_a_daemon(
    running: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [item.help for item in completed(["rm"], "")] == ["rivers.jsonl", "lakes\N{REPLACEMENT CHARACTER}.csv"]
    monkeypatch.undo()
    assert completed(["--spool", "/nowhere", "rm"], "") == []


def test_a_wrong_key_is_told_by_the_guard_of_the_ports_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "obatchd.toml"
    wrong.write_text("modle = 'x'\n")
    monkeypatch.setattr(port_guard, "PORT_GUARD", tmp_path / "ports")
    monkeypatch.setattr(port_guard, "file_or_system", lambda file: wrong)
    monkeypatch.setattr(port_guard, "_nft", lambda script: "")
    monkeypatch.setattr(port_guard.shutil, "which", lambda name: name)
    assert port_guard.main(["close", "root"]) == 1
    told = capsys.readouterr().err
    assert "the servers' ports stay open" in told and "modle: no such setting; did you mean model?" in told
    wrong.write_text("")
    assert port_guard.main(["close", "nobody-of-that-name"]) == 1
    assert "there is no user nobody-of-that-name" in capsys.readouterr().err


def test_click_takes_colours_away_where_the_user_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command("colours")
    def command() -> None:
        click.secho("red", fg="red")

    monkeypatch.setitem(main.commands, "status", command)
    monkeypatch.setattr(type(main), "get_command", lambda group, context, name: command)
    shown = [CliRunner(env=env).invoke(main, ["status"], color=True).stdout for env in ({}, {"NO_COLOR": "1"})]
    assert shown == ["\x1b[31mred\x1b[0m\n", "red\n"]


def test_resume_says_that_a_drained_daemon_goes_on_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, the answer was that all jobs are resumed, and nothing moved."""
    monkeypatch.setattr(ControlClient, "post", lambda *_: {"paused": False, "held_up": "obatchd is drained"})
    assert call("resume").stdout == "All jobs resumed, and still waiting: obatchd is drained\n"
    assert call("pause").stdout == "All jobs paused.\n"
