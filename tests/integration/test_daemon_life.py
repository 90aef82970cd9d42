"""Signals, kills and restarts of the running daemon: nothing is lost, nothing is done twice, nothing stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from daemon_support import BIN, Daemon, ask_server, jsonl, kill_server, prompts, wait_for
from port_support import free_ports
from process_support import alive

Start = Callable[..., Daemon]
STEADY: dict[str, Any] = {"service_s": {"kind": "fixed", "value": 0.1}}


def under_way(d: Daemon, name: str, at_least: int = 4) -> None:
    """Wait until some requests of a job are answered and others are not."""
    job = d.job(name)
    wait_for(lambda: sum(s["requests_done"] for s in d.servers()) >= at_least, 10, "some answers")
    assert not (job.directory / "summary.json").exists()


def gone(parts: list[psutil.Process], within_s: float = 2.0) -> None:
    """Every one of these processes ends soon."""
    _, left = psutil.wait_procs(parts, timeout=within_s)
    assert not [part for part in left if alive(part.pid)], left


def test_a_killed_server_comes_back_and_nothing_is_lost(daemon: Start) -> None:
    d = daemon(simulator=STEADY)
    asked = prompts(100)
    d.drop("job.jsonl", asked)
    under_way(d, "job.jsonl")
    victim = d.servers()[0]
    [runner] = ask_server(victim["url"], "/simulator/state")["runners"]
    kill_server(victim)
    wait_for(lambda: not alive(victim["pid"]) and not alive(runner), 3, "serve and its runner are gone")
    summary = d.done("job.jsonl").check(asked)
    wait_for(lambda: d.servers()[0]["state"] == "ready", 10, "the server is back")
    back = d.servers()[0]
    assert (back["restarts"], back["pid"] != victim["pid"]) == (1, True)
    assert set(summary["servers"]) == {"gpu0", "gpu1"}


def test_a_killed_runner_costs_nothing_but_a_reload(daemon: Start) -> None:
    d = daemon(simulator=STEADY)
    asked = prompts(80)
    d.drop("job.jsonl", asked)
    under_way(d, "job.jsonl")
    [runner] = d.seen()[1]["runners"]
    os.kill(runner, signal.SIGKILL)
    d.done("job.jsonl").check(asked)
    assert len(d.seen()[1]["loads"]) == 2


def test_a_killed_worker_comes_back_and_nothing_is_lost(daemon: Start) -> None:
    d = daemon(simulator=STEADY)
    asked = prompts(100)
    d.drop("job.jsonl", asked)
    under_way(d, "job.jsonl")
    victim = d.servers()[0]
    os.kill(victim["worker_pid"], signal.SIGKILL)
    d.done("job.jsonl").check(asked)
    now = d.servers()[0]
    assert now["worker_pid"] not in (None, victim["worker_pid"])
    assert (now["pid"], now["restarts"]) == (victim["pid"], 0)


def test_sigterm_in_the_middle_of_a_job_and_on_again(daemon: Start) -> None:
    d = daemon(simulator=STEADY)
    asked = prompts(80)
    d.drop("job.jsonl", asked)
    under_way(d, "job.jsonl")
    parts = d.parts()
    assert d.stop() == 0
    gone(parts, 0.5)
    assert not list(d.outbox.glob("*/summary.json"))
    log = d.log()
    assert "attempt_failed" not in log  # what was in flight was answered
    d.drop("meanwhile.jsonl", prompts(3))
    d.start()
    d.done("job.jsonl").check(asked)
    d.done("meanwhile.jsonl").check()
    assert all(r["attempts"] == 1 for r in d.job("job.jsonl").results)


def test_ctrl_c_reaches_the_whole_group_and_drains(daemon: Start) -> None:
    d = daemon(simulator={"service_s": {"kind": "fixed", "value": 0.6}})
    d.drop("job.jsonl", prompts(40))
    wait_for(lambda: all(s["in_flight"] == 4 for s in d.servers()), 10, "every slot is in use")
    before = sum(s["served"] for s in d.seen())
    parts = d.parts()
    os.killpg(d.pid, signal.SIGINT)
    assert d.process is not None
    assert d.process.wait(10) == 0
    gone(parts, 0.5)
    assert "attempt_failed" not in d.log()
    assert d.servers_alive() == []
    d.start()
    # What was in flight when Ctrl-C came was answered then and is not asked again.
    wait_for(lambda: d.client.get("jobs")["jobs"][0]["succeeded"] >= before + 8, 10, "answers before Ctrl-C count")
    d.done("job.jsonl").check()
    assert all(r["attempts"] == 1 for r in d.job("job.jsonl").results)


def test_a_second_sigterm_does_not_wait(daemon: Start) -> None:
    d = daemon({"drain_s": 60}, simulator={"service_s": {"kind": "fixed", "value": 30}})
    d.drop("job.jsonl", prompts(8))
    wait_for(lambda: sum(s["in_flight"] for s in d.servers()) == 8, 10, "all in flight")
    assert d.process is not None
    d.process.send_signal(signal.SIGTERM)
    wait_for(lambda: d.events("stop_asked"), 5, "the daemon drains")
    wait_for(lambda: d.status()["state"] == "stopping", 5, "the status says so")
    assert d.control("status").returncode == 0
    refused = d.control("pause")
    assert (refused.returncode, "is stopping" in refused.stderr) == (1, True)
    assert d.process.poll() is None
    begun_s = time.monotonic()
    assert d.stop(timeout_s=15) == 0
    assert time.monotonic() - begun_s < 5  # the answers take 30 s
    assert "in_flight=8" in d.events("drain_ended")[0]
    assert d.servers_alive() == []
    d.simulator = {}
    d.start()
    d.done("job.jsonl").check()


def test_a_killed_daemon_leaves_only_servers_and_the_next_finishes(daemon: Start) -> None:
    d = daemon(simulator=STEADY)
    asked, folder = prompts(60), {f"f{i:02}.json": json.dumps({"prompt": f"file {i}"}).encode() for i in range(20)}
    d.drop_all({"job.jsonl": b"".join(json.dumps(r).encode() + b"\n" for r in asked), "folder": folder})
    under_way(d, "job.jsonl")
    parts = d.kill()
    assert len(parts) >= 5  # probe, forkserver, resource tracker, workers
    gone(parts)
    orphans = d.servers_alive()
    assert orphans  # runners; a server ends when it writes to its log, which nobody reads any more
    down = d.control("status")
    assert down.returncode == 3
    d.start()
    wait_for(lambda: not any(alive(orphan.pid) for orphan in orphans), 5, "orphans are swept")
    d.done("job.jsonl").check(asked)
    d.done("folder").check({f"f{i:02}": f"file {i}" for i in range(20)})
    assert d.stop() == 0
    assert d.servers_alive() == []


def test_a_second_daemon_on_the_same_spool_is_turned_away(daemon: Start) -> None:
    d = daemon()
    command = [BIN / "obatchd", "--config", d.config_file, "--spool", d.spool]
    second = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert second.returncode == 1
    assert f"pid {d.pid}" in second.stderr
    assert "status" in second.stderr
    d.drop("job.jsonl", prompts(3))
    d.done("job.jsonl").check()


def test_a_spool_with_a_path_of_150_characters(make_daemon: Start, tmp_path: Path) -> None:
    spool = tmp_path
    while len(str(spool)) < 130:
        spool /= "long-directory-name"[: max(1, 149 - len(str(spool)))]
    spool /= "x" * (149 - len(str(spool)))
    assert len(str(spool)) >= 150
    spool.parent.mkdir(parents=True)
    d = make_daemon(spool=spool).start().ready()
    d.drop("job.jsonl", prompts(3))
    d.done("job.jsonl").check()
    assert d.control("status").returncode == 0


def test_a_port_in_use_is_named_and_the_other_server_works(make_daemon: Start) -> None:
    first = free_ports(2)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", first))
        holder.listen()
        d = make_daemon({"servers": {"base_port": first, "slow_retry_s": 0.5}}).start()
        d.drop("job.jsonl", prompts(6))
        d.done("job.jsonl").check()
        status = d.status()
        assert status["state"] == "degraded"
        assert any(str(first) in reason and "base_port" in reason for reason in status["reasons"])
        assert d.control("status").returncode == 1
    wait_for(lambda: d.servers()[0]["state"] == "ready", 30, "the port is free, the server comes")


def run(d: Daemon, **variables: str) -> tuple[int, str]:
    """Start a daemon that should refuse; its exit code and what it said."""
    process = d.launch(**variables)
    return process.wait(20), d.log()


def test_a_wrong_key_is_explained(make_daemon: Start) -> None:
    d = make_daemon('modle = "tiny"\n[servers]\nslots = "many"\n')
    code, said = run(d)
    assert code == 78
    assert str(d.config_file) in said
    assert "modle" in said
    assert "model" in said
    assert "servers.slots" in said


def test_no_ollama_binary_is_explained(make_daemon: Start) -> None:
    d = make_daemon('model = "tiny"\n[gpus]\nuse = "all"\n[servers]\nollama = "no-such-ollama"\n')
    code, said = run(d)
    assert code == 1
    assert "no-such-ollama" in said
    assert "servers.ollama" in said


def test_a_spool_that_is_no_directory_is_explained(make_daemon: Start) -> None:
    d = make_daemon()
    d.spool.mkdir()
    d.inbox.write_text("")
    code, said = run(d)
    assert code == 1
    assert str(d.inbox) in said


def test_an_inbox_that_goes_away_is_told_and_may_come_back(daemon: Start) -> None:
    d = daemon()
    os.rename(d.inbox, d.spool / "moved")
    wait_for(lambda: str(d.inbox) in d.status()["inbox"]["problem"], 5, "the problem is shown")
    assert d.status()["state"] == "degraded"
    os.rename(d.spool / "moved", d.inbox)
    wait_for(lambda: not d.status()["inbox"]["problem"], 5, "the problem is over")
    d.drop("job.jsonl", prompts(3))
    d.done("job.jsonl").check()


def mounted(d: Daemon, *options: str) -> None:
    """Mount something over the inbox, or skip the test."""
    if subprocess.run(["mount", *options, d.inbox], capture_output=True, check=False).returncode:
        pytest.skip("may not mount")


@pytest.mark.root
def test_an_inbox_on_a_read_only_file_system_is_explained(make_daemon: Start) -> None:
    d = make_daemon()
    d.inbox.mkdir(parents=True)
    mounted(d, "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs")
    try:
        code, said = run(d)
    finally:
        subprocess.run(["umount", d.inbox], check=True)
    assert code == 1
    assert str(d.inbox) in said and "read-only" in said


@pytest.mark.root
def test_drops_in_an_inbox_on_another_file_system_are_copied_out_of_it(make_daemon: Start) -> None:
    d = make_daemon()
    d.inbox.mkdir(parents=True)
    mounted(d, "-t", "tmpfs", "-o", "size=1m", "tmpfs")
    try:
        d.start()
        (d.inbox / "folder").mkdir()
        for name in ("job.jsonl", "folder/a.jsonl", "folder/b.jsonl"):
            (d.inbox / name).write_bytes(jsonl(prompts(3, name.replace("/", "-"))))
        (d.inbox / "link.jsonl").symlink_to("/etc/passwd")
        d.done("job.jsonl").check(prompts(3, "job.jsonl"))
        d.done("folder").check([*prompts(3, "folder-a.jsonl"), *prompts(3, "folder-b.jsonl")])
        wait_for(lambda: not list(d.inbox.iterdir()), 5, "the inbox is empty")
        assert d.status()["inbox"]["refused"] == 1 and d.stop() == 0
    finally:
        subprocess.run(["umount", "-l", d.inbox], check=True)


@pytest.mark.root
def test_an_inbox_that_becomes_unusable_is_told_and_works_again(daemon: Start) -> None:
    d = daemon()
    asked = prompts(3)

    def problem(words: str) -> None:
        wait_for(lambda: words in (said := d.status()["inbox"]["problem"]) and str(d.inbox) in said, 10, words)
        assert d.status()["state"] == "degraded"
        assert words in d.events("inbox_problem")[-1]

    mounted(d, "--bind", str(d.inbox))
    try:
        (d.inbox / "job.jsonl").write_bytes(jsonl(asked))
        d.done("job.jsonl").check(asked)  # over the bind mount it is copied
        subprocess.run(["mount", "-o", "remount,ro,bind", d.inbox], check=True)
        problem("read-only")
    finally:
        subprocess.run(["umount", "-l", d.inbox], check=True)
    d.drop("again.jsonl", asked)
    d.done("again.jsonl").check(asked)
    assert d.status()["state"] == "running"
    assert len(d.events("inbox_problem")) == 1  # not again with every scan


def test_a_sighup_during_the_start_is_kept_for_later(make_daemon: Callable[..., Daemon]) -> None:
    d = make_daemon().start()
    wait_for(lambda: d.events("starting"), 10, "starting")
    assert d.process is not None
    d.process.send_signal(signal.SIGHUP)
    wait_for(lambda: d.events("reloaded"), 20, "reloaded")
    assert d.log().index("event=ready") < d.log().index("event=reloaded")


def test_sighup_reloads_what_can_be_reloaded(daemon: Start) -> None:
    d = daemon()
    d.configure({"model": "simulated", "servers": {"slots": 2}})
    assert d.process is not None
    d.process.send_signal(signal.SIGHUP)
    [line] = wait_for(lambda: d.events("reloaded"), 5, "reloaded")
    assert "changed=model" in line
    assert "needs_restart=servers.slots" in line
    assert d.status()["waiting_for_restart"] == ["servers.slots"]
    d.drop("job.jsonl", prompts(3))
    job = d.done("job.jsonl")
    job.check()
    assert {r["model"] for r in job.results} == {"simulated"}
    d.config_file.write_text("modle = 3\n")
    d.process.send_signal(signal.SIGHUP)
    wait_for(lambda: d.events("reload_refused"), 5, "the wrong file is refused")
    assert d.status()["state"] == "running"


def takes_signals(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM."""
    caught = Path(f"/proc/{pid}/status").read_text().split("SigCgt:")[1].split()[0]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


