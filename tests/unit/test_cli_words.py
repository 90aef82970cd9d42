"""What obatchctl says when it is used wrongly, and of what is not over yet."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from settings_support import in_force
from test_burnin_parts import finished

from obatchd.burnin.report.report import head
from obatchd.cli.commands import config, submit
from obatchd.cli.obatchctl import main
from obatchd.cli.views import waiting
from obatchd.cli.views.status import OUTCOMES
from obatchd.client.control import ControlClient
from obatchd.errors import ConfigError, ControlError, DaemonDownError
from obatchd.jobs.store import Store
from obatchd.spool.layout import Layout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("statu", "No such command 'statu'. Did you mean 'status'?"),
        ("xyzzy", "No such command 'xyzzy'.\n"),
        ("submit {here} --wat", "No such option '--wat'. Did you mean '--wait'?\n"),
        ("retry x --label", "No such option '--label'.\n"),
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
    monkeypatch.setattr(waiting, "DOWN_S", 0.0)
    with pytest.raises(DaemonDownError):
        waiting.wait(look, quiet=True)
    answers = iter([DaemonDownError("not yours", code="permission")])
    with pytest.raises(DaemonDownError):
        waiting.wait(look, quiet=True)


def test_a_view_that_is_drawn_again_says_how_to_leave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ControlClient, "get", lambda *_, **__: {"jobs": []})
    monkeypatch.setattr("obatchd.terminal.draws", lambda _: True)
    monkeypatch.setattr(
        waiting, "sys", SimpleNamespace(stdout=SimpleNamespace(fileno=lambda: 1, isatty=lambda: True), exit=sys.exit)
    )
    monkeypatch.setattr(waiting, "os", SimpleNamespace(get_terminal_size=lambda _: SimpleNamespace(lines=24)))
    monkeypatch.setattr(waiting, "time", SimpleNamespace(sleep=leave))
    result = CliRunner().invoke(main, ["jobs", "--watch"])
    assert "Ctrl-C ends this view." in result.stdout


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
    refused = "far: 10.0.0.5:11434 cannot be reached: Connection refused. (next try at 17:00:0{})"
    reasons = [refused.format(1), refused.format(4), refused.format(4), "far: [it] is full"]
    looks = iter([*({**usual, "held_up": reason} for reason in reasons), {**usual, "state": "done"}])
    first = [{**usual}] if draws else []
    waiting.wait(lambda: [first.pop() if first else next(looks)], quiet=False)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("20261128-120000-abcd waits: far: ") == 2
    assert "Connection refused. (next try at 17:00:01)" in said and "waits: far: [it] is full" in said


def test_a_configuration_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "batch.toml").write_text("mine")
    result = CliRunner().invoke(main, ["config", "init", str(tmp_path / "batch.toml")])
    assert (result.exit_code, result.stderr) == (1, f"{tmp_path / 'batch.toml'} is there already; name another file\n")
    assert (tmp_path / "batch.toml").read_text() == "mine"


@pytest.mark.parametrize(
    "words",
    [
        "results {here}/answers -o {here}/no/t.csv",
        "results {here}/answers --review 5 -o {here}/no/t.html",
        "compare {here}/answers {here}/answers -o {here}/no/t.csv",
        "config init {here}/no/t.csv",
        "backup {here}/no/t.tar",
        "burnin report {here}/report.json --html {here}/no/t.html",
        "burnin bundle --run {here}/report.json 0 --output {here}/no/t.tar.gz",
    ],
)
def test_a_folder_that_is_missing_is_named_by_every_command_that_writes_a_file(tmp_path: Path, words: str) -> None:
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "a.json").write_text('{"response": "yes"}')
    (tmp_path / "report.json").write_bytes(msgspec.json.encode(finished()))
    Store(Layout.open(tmp_path / "spool").work, in_force(model="small")).close()
    command = words.format(here=tmp_path).split()
    for what in ("there is no folder {no}", "{no} is not a folder"):
        result = CliRunner().invoke(main, ["--spool", str(tmp_path / "spool"), *command])
        assert result.exit_code == (2 if command[0] == "burnin" else 1)
        assert result.stderr == f"{command[-1]} cannot be written: {what.format(no=tmp_path / 'no')}\n"
        (tmp_path / "no").write_text("a file")


def test_results_that_cannot_be_copied_are_told_without_numbers_of_errors(tmp_path: Path) -> None:
    source, taken = tmp_path / "outbox" / "a.job", tmp_path / "taken"
    for what in (f"{source}: No such file or directory", f"No such file or directory: '{source / 'gone'}'"):
        with pytest.raises(ControlError) as refused:
            submit._fetch({"outbox": str(source)}, tmp_path)
        assert refused.value.message == f"the results in {source} cannot be copied to {tmp_path}: {what}"
        source.mkdir(parents=True, exist_ok=True)
        (source / "gone").unlink(missing_ok=True)
        (source / "gone").symlink_to("nowhere")
    taken.write_text("a file")
    with pytest.raises(ControlError, match=f"cannot be copied to {taken}: {taken}: File exists"):
        submit._fetch({"outbox": str(source)}, taken)


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

    def get(client: ControlClient, path: str, **query: Any) -> dict[str, Any]:
        assert path == "burnin/status"
        return report

    monkeypatch.setattr(ControlClient, "get", get)
    shown = CliRunner().invoke(main, ["burnin", "status"]).stdout
    assert "It is not over" in shown and "do: Replace it." in shown
    assert "do: Look." not in shown and "nothing was tested" not in shown and "INCONCLUSIVE" not in shown


def test_a_gpu_is_called_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {"uuid": "GPU-5150a7ed-0000", "index": 0, "forgotten": False, "accepted": []}
    monkeypatch.setattr(ControlClient, "post", lambda *_, **__: told | {"lent_until": "2026-11-28T15:00:00.5Z"})
    for words, answer in (
        ("release 0", "GPU 0: released"),
        ("lend 0 --for 3h", "GPU 0: lent until 2026-11-28T15:00:00Z"),
        ("lend 0 --back", "GPU 0: taken back"),
        ("quarantine 0", "GPU 0: in quarantine"),
    ):
        assert CliRunner().invoke(main, ["gpus", *words.split()]).stdout == f"{answer}\n"
    told["index"] = None
    assert CliRunner().invoke(main, ["gpus", "release", "0"]).stdout == "GPU GPU-5150a7ed-0000: released\n"


def test_a_configuration_that_names_what_is_not_there_is_good_with_a_warning(tmp_path: Path) -> None:
    file, store, program = tmp_path / "batch.toml", tmp_path / "models", tmp_path / "tell"
    file.write_text(
        f'[alarms]\ncommand = ["{program}", "x"]\n[servers]\nmodels_dir = "{store}"\nollama = "no-such-ollama"\n'
        '[notifications]\nallow = ["*@example.org"]\nmail_command = ["no-such-mail"]\n'
    )
    result = CliRunner().invoke(main, ["config", "check", str(file)])
    assert (result.exit_code, result.stdout.splitlines()) == (0, [
        f"{file}: good, with 4 warnings:",
        f"  alarms.command: there is no program {program}",
        "  notifications.mail_command: there is no program no-such-mail",
        "  servers.ollama: there is no program no-such-ollama",
        f"  servers.models_dir: there is no directory {store}",
    ])  # fmt: skip
    program.touch(0o644)
    store.mkdir()
    file.write_text('[access]\nsubmit_group = "no-such-group"\n')
    warning = "  access.submit_group: there is no group no-such-group; sudo groupadd --system no-such-group makes it"
    assert CliRunner().invoke(main, ["config", "check", str(file)]).stdout.splitlines()[1:] == [warning]
    file.write_text(f'[alarms]\ncommand = ["{program}"]\n[servers]\nmodels_dir = "{store}"\n')
    lines = CliRunner().invoke(main, ["config", "check", str(file)]).stdout.splitlines()
    assert lines == [f"{file}: good, with 1 warning:", f"  alarms.command: {program} cannot be run"]
    program.chmod(0o755)
    assert CliRunner().invoke(main, ["config", "check", str(file)]).stdout == f"{file}: good\n"


def test_a_reload_says_what_stays_and_how_to_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, who added a host read that a restart is needed, and not how, nor whether jobs survive it."""

    def wrong(*_: object) -> None:
        raise ConfigError("batch.toml: no: no such setting")

    def reload() -> Result:
        return CliRunner().invoke(main, ["--spool", str(tmp_path), "reload"])

    monkeypatch.setattr(ControlClient, "post", wrong)
    told = reload()
    assert told.exit_code == 78 and "goes on with the settings that it had" in told.stderr
    answer = {"changed": [], "next_job": [], "needs_restart": ["ollama_instances"]}
    monkeypatch.setattr(ControlClient, "post", lambda *_: answer)
    assert reload().stdout.splitlines() == [
        "Needs a restart of the daemon: ollama_instances",
        f"Jobs go on after the restart: stop it with Ctrl-C, then: obatchd --spool {tmp_path}",
    ]


