from __future__ import annotations

import asyncio
import email
import email.policy
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from chat_support import chat
from click.testing import CliRunner, Result
from process_support import alive
from settings_support import in_force
from task_support import Failures

from obatchd.cli.doctor.alarm_checks import alarms as doctor_of_alarms
from obatchd.cli.obatchctl import main
from obatchd.documents.alarms import DiskLow, GpuQuarantined, JobDone
from obatchd.documents.answers import WayTried
from obatchd.errors import ConfigError
from obatchd.settings import reading, text
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.telling.alarms import Alarms

ROOT = Path(__file__).parents[2]
LOST = GpuQuarantined("GPU-1", 0, "", "", "lost", "rules", "")
KEEP = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read())"


async def wait_for(condition: Callable[[], object], timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


def settings(*command: str | Path, **more: object) -> Current[Settings]:
    return in_force(alarms={"command": list(map(str, command)), **more})


def done(job: str) -> JobDone:
    return JobDone(job, 0, 1, 1, 0, 1.0)


async def test_each_alarm_is_one_document_for_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBATCHD_SERVERS_REMOTE_TOKEN", "secret")
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # ours; a script in Python finds the modules beside it
    out = tmp_path / "told; touch hacked"
    script = KEEP + "; open(sys.argv[1] + '.env', 'w').write(repr(dict(__import__('os').environ)))"
    alarms = Alarms(settings(sys.executable, "-c", script, out), Failures())
    alarms.start()
    alarms.announce(LOST)
    alarms.announce(done("j"))  # not asked for
    alarms.announce(DiskLow("full"))
    await alarms.stop()
    told = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(alarm["kind"], alarm["reason"]) for alarm in told] == [("quarantine", "lost"), ("disk_low", "full")]
    assert told[0]["uuid"] == "GPU-1" and told[0]["host"] and told[0]["schema"] == 1
    environment = (tmp_path / "told; touch hacked.env").read_text()
    assert "secret" not in environment and "PYTHONSAFEPATH" not in environment
    assert not (tmp_path / "hacked").exists() and not Path("hacked").exists()


async def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"sleep 300 & echo $! > {pid_file}; wait"
    alarms = Alarms(settings("sh", "-c", script, timeout_s=0.5), Failures())
    alarms.start()
    began_s = time.monotonic()
    alarms.announce(DiskLow("full"))
    await wait_for(lambda: pid_file.exists() and pid_file.read_text().strip())
    child = int(pid_file.read_text())
    await alarms.stop()
    assert time.monotonic() - began_s < 15
    await wait_for(lambda: not alive(child))


@pytest.mark.parametrize("command", [["/nonexistent/mailer"], ["sh", "-c", "exit 3"], ["true"]])
async def test_a_command_that_fails_harms_nobody(
    tmp_path: Path, command: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    alarms = Alarms(settings(*command), Failures())
    alarms.start()
    alarms.announce(DiskLow("x" * 1_000_000))  # more than a pipe holds; nobody reads it
    await alarms.stop()
    assert ("alarm_failed" in caplog.text or "exit_code=3" in caplog.text) == (command != ["true"])


async def test_commands_that_end_before_they_read_stop_no_later_alarm(tmp_path: Path) -> None:
    out = tmp_path / "told"
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\n[ -e {tmp_path}/read ] || exit 0\ncat > {out}\n")
    script.chmod(0o755)
    alarms = Alarms(settings(script), Failures())
    alarms.start()
    for number in range(50):
        alarms.announce(DiskLow(f"{number}" + "x" * 1_000_000))
    await wait_for(lambda: not alarms._waiting, 60)
    (tmp_path / "read").touch()
    alarms.announce(DiskLow("last"))
    await alarms.stop()
    assert json.loads(out.read_text())["reason"] == "last"


async def test_finished_jobs_give_way_when_too_many_wait(tmp_path: Path) -> None:
    out = tmp_path / "told"
    alarms = Alarms(settings(sys.executable, "-c", KEEP, out, on=["job_done", "quarantine"]), Failures())
    alarms.announce(LOST)
    for number in range(150):
        alarms.announce(done(str(number)))
    assert len(alarms._waiting) == 100
    assert alarms._waiting[0]["kind"] == "quarantine" and alarms._waiting[-1]["job"] == "149"


def test_the_mail_script_writes_to_sendmail(tmp_path: Path) -> None:
    sendmail = tmp_path / "sendmail"
    sendmail.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat > {tmp_path}/mail\n')
    sendmail.chmod(0o755)
    text = "obatchd on node7: GPU 2 is in quarantine: XID 48\nBcc: evil@example.org"
    alarm = {"kind": "quarantine", "host": "node7", "text": text, "index": 2, "reason": "XID 48"}
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, ROOT / "etc" / "alarm-mail", "admin@example.org"]
    subprocess.run(command, input=json.dumps(alarm), text=True, env=environment, check=True, timeout=30)
    mail = (tmp_path / "mail").read_text()
    read = email.message_from_string(mail, policy=email.policy.default)
    assert read["Subject"] == "obatchd on node7: GPU 2 is in quarantine: XID 48 Bcc: evil@example.org"
    assert read["To"] == "admin@example.org" and read["Bcc"] is None and "index: 2" in read.get_content()
    assert (tmp_path / "arguments").read_text().split() == ["-t", "-oi"]