HANGING: dict[str, Any] = {"gpus": {"0": [{"kind": "hang"}]}}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["imports", "starting", "driver asked"])
def test_a_signal_during_the_start_stops_at_once(
    make_daemon: Callable[..., Daemon], number: signal.Signals, moment: str
) -> None:
    d = make_daemon(simulator=HANGING)
    process = d.launch()
    if moment == "imports":
        wait_for(lambda: takes_signals(process.pid), 10, "it takes signals")
    else:
        wait_for(lambda: d.events("starting"), 10, "it starts")
    if moment == "driver asked":
        wait_for(lambda: len(d.parts()) >= 3, 10, "forkserver, resource tracker and probe")
    parts = d.parts()
    os.killpg(process.pid, number)  # as a terminal and a scheduler do
    assert process.wait(5) == 0
    gone(parts)
    assert not (d.spool / "obatchd.json").exists() and "Traceback" not in d.log() and "KeyboardInterrupt" not in d.log()


def test_a_signal_while_jobs_are_taken_up_loses_nothing(daemon: Start) -> None:
    d = daemon(simulator=STEADY)
    asked = prompts(300)
    d.drop("job.jsonl", asked)
    under_way(d, "job.jsonl")
    d.kill()
    before = len(d.events("worker_started"))
    d.launch()
    wait_for(lambda: len(d.events("worker_started")) > before, 10, "dispatch has begun, the engine has not")
    assert d.stop() == 0
    assert d.servers_alive() == []
    d.start()
    d.done("job.jsonl").check(asked)


