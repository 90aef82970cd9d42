from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from control_support import OBATCHCTL, FakeOperations, obatchctl, serving

from obatchd.control.auth import daemon_itself
from obatchd.control.operations import NewKeyAsked
from obatchd.documents.programs import HttpDoor
from obatchd.documents.status import Status

OBATCHD = OBATCHCTL.with_name("obatchd")


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[FakeOperations, Path]]:
    async with serving(tmp_path) as both:
        yield both


async def as_json(spool: Path, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """The one document a command prints with --json."""
    exit_code, printed = await obatchctl(spool, *arguments, "--json")
    assert exit_code == code, printed
    document: dict[str, Any] = json.loads(printed)
    assert document["schema"] == 1
    return document


async def test_status_shows_everything_without_colour_when_piped(served: tuple[FakeOperations, Path]) -> None:
    daemon, spool = served
    replace = msgspec.structs.replace
    first = daemon.servers[0]
    daemon.servers.append(replace(first, id="cpu0", gpu=None, gpus=[], loaded=None, slots=None))
    assert first.gpu is not None
    pair = [first.gpu, replace(first.gpu, index=1, utilisation_percent=90, temp_c=72)]
    daemon.servers.append(replace(first, id="group0", gpu=None, gpus=pair))
    daemon.servers.append(replace(first, id="gpu1", gpus=[replace(first.gpu, utilisation_percent=None, asleep=True)]))
    code, page = await obatchctl(spool, "status")
    assert code == 0
    for expected in (
        "running · obatchd 0.1.0",
        "0 L40S",
        "97 %",
        "30.0/48.0",
        "61 °C",
        "0,1 L40S",
        "94 %",
        "asleep",
        "60.0/96.0",
        "72 °C",
        "603 W",
        "301 W",
        "3/4",
        "3/?",
        "123.5",
        "llama3 (8192)",
        "note: another Ollama runs here",
        "5 requests in 1 job",
        "1 still being written, 1 blocked, 2 refused",
        "5.0 GiB free",
        "pulling",
        "20261122-101112-abcd",
        "50 %",
        "2 min 5 s",
    ):
        assert expected in page, expected
    assert "\x1b" not in page


class LaterStatus(Status, kw_only=True):
    """The status of a daemon that is newer than obatchctl."""

    later: str


async def test_status_as_json_is_the_daemons_document(
    served: tuple[FakeOperations, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon, spool = served
    host = daemon.operations.host
    status = host.status(daemon_itself())
    assert await as_json(spool, "status") == msgspec.to_builtins(status)
    newer = LaterStatus(**msgspec.structs.asdict(status), later="caf\xe9 \udcff")
    monkeypatch.setattr(host, "status", lambda caller: newer)
    assert await as_json(spool, "status") == {**msgspec.to_builtins(status), "later": "caf\xe9 \udcff"}


async def test_status_tells_degraded_by_its_exit_code(served: tuple[FakeOperations, Path]) -> None:
    daemon, spool = served
    daemon.state, daemon.reasons = "degraded", ["server gpu0 is failed: no memory"]
    code, page = await obatchctl(spool, "status")
    assert code == 1
    assert "server gpu0 is failed: no memory" in page
    await as_json(spool, "status", code=1)


async def test_a_daemon_that_is_down_is_one_plain_sentence(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    code, text = await obatchctl(spool, "status", stderr=True)
    assert code == 3
    assert f"There is no spool at {spool}" in text
    spool.mkdir()
    for command in (["status"], ["jobs"], ["servers"], ["drain"], ["models"], ["submit", __file__]):
        code, text = await obatchctl(spool, *command, stderr=True)
        assert code == 3, command
        assert text.startswith(f"obatchd is not running on {spool}. Drops in the inbox wait; nothing is lost.")
        assert text.endswith(f"To start it: obatchd --spool {spool}\n")
        assert text.count("\n") == 1
    document = await as_json(spool, "status", code=3)
    assert document["error"]["code"] == "daemon_down"


async def test_what_could_not_be_tested_is_not_said_to_have_failed(
    served: tuple[FakeOperations, Path], tmp_path: Path
) -> None:
    _, spool = served
    for code, command in (
        (2, ["start", "--wait"]),
        (2, ["report", str(tmp_path / "missing.json")]),
        (2, ["compare", str(tmp_path / "missing.json")]),
        (1, ["start"]),
        (1, ["stop"]),
    ):
        assert (await obatchctl(spool, "burnin", *command, stderr=True))[0] == code, command


async def test_no_permission_is_exit_code_4(served: tuple[FakeOperations, Path]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may do everything")
    _, spool = served
    (spool / "obatchd.json").chmod(0)
    assert (await obatchctl(spool, "status"))[0] == 4


async def test_usage_errors_are_exit_code_2(tmp_path: Path) -> None:
    for arguments in (["nothing"], ["job"], ["jobs", "--limit", "0"], ["submit", "/nowhere"], ["--nothing"]):
        assert (await obatchctl(tmp_path, *arguments))[0] == 2, arguments


async def test_watch_prints_again_and_again_until_interrupted(served: tuple[FakeOperations, Path]) -> None:
    _, spool = served
    process = await asyncio.create_subprocess_exec(
        OBATCHCTL, "--spool", spool, "status", "--watch", "--interval", "0.1", "--json", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    for _ in range(3):
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        assert json.loads(line)["state"] == "running"
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0


async def test_jobs_are_watched_with_speed_and_failures(served: tuple[FakeOperations, Path]) -> None:
    daemon, spool = served
    next(iter(daemon.known.values())).failed = 3
    process = await asyncio.create_subprocess_exec(
        OBATCHCTL, "--spool", spool, "jobs", "--watch", "--interval", "0.1", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    printed = [(await asyncio.wait_for(process.stdout.readline(), 30)).decode() for _ in range(4)]
    assert printed[:2] == printed[2:]
    assert "TOKENS/S" in printed[0]
    assert "2.5" in printed[1] and "120.0" in printed[1] and " 3 " in printed[1]
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0


async def test_waiting_shows_a_bar_with_speed_failures_and_the_rest_of_the_time(
    served: tuple[FakeOperations, Path], tmp_path: Path
) -> None:
    _, spool = served
    drop = tmp_path / "drop.jsonl"
    drop.write_text('{"prompt": "a"}\n')
    leader, follower = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "COLUMNS": "140"}
    process = await asyncio.create_subprocess_exec(
        OBATCHCTL, "--spool", spool, "submit", drop, "--wait", stdout=follower, stderr=follower, env=environment
    )
    os.close(follower)
    reading = asyncio.create_task(asyncio.to_thread(read_terminal, leader))
    printed = await reading
    await asyncio.wait_for(process.wait(), 30)
    assert "drop.jsonl" in printed
    assert "2.5/s, 120 tokens/s" in printed


async def test_jobs_and_one_job(served: tuple[FakeOperations, Path]) -> None:
    daemon, spool = served
    assert len((await as_json(spool, "jobs"))["jobs"]) == 1
    assert (await as_json(spool, "jobs", "--state", "done"))["jobs"] == []
    assert "No jobs." in (await obatchctl(spool, "jobs", "--state", "done"))[1]
    code, problem = await obatchctl(spool, "jobs", "--after", "prompts.jsonl", stderr=True)
    assert code == 1 and "after must be the id of a job" in problem, "else it would be the beginning of the list again"
    assert "prompts.jsonl" in (await obatchctl(spool, "jobs"))[1]
    next(iter(daemon.known.values())).notes = ["model \x1b[2Jtaken"]
    code, text = await obatchctl(spool, "job", "2026")
    assert code == 0
    assert "note: model" in text
    assert "\x1b" not in text
    code, text = await obatchctl(spool, "job", "zzz", stderr=True)
    assert (code, text) == (1, "no job zzz\n")
    assert (await as_json(spool, "job", "zzz", code=1))["error"] == {"code": "not_found", "message": "no job zzz"}


async def test_commands_reach_the_daemon(served: tuple[FakeOperations, Path]) -> None:
    daemon, spool = served
    for arguments in (
        ["cancel", "2026"],
        ["retry", "2026"],
        ["pause"],
        ["pause", "2026"],
        ["resume", "2026"],
        ["resume"],
        ["servers", "drain", "gpu0"],
        ["servers", "resume", "gpu0"],
        ["servers", "restart", "gpu0"],
        ["models", "rm", "user/model:7b"],
    ):
        assert (await obatchctl(spool, *arguments))[0] == 0, arguments
    assert daemon.calls == [
        ("cancel", "2026"),
        ("retry", "2026"),
        ("pause", None),
        ("pause", "2026"),
        ("resume", "2026"),
        ("resume", None),
        ("drain", "gpu0"),
        ("resume", "gpu0"),
        ("restart", "gpu0"),
        ("rm", "user/model:7b"),
    ]


async def test_servers_and_models(served: tuple[FakeOperations, Path]) -> None:
    _, spool = served
    for arguments in (["servers"], ["servers", "list"]):
        assert "gpu0" in (await obatchctl(spool, *arguments))[1]
        assert (await as_json(spool, *arguments))["servers"][0]["id"] == "gpu0"
    for arguments in (["models"], ["models", "list"]):
        assert "llama3:8b" in (await obatchctl(spool, *arguments))[1]
    assert (await as_json(spool, "models", "pull", "m"))["completed_bytes"] == 2
    code, text = await obatchctl(spool, "models", "pull", "missing", stderr=True)
    assert (code, text) == (1, "there is no model missing\n")


async def test_drain_waits_until_it_is_safe_to_reboot(served: tuple[FakeOperations, Path]) -> None:
    daemon, spool = served
    assert (await obatchctl(spool, "drain", "--wait")) == (0, "Drained: safe to reboot.\n")
    assert daemon.state == "drained"
    assert (await obatchctl(spool, "undrain"))[0] == 0
    assert daemon.state == "running"


async def test_reload_tells_what_is_changed_and_what_needs_a_restart(served: tuple[FakeOperations, Path]) -> None:
    daemon, spool = served
    code, text = await obatchctl(spool, "reload")
    assert code == 0
    assert "Changed: inbox.settle_s" in text
    assert "Changed for jobs accepted from now on: model" in text
    assert "Needs a restart of the daemon: servers.slots" in text
    daemon.state = "degraded"
    stays = "Nothing has changed: obatchd goes on with the settings that it had."
    assert (await obatchctl(spool, "reload", stderr=True)) == (78, f"obatchd.toml: modle: no such setting\n{stays}\n")


async def test_submit_wait_and_fetch(served: tuple[FakeOperations, Path], tmp_path: Path) -> None:
    daemon, spool = served
    for name in ("one.jsonl", "two.jsonl"):
        (tmp_path / name).write_text(name)
    (tmp_path / "job.toml").write_text('model = "m"\npriority = "low"\n[ollama_instances]\n"h:1" = 0\n')
    arguments = ["--config", tmp_path / "job.toml", "--model", "n", "--output-dir", tmp_path / "results"]
    code, text = await obatchctl(spool, "submit", tmp_path / "one.jsonl", tmp_path / "two.jsonl", *arguments)
    assert code == 0, text
    assert text.startswith("job1  ")
    assert [content for _, content in daemon.submitted] == [
        {"one.jsonl": b"one.jsonl"},
        {"two.jsonl": b"two.jsonl"},
    ]
    assert daemon.submitted[0][0].settings == {"model": "n", "priority": "low"}
    fetched = tmp_path / "results" / "one.jsonl.job1"
    assert (fetched / "responses" / "1.txt").read_text() == "answer"
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["one.jsonl.job1", "two.jsonl.job2"]


async def test_submit_answers_with_one_document(served: tuple[FakeOperations, Path], tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text("x")
    document = await as_json(served[1], "submit", tmp_path / "one.jsonl")
    assert [job["job"] for job in document["jobs"]] == ["job1"]
    document = await as_json(served[1], "submit", tmp_path / "one.jsonl", "--output-dir", tmp_path / "r")
    assert Path(document["jobs"][0]["copied_to"]) == tmp_path / "r" / "one.jsonl.job2"


async def test_a_failed_request_or_a_refused_drop_is_exit_code_1(
    served: tuple[FakeOperations, Path], tmp_path: Path
) -> None:
    for name in ("bad.jsonl", "refuse.json", "good.jsonl"):
        (tmp_path / name).write_text("x")
    code, text = await obatchctl(served[1], "submit", tmp_path / "bad.jsonl", "--wait")
    assert code == 1 and "  1 no_model: no model is named\n    → name a model\n" in text
    document = await as_json(served[1], "submit", tmp_path / "refuse.json", tmp_path / "good.jsonl", code=1)
    assert [job["job"] for job in document["jobs"]] == ["job2"]
    assert document["refused"][0]["error"]["message"] == "not one of our formats"
    code, text = await obatchctl(served[1], "submit", tmp_path / "refuse.json", stderr=True)
    assert (code, text) == (1, f"{tmp_path / 'refuse.json'} was not accepted: not one of our formats\n")


async def test_wrong_job_settings_stop_before_anything_is_sent(
    served: tuple[FakeOperations, Path], tmp_path: Path
) -> None:
    (tmp_path / "job.toml").write_text('modle = "m"\n')
    code, text = await obatchctl(served[1], "submit", __file__, "--config", tmp_path / "job.toml", stderr=True)
    assert code == 78
    assert "did you mean model?" in text
    assert not served[0].submitted


async def test_an_interrupted_wait_says_that_the_work_goes_on(
    served: tuple[FakeOperations, Path], tmp_path: Path
) -> None:
    daemon, spool = served
    daemon.finished_state = "running"
    process = await asyncio.create_subprocess_exec(
        OBATCHCTL, "--spool", spool, "submit", "--wait", __file__,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), 30)
    await until(lambda: daemon.looked > 0)
    process.send_signal(signal.SIGINT)
    _, complaints = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 130
    assert b"The work goes on" in complaints


async def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_config_check_show_and_init(tmp_path: Path) -> None:
    good, wrong = tmp_path / "good.toml", tmp_path / "wrong.toml"
    assert (await obatchctl(tmp_path, "config", "init", good))[0] == 0
    assert (await obatchctl(tmp_path, "config", "init", good, stderr=True))[0] == 1
    assert (await obatchctl(tmp_path, "config", "check", good)) == (0, f"{good}: good\n")
    assert "[inbox]" in (await obatchctl(tmp_path, "config", "init"))[1]
    wrong.write_text("[inbox]\nsettle = 3\n")
    code, text = await obatchctl(tmp_path, "config", "check", wrong, stderr=True)
    assert (code, text) == (78, f"{wrong}: inbox.settle: no such setting; did you mean inbox.settle_s?\n")
    wrong.write_text("[inbox]\nsettle_s = 3\n")
    document = await as_json(tmp_path, "config", "show", wrong)
    assert document["settings"]["inbox.settle_s"] == 3
    assert document["origin"] == {"spool": "OBATCH_SPOOL", "inbox.settle_s": str(wrong)}
    assert tomllib.loads((await obatchctl(tmp_path, "config", "show", wrong))[1])["inbox"]["settle_s"] == 3


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_completion(tmp_path: Path, shell: str) -> None:
    code, text = await obatchctl(tmp_path, "completion", shell)
    assert code == 0
    assert "_OBATCHCTL_COMPLETE" in text


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("obatchctl job 2026", {"20261122-101112-abcd"}),
        ("obatchctl cancel ", {"20261122-101112-abcd"}),
        ("obatchctl cancel 1999", set()),
        ("obatchctl servers drain g", {"gpu0"}),
        ("obatchctl models rm ", {"llama3:8b"}),
    ],
)
async def test_ids_and_names_are_completed(
    served: tuple[FakeOperations, Path], typed: str, completed: set[str]
) -> None:
    _, spool = served
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    _, text = await obatchctl(spool, _OBATCHCTL_COMPLETE="bash_complete", **words)
    assert {line.removeprefix("plain,") for line in text.split()} == completed


async def test_completion_without_a_daemon_is_silent(tmp_path: Path) -> None:
    words = {"COMP_WORDS": "obatchctl job ", "COMP_CWORD": "2"}
    for stderr in (False, True):
        _, text = await obatchctl(tmp_path, stderr=stderr, _OBATCHCTL_COMPLETE="bash_complete", **words)
        assert text.strip() == ""


@pytest.mark.parametrize(
    "arguments",
    ["submit --json {spool}/nothing", "jobs --limit many --json", "--json status --wacht", "--json nonsense"],
)
async def test_wrong_usage_is_a_document_with_json(tmp_path: Path, arguments: str) -> None:
    code, text = await obatchctl(tmp_path, *arguments.format(spool=tmp_path).split())
    assert code == 2
    error = json.loads(text)["error"]
    assert error["code"] == "usage"
    assert any(word in error["message"] for word in ("does not exist", "whole number", "--watch", "No such command"))


async def test_json_may_come_before_the_command(served: tuple[FakeOperations, Path]) -> None:
    code, text = await obatchctl(served[1], "--json", "jobs")
    assert (code, json.loads(text)["schema"]) == (0, 1)


async def test_every_command_has_help_and_json(tmp_path: Path) -> None:
    _, text = await obatchctl(tmp_path, "--help")
    commands = [line.split()[0] for line in text.partition("Commands:")[2].splitlines() if line.strip()]
    assert len(commands) > 10
    for command in commands:
        code, text = await obatchctl(tmp_path, command, "--help")
        assert code == 0
        assert "--json" in text, command


async def test_status_fits_a_terminal_and_has_colours_there(served: tuple[FakeOperations, Path]) -> None:
    _, spool = served
    leader, follower = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "COLUMNS": "100"}
    process = await asyncio.create_subprocess_exec(
        OBATCHCTL, "--spool", spool, "status", stdout=follower, stderr=follower, env=environment
    )
    os.close(follower)
    printed = await asyncio.to_thread(read_terminal, leader)
    assert await asyncio.wait_for(process.wait(), 30) == 0
    assert "\x1b[" in printed
    assert "gpu0" in printed


def read_terminal(descriptor: int) -> str:
    data = b""
    try:
        while part := os.read(descriptor, 65536):
            data += part
    except OSError:  # EIO: the other end is closed
        pass
    os.close(descriptor)
    return data.decode()


async def test_status_starts_quickly_and_imports_nothing_heavy(served: tuple[FakeOperations, Path]) -> None:
    """The wall time is measured, not judged, where cores are shared; what it depends on is judged."""
    _, spool = served
    program = (
        "import sys\nfrom obatchd.cli.obatchctl import main\n"
        "try:\n    main(['status'])\nfinally:\n    print(*sorted(sys.modules), file=sys.stderr)\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env={"PATH": "", "OBATCH_SPOOL": str(spool)},
        stdout=subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, modules = await asyncio.wait_for(process.communicate(), 30)
    heavy = {
        "aiohttp",
        "pydantic",
        "ollama",
        "asyncio",
        "msgspec",
        "uvloop",
        "httpx",
        "pynvml",
        "psutil",
        "typing_extensions",
    }
    assert heavy & set(modules.decode().split()) == set()


async def test_obatchd_refuses_a_wrong_configuration(tmp_path: Path) -> None:
    file = tmp_path / "obatchd.toml"
    file.write_text('modle = "x"\n[servers]\nslots = 0\n')
    process = await asyncio.create_subprocess_exec(
        OBATCHD, "--config", file, "--spool", tmp_path / "spool", stderr=asyncio.subprocess.PIPE
    )
    _, complaints = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 78
    assert f"{file}: modle: no such setting; did you mean model?" in complaints.decode()
    assert 'servers.slots: must be "auto" or a whole number from 1 to 64' in complaints.decode()
    assert not (tmp_path / "spool").exists()


async def test_the_output_of_a_server(served: tuple[FakeOperations, Path]) -> None:
    _, spool = served
    assert await obatchctl(spool, "servers", "logs", "gpu0", "-n", "2") == (0, "gpu0 line 0\ngpu0 line 1\n")
    code, printed = await obatchctl(spool, "servers", "logs", "gpu0", "-n", "1", "--json")
    assert code == 0 and json.loads(printed) == {"schema": 1, "line": "gpu0 line 0"}


async def test_keys_of_programs_are_shown_once_and_removed(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, spool):
        assert (await obatchctl(spool, "key"))[1].startswith("No keys.")
        daemon.door = HttpDoor("10.0.0.1:8434", True, "")
        code, printed = await obatchctl(spool, "key", "add", "--label", "note", "--expires", "2d", "--scope", "batches")
        assert code == 0
        assert printed == "export OPENAI_BASE_URL=https://10.0.0.1:8434/v1\nexport OPENAI_API_KEY=obk_secret\n"
        assert daemon.calls[-1] == ("add key", NewKeyAsked("note", 2.0, ["batches"], False))
        assert (await obatchctl(spool, "key", "add", "--scope", "metrics")) == (0, "obk_secret\n")  # into a file
        assert "export" in (await obatchctl(spool, "key", "add", "--scope", "metrics", "--scope", "batches"))[1]
        _, listed = await obatchctl(spool, "key", "list")
        assert "key-0011" in listed and "note" in listed and "obk_" not in listed
        assert (await obatchctl(spool, "status", "--json"))[1].count('"http": {"address": "10.0.0.1:8434"') == 1
        daemon.door = HttpDoor("10.0.0.1:8434", True, "its port is in use")
        assert "its port is in use" in (await obatchctl(spool, "status"))[1]
        assert (await obatchctl(spool, "key", "rm", "key-0011")) == (0, "key-0011 removed.\n")
        assert (await obatchctl(spool, "key", "list"))[1].startswith("No keys.")


async def test_hosts_are_listed_with_what_there_is_to_say_of_them(
    served: tuple[FakeOperations, Path], tmp_path: Path
) -> None:
    daemon, spool = served
    code, page = await obatchctl(spool, "hosts")
    assert code == 0 and "node07" in page and "the connection broke; Slurm job 4711; its clock" in page
    assert "enrolment enrol-1: good until 2026-12-06T10:00Z, 1 host by it" in page
    assert (await as_json(spool, "hosts"))["hosts"][0]["gpus"] == 4
    _, told = await obatchctl(spool, "hosts", "code", "--head", "head:7700")
    assert "sudo obatchd-join 'obatch://10.0.0.1:7700/#secret.pin'" in told
    file = tmp_path / "enrolment"
    _, told = await obatchctl(spool, "hosts", "enrol", "--out", file, "--valid", "2h")
    assert "secret" not in told and file.read_text() == "obatch://10.0.0.1:7700/#secret.pin\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert (await obatchctl(spool, "hosts", "forget"))[0] == 2
    assert "node07" in (await obatchctl(spool, "hosts", "forget", "--enrolment", "enrol-1"))[1]
    assert daemon.calls == [("code", "head:7700"), ("enrol", 7200.0, ""), ("revoke", "enrol-1")]