def test_the_settings_that_are_shown_are_those_of_the_daemon_on_the_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, they were the defaults unless somebody named its file."""
    (tmp_path / "hosts.toml").write_text('model = "tiny"')
    monkeypatch.setattr(config, "last_config", {tmp_path: str(tmp_path / "hosts.toml")}.get)
    shown = CliRunner().invoke(main, ["--spool", str(tmp_path), "config", "show"]).stdout
    assert 'model = "tiny"' in shown


def test_a_check_says_what_is_made_of_addresses_and_what_is_of_no_use(tmp_path: Path) -> None:
    """Before, 4 behind an address (meant as slots), slots of no server, and no server at all were good."""

    def checked(text: str) -> list[str]:
        (tmp_path / "hosts.toml").write_text(text)
        result = CliRunner().invoke(main, ["config", "check", str(tmp_path / "hosts.toml")])
        assert result.exit_code == 0
        return result.stdout.splitlines()[1:]

    hosts = '[ollama_instances]\n"10.0.0.5" = -1\n"10.0.0.6" = -1\n'
    assert checked(f'model = "tiny"\n[servers]\nremote_slots = 2\n{hosts}') == [
        "  2 servers of [ollama_instances], 2 requests at a time for each (servers.remote_slots)",
        "  model: tiny",
    ]
    slots, *_, model = checked(f"[servers]\nslots = 4\n{hosts}")
    assert slots.startswith("  servers.slots is for servers that obatchd starts") and "none" in model
    assert any("no slots" in line for line in checked('[ollama_instances]\n"10.0.0.5" = 4\n'))
    assert checked('gpus = "none"') == [
        '  gpus.use is "none" and [ollama_instances] is empty: only the CPU of this host works'
    ]