def test_the_first_process_of_a_container_leaves_no_zombie(make_daemon: Callable[..., Daemon]) -> None:
    d = make_daemon()
    d.wrapper = ("unshare", "--user", "--map-current-user", "--pid", "--fork", "--mount-proc", "--kill-child")
    if subprocess.run([*d.wrapper, "true"], capture_output=True, check=False).returncode:
        pytest.skip("may not make a PID namespace")
    process = d.launch()
    wait_for(lambda: d.events("ready"), 20, "it runs")
    d.ready()
    d.drop("job.jsonl", prompts(8))
    d.done("job.jsonl").check()
    [first] = psutil.Process(process.pid).children()
    served_by = {server["pid"] for server in d.servers()}
    for part in first.children(recursive=True):
        if pid_inside(part.pid) in served_by:
            part.kill()
    wait_for(lambda: all(s["restarts"] == 1 and s["state"] == "ready" for s in d.servers()), 20, "they are back")
    wait_for(lambda: zombies(first) == [], 5, "nothing is left")
    first.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def pid_inside(pid: int) -> int:
    """The pid that a process has in its own namespace; 0 when it is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/status").read_text().split("NSpid:")[1].split("\n")[0].split()[-1])
    return 0


def zombies(process: psutil.Process) -> list[int]:
    """Processes below one that have ended and that nobody waited for."""
    found = []
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE:
                found.append(child.pid)
    return found


def test_too_few_open_files_are_one_sentence(make_daemon: Callable[..., Daemon]) -> None:
    d = make_daemon()
    d.wrapper = ("sh", "-c", 'ulimit -n 60; exec "$@"', "sh")
    code, said = run(d)
    assert (code, len(said.splitlines())) == (1, 1)
    assert "only 60 files open" in said and "ulimit -n" in said


def test_a_daemon_imports_nothing_from_the_current_directory(
    make_daemon: Callable[..., Daemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "obatchd").mkdir()
    for decoy in ("obatchd/__init__.py", "msgspec.py", "selectors.py"):
        (tmp_path / decoy).write_text("raise RuntimeError('from the current directory')\n")
    monkeypatch.chdir(tmp_path)
    d = make_daemon().start().ready()
    d.drop("job.jsonl", prompts(4))
    d.done("job.jsonl").check()
    assert d.stop() == 0
    assert "from the current directory" not in d.log()