async def test_alarms_that_are_passed_on_no_more_are_told(tmp_path: Path) -> None:
    failures = Failures()
    alarms = Alarms(settings("true"), failures)
    alarms.start()
    alarms.announce(DiskLow(object()))  # type: ignore[arg-type]  # which JSON does not have
    await wait_for(lambda: failures)
    assert failures[0].startswith("alarms: TypeError")


async def test_alarms_that_wait_when_a_reload_ends_the_command_are_forgotten(tmp_path: Path) -> None:
    out, failures = tmp_path / "told", Failures()
    current = settings("sh", "-c", f"echo told >> {out}; sleep 0.5")
    alarms = Alarms(current, failures)
    alarms.start()
    alarms.announce(LOST)
    alarms.announce(DiskLow("full"))
    await wait_for(out.exists)
    current.value = settings().value
    await alarms.stop()
    assert failures == [] and out.read_text() == "told\n"


def test_the_mail_script_takes_a_mail_server_where_sendmail_fails(tmp_path: Path) -> None:
    sendmail = tmp_path / "sendmail"
    sendmail.write_text("#!/bin/sh\necho no queue >&2; exit 75\n")
    sendmail.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as server:
        got: list[str] = []
        thread = threading.Thread(target=_take_mail, args=(server, got))
        thread.start()
        command = [sys.executable, ROOT / "etc" / "alarm-mail", "ann@example.org"]
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        given = '{"kind": "test", "text": "obatchd on here: a test"}'
        by_server = environment | {"SMTP_SERVER": f"127.0.0.1:{server.getsockname()[1]}"}
        subprocess.run(command, input=given, text=True, env=by_server, check=True, timeout=30)
        thread.join(20)
    assert "rcpt TO:<ann@example.org>" in got[0] and "Subject: obatchd on here: a test" in got[0]
    failed = subprocess.run(command, input=given, text=True, env=environment | {"SMTP_SERVER": "127.0.0.1:1"},
                            capture_output=True, timeout=30)  # fmt: skip
    assert failed.returncode == 1 and "127.0.0.1:1 does not take it" in failed.stderr


def _take_mail(server: socket.socket, got: list[str]) -> None:
    """A mail server for one mail."""
    connection, _ = server.accept()
    with connection, connection.makefile("rw", newline="\r\n") as lines:
        said, in_data = "", False

        def answer(text: str) -> None:
            lines.write(text + "\n")
            lines.flush()

        answer("220 here")
        for line in lines:
            said += line
            if in_data:
                if line.strip() == ".":
                    in_data = False
                    answer("250 taken")
            elif line.lower().startswith("data"):
                in_data = True
                answer("354 go on")
            elif line.lower().startswith("quit"):
                answer("221 bye")
                break
            else:
                answer("250 good")
        got.append(said)


