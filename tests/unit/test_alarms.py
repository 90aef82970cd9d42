from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from settings_support import in_force
from task_support import Failures

from obatchd.documents.alarms import DiskLow, GpuQuarantined, JobDone
from obatchd.gpucare.alarms import Alarms
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

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


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


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
    alarm = {"kind": "quarantine", "host": "node7", "index": 2, "reason": "XID 48\nBcc: evil@example.org"}
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, ROOT / "etc" / "alarm-mail", "admin@example.org"]
    subprocess.run(command, input=json.dumps(alarm), text=True, env=environment, check=True, timeout=30)
    mail = (tmp_path / "mail").read_text()
    head, _, body = mail.partition("\n\n")
    assert "Subject: obatchd on node7: GPU 2 is in quarantine" in head and "To: admin@example.org" in head
    assert "Bcc" not in head and "XID 48" in body
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
