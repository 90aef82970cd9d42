"""What obatchctl says when it is used wrongly, and of what is not over yet."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from test_burnin_parts import finished

from obatchd.burnin.report.report import head
from obatchd.cli.obatchctl import main
from obatchd.cli.views import waiting
from obatchd.cli.views.status import OUTCOMES
from obatchd.client.client import Client
from obatchd.errors import DaemonDownError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("statu", "No such command 'statu'. Did you mean 'status'?"),
        ("xyzzy", "No such command 'xyzzy'.\n"),
        ("submit {here} --template @{here}/none", "--template: {here}/none cannot be read: No such file or directory"),
        ("submit {here} --format {here}/none", "--format: {here}/none cannot be read: No such file or directory"),
        ("submit {here} --format {here}/latin", "--format: {here}/latin cannot be read: it is not UTF-8"),
    ],
)
def test_wrong_usage_says_where_and_what(tmp_path: Path, arguments: str, words: str) -> None:
    (tmp_path / "latin").write_bytes(b"\xe9")
    result = CliRunner().invoke(main, arguments.format(here=tmp_path).split())
    assert result.exit_code == 2
    assert words.format(here=tmp_path) in result.stderr


@pytest.mark.parametrize("command", ["pause", "resume", "cancel", "retry", "job", "rm", "results"])
def test_an_empty_job_is_no_job_and_not_every_job(tmp_path: Path, command: str) -> None:
    result = CliRunner().invoke(main, ["--spool", str(tmp_path), command, ""])
    assert result.exit_code == 2
    assert "it is empty" in result.stderr


def test_waiting_goes_on_over_a_restart_of_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_POLL_S", 0.0)
    down = DaemonDownError("obatchd is not running")
    answers = iter([[{"state": "running"}], down, down, [{"state": "done"}]])

    def look() -> list[dict[str, Any]]:
        answer = next(answers)
        if isinstance(answer, DaemonDownError):
            raise answer
        return answer

    assert waiting.wait(look, quiet=True) == [{"state": "done"}]
    answers = iter([down] * 1000)
    monkeypatch.setattr(waiting, "_DOWN_S", 0.0)
    with pytest.raises(DaemonDownError):
        waiting.wait(look, quiet=True)
    answers = iter([DaemonDownError("not yours", code="permission")])
    with pytest.raises(DaemonDownError):
        waiting.wait(look, quiet=True)


@pytest.mark.parametrize("draws", [True, False])
def test_who_waits_is_told_once_why_the_job_waits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], draws: bool
) -> None:
    """Before, a bar stood at 0/200 and nothing said that no server could be reached."""
    monkeypatch.setattr(waiting, "_POLL_S", 0.0)
    monkeypatch.setattr(waiting.terminal, "draws", lambda stream: draws)
    usual = {
        "job": "20261128-120000-abcd", "name": "notes.jsonl", "paused": False, "state": "running", "requests": 200,
        "eta_s": None, "requests_per_s": 0.0, "tokens_per_s": 0.0, **dict.fromkeys(OUTCOMES, 0),
    }  # fmt: skip
    refused = "far: 10.0.0.5:11434 cannot be reached: Connection refused. (next try in {} s)"
    reasons = [refused.format(1), refused.format(4), refused.format(4), "far: [it] is full"]
    looks = iter([*({**usual, "held_up": reason} for reason in reasons), {**usual, "state": "done"}])
    first = [{**usual}] if draws else []
    waiting.wait(lambda: [first.pop() if first else next(looks)], quiet=False)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("20261128-120000-abcd waits: far: ") == 2
    assert "Connection refused. (next try in 1 s)" in said and "waits: far: [it] is full" in said


def test_a_configuration_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "batch.toml").write_text("mine")
    result = CliRunner().invoke(main, ["config", "init", str(tmp_path / "batch.toml")])
    assert (result.exit_code, result.stderr) == (1, f"{tmp_path / 'batch.toml'} is there already; name another file\n")
    assert (tmp_path / "batch.toml").read_text() == "mine"


def test_shown_settings_are_toml_whatever_separates_lines_in_a_text(tmp_path: Path) -> None:
    file, text = tmp_path / "batch.toml", "one\u2028two\x85three"
    file.write_text(f'system_message = "{text}"\n', "utf-8")
    shown = CliRunner().invoke(main, ["config", "show", str(file)]).stdout
    assert tomllib.loads(shown)["system_message"] == text


def reason(consequence: str, text: str) -> dict[str, Any]:
    return {"consequence": consequence, "signal": "ecc", "text": text, "action": "", "at": None}


def test_a_burn_in_that_is_not_over_asks_nobody_to_act(monkeypatch: pytest.MonkeyPatch) -> None:
    report = msgspec.to_builtins(head(finished())) | {"state": "loading", "active": True}
    failed, *others = report["gpus"]
    because = [reason("fail", "2 new errors")]
    failed |= {"verdict": "FAIL", "action": "Replace it.", "reasons": because}
    for gpu in others:
        reasons = [
            {"consequence": "inconclusive", "text": "nothing was tested", "signal": "load", "action": "", "at": None}
        ]
        gpu |= {"verdict": "INCONCLUSIVE", "action": "Look.", "reasons": reasons}

    def get(client: Client, path: str, **query: Any) -> dict[str, Any]:
        assert path == "burnin/status"
        return report

    monkeypatch.setattr(Client, "get", get)
    shown = CliRunner().invoke(main, ["burnin", "status"]).stdout
    assert "It is not over" in shown and "do: Replace it." in shown
    assert "do: Look." not in shown and "nothing was tested" not in shown and "INCONCLUSIVE" not in shown