async def test_a_webhook_gets_a_message_that_chat_services_show(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "obatchd")
    async with chat() as service:
        alarms = Alarms(in_force(alarms={"webhook": service.url("T0KEN")}), Failures())
        alarms.start()
        alarms.announce(DiskLow("<!channel> & @all"))
        await alarms.stop()
        [(path, told)] = service.got
    assert path == "/T0KEN" and told["kind"] == "disk_low" and told["reason"] == "<!channel> & @all"
    assert told["text"].endswith("work waits because of the disk: &lt;!channel&gt; &amp; @\u200ball")
    assert told["content"].endswith("the disk: <!channel> & @\u200ball")
    assert "T0KEN" not in caplog.text and "webhook at 127.0.0.1" in caplog.text


async def test_a_webhook_that_fails_is_tried_again_and_shown_without_its_secret(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("obatchd.telling.alarms._POST_AGAIN_S", (0.0, 0.0))
    async with chat() as service:
        alarms = Alarms(in_force(alarms={"webhook": service.url("T0KEN")}), Failures())
        alarms.start()
        service.answers = [(500, "not now"), (200, "ok")]
        alarms.announce(DiskLow("full"))
        await wait_for(lambda: len(service.got) == 2)
        await wait_for(lambda: not alarms.troubles())
        service.answers = [(404, "no_service /T0KEN")] * 3
        alarms.announce(DiskLow("full"))
        await wait_for(lambda: len(service.got) == 5 and "404" in str(alarms.troubles()))
        [trouble] = alarms.troubles()
        assert trouble.startswith("alarms do not arrive: the webhook at 127.0.0.1 failed at 2")
        assert trouble.endswith("127.0.0.1 answered 404: no_service /…. Try it: obatchctl alarms test")
        await alarms.stop()
    assert "T0KEN" not in caplog.text


async def test_a_test_goes_through_every_way_and_says_what_came_of_it(tmp_path: Path) -> None:
    script = "import sys; print('no queue', file=sys.stderr); sys.exit(75)"
    async with chat() as service:
        both = {"command": [sys.executable, "-c", script], "webhook": service.url("x"), "on": []}
        current = in_force(alarms=both)
        alarms = Alarms(current, Failures())
        command, webhook = await alarms.test()
        assert (webhook.way, webhook.told, webhook.reason) == ("webhook at 127.0.0.1", True, "")
        assert not command.told and command.reason == "it ended with exit code 75: no queue"
        assert service.got[0][1]["kind"] == "test"
    assert len(alarms.troubles()) == 1
    service_gone = (await alarms.test())[1]
    assert not service_gone.told and service_gone.reason == "127.0.0.1 cannot be reached: Connection refused"
    current.value = in_force().value
    assert await alarms.test() == [] and alarms.troubles() == []


async def test_a_command_is_over_when_it_ends_though_something_holds_its_pipe(tmp_path: Path) -> None:
    """A daemon that it starts, say."""
    alarms = Alarms(settings("sh", "-c", "setsid sleep 60 & exit 0", timeout_s=20), Failures())
    began_s = time.monotonic()
    [way] = await alarms.test()
    assert way.told and time.monotonic() - began_s < 10


async def test_a_command_that_cannot_be_killed_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as sudo, or a sendmail that runs as another user."""
    groups: list[int] = []

    def forbidden(group: int, _: int) -> None:
        groups.append(group)
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("obatchd.telling.ways.os.killpg", forbidden)
    [way] = await Alarms(settings("true"), Failures()).test()
    assert way.told and len(groups) == 1
    async with asyncio.timeout(10):
        [way] = await Alarms(settings("sleep", "60", timeout_s=0.2), Failures()).test()
    assert way.reason == "it was not done in 0.2 s, and cannot be killed: it runs as another user"
    monkeypatch.undo()
    os.killpg(groups[-1], signal.SIGKILL)
    await wait_for(lambda: not Path(f"/proc/{groups[-1]}").exists())


def run_obatchctl(monkeypatch: pytest.MonkeyPatch, *ways: WayTried, arguments: str = "alarms test") -> Result:
    answer = {"schema": 1, "ways": [msgspec.to_builtins(way) for way in ways]}
    fake = SimpleNamespace(post=lambda path: answer if path == "alarms/test" else {})
    monkeypatch.setattr("obatchd.client.control.ControlClient", lambda spool: fake)
    return CliRunner().invoke(main, arguments.split())


def test_a_test_of_the_alarms_tells_people_of_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    told, failed = (
        WayTried("command mail", True, ""),
        WayTried("webhook at chat.lab", False, "it \x1b[31m answered 404"),
    )
    both = run_obatchctl(monkeypatch, told, failed)
    assert both.output == "command mail: told\nwebhook at chat.lab: failed: it \ufffd[31m answered 404\n"
    assert both.exit_code == 1 and run_obatchctl(monkeypatch, told).exit_code == 0
    none = run_obatchctl(monkeypatch)
    assert none.exit_code == 1 and "neither command nor webhook under [alarms]" in none.output
    document = json.loads(run_obatchctl(monkeypatch, failed, arguments="alarms test --json").output)
    assert document["ways"][0]["told"] is False


@pytest.mark.parametrize(
    ("tables", "level", "words"),
    [
        ({}, "ok", "nobody is told of alarms: neither command nor webhook is set under [alarms]"),
        ({"command": ["true", "x"]}, "ok", "told by command true"),
        (
            {"command": ["true"], "webhook": "https://chat.lab/T0KEN"},
            "ok",
            "told by command true and webhook at chat.lab",
        ),
        ({"command": ["/nowhere/mail"]}, "bad", "there is no program /nowhere/mail (alarms.command)"),
    ],
)
def test_doctor_looks_at_the_ways_of_alarms(tables: dict[str, object], level: str, words: str) -> None:
    finding = doctor_of_alarms(in_force(alarms=tables).value)
    assert finding.level == level and finding.text.startswith(words) and "T0KEN" not in finding.text


def test_doctor_says_that_no_mail_can_be_sent_to_submitters() -> None:
    rules = {"allow": ["*@example.org"], "mail_command": ["/nowhere/mail"]}
    finding = doctor_of_alarms(in_force(notifications=rules).value)
    assert finding.level == "warn"
    assert finding.text.startswith(
        "submitters cannot be told by mail: there is no program /nowhere/mail. Install it, or set"
    )
    assert finding.next_command == "ls -l /nowhere/mail"
    assert "no program is named" in doctor_of_alarms(in_force(notifications=rules | {"mail_command": []}).value).text
    assert doctor_of_alarms(in_force(notifications=rules | {"allow": ["chat.lab"]}).value).level == "ok"


def test_doctor_says_that_no_mail_leaves_a_host_without_a_mailer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, word of jobs was accepted, failed for 17 hours, and only the log said so."""
    ours = str(ROOT / "etc/alarm-mail")
    real = shutil.which
    sendmail: list[str] = []
    monkeypatch.setattr(
        "shutil.which", lambda name, **_: next(iter(sendmail), "") if name == "sendmail" else real(name)
    )
    monkeypatch.setattr("obatchd.cli.doctor.alarm_checks._SMTP_PORT", 1)
    for tables in ({"alarms": {"command": [ours, "ann@x.org"]}},
                   {"notifications": {"allow": ["*@x.org"], "mail_command": [ours]}}):  # fmt: skip
        finding = doctor_of_alarms(in_force(**tables).value)
        assert finding.level == "warn" and "no mail leaves it" in finding.text
        monkeypatch.setenv("SMTP_SERVER", "mail.x.org:25")
        assert doctor_of_alarms(in_force(**tables).value).level == "ok"
        monkeypatch.delenv("SMTP_SERVER")
        sendmail.append("/usr/sbin/sendmail")
        assert doctor_of_alarms(in_force(**tables).value).level == "ok"
        sendmail.clear()


def test_a_webhook_is_a_url_that_is_never_shown() -> None:
    with pytest.raises(ConfigError, match="webhook: must be an http or https URL"):
        reading.load(None, environ={"OBATCHD_ALARMS_WEBHOOK": "mail:ann@example.org"}, flags={})
    settings, origin = reading.load_with_origin(
        None, environ={"OBATCHD_ALARMS_WEBHOOK": "https://chat.lab/T0KEN"}, flags={}
    )
    assert settings.alarms.webhook == "https://chat.lab/T0KEN" and "T0KEN" not in text.show(settings, origin)
    assert "T0KEN" not in repr(settings)
