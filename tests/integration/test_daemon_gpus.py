"""The health of GPUs in the whole daemon: quarantine and release, GPUs that are lost, shared, lent, out of hours.

Starting a daemon takes longer than what is looked at, so each of them is shown several things, one after the other.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from daemon_support import Daemon, prompts, wait_for

from obatchd.gpus.model import Gpu
from obatchd.servers.claims import GpuClaims
from obatchd.simulator.timeline import GpuEvent, write_script

Start = Callable[..., Daemon]
STEADY: dict[str, Any] = {"service_s": {"kind": "fixed", "value": 0.2}}
GPUS = {"use": "simulated:2", "poll_s": 0.1, "slow_poll_s": 0.2}


def happens(d: Daemon, gpu: int, *events: GpuEvent) -> None:
    write_script(d.spool / "work" / "simulator", {str(gpu): list(events)})


def states(d: Daemon) -> list[str]:
    return [server["state"] for server in d.servers()]


def uuid(d: Daemon, index: int) -> str:
    return str(d.client.get("gpus")["gpus"][index]["uuid"])


def health(d: Daemon) -> list[str]:
    return [gpu["health"] for gpu in d.client.get("gpus")["gpus"]]


def reasons(d: Daemon) -> str:
    return "\n".join(d.status()["reasons"])


async def test_a_gpu_that_another_obatchd_of_the_machine_has_is_not_taken(make_daemon: Start) -> None:
    d = make_daemon({"gpus": GPUS}).start().ready()
    card = uuid(d, 1)
    d.stop()
    claims = GpuClaims(d.spool / "work")
    await claims.take([Gpu(card, "", 1, "", None, "550.1-simulated")])
    assert await asyncio.to_thread(d.launch().wait, 60) == 1
    assert f"{card}) is in use by another obatchd of this machine (pid {os.getpid()}, user" in d.log()
    assert str(d.spool / "work") in d.log().splitlines()[-1]
    await claims.release()


def test_gpus_are_taken_out_until_none_is_left_and_come_back_by_release(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    told = tmp_path / "told"
    keep = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read())"
    alarms = {"command": [sys.executable, "-c", keep, str(told)], "on": ["quarantine", "job_done"]}
    d = make_daemon({"gpus": GPUS, "alarms": alarms}, simulator=STEADY).start().ready()
    asked = prompts(50)
    d.drop("job.jsonl", asked)
    wait_for(lambda: d.servers()[1]["in_flight"] == 4)
    happens(d, 1, GpuEvent("xid", xid=48))
    wait_for(lambda: states(d)[1] == "quarantined")
    job = d.done("job.jsonl")
    job.check(asked)
    assert {result["attempts"] for result in job.results} == {1}  # moved, not failed
    assert not d.events("server_strike")
    wait_for(lambda: told.exists() and len(told.read_text().splitlines()) == 2, what="two alarms")
    by_kind = {alarm["kind"]: alarm for alarm in map(json.loads, told.read_text().splitlines())}
    assert by_kind["quarantine"]["serial"] == "SIM0000000001" and by_kind["job_done"]["succeeded"] == 50
    gpu = d.client.get("gpus")["gpus"][1]
    assert gpu["health"] == "quarantine" and "XID 48" in gpu["reason"]
    assert "Collect evidence first" in gpu["action"] and "--gpu-reset" in gpu["action"]
    listed = d.control("gpus")
    assert listed.returncode == 1 and "quarantine" in listed.stdout and "XID 48" in listed.stdout
    assert "obatchctl gpus release 1" in listed.stdout
    shown = d.control("gpus", "show", "1")
    assert "SIM0000000001" in shown.stdout and "xid_48" in shown.stdout and "What to do" in shown.stdout

    happens(d, 0, GpuEvent("set", values={"remap_failed": True}))
    wait_for(lambda: states(d) == ["quarantined", "quarantined"])
    d.kill()
    for path in (d.spool / "work").glob("state.db*"):
        path.unlink()
    d.start()
    wait_for(lambda: states(d) == ["quarantined", "quarantined"], what="it holds over a restart and a lost index")
    again = prompts(5, "again")
    d.drop("again.jsonl", again)
    wait_for(lambda: d.status()["state"] == "paused")
    assert "every GPU is in quarantine" in d.status()["reasons"][0]
    assert "XID 48" in reasons(d)
    released = d.control("gpus", "release", "0")  # a lasting defect that the administrator accepts
    assert "a memory row could not be remapped" in released.stdout
    d.done("again.jsonl").check(again)
    assert health(d) == ["warn", "quarantine"]
    assert d.control("gpus", "release", "1").returncode == 0
    d.ready()
    assert health(d) == ["warn", "ok"]
    assert d.control("gpus", "release", "1").returncode == 1
    events = d.control("gpus", "events", "1").stdout
    assert "quarantine" in events and "release" in events and "SIM0000000001" in events
    assert d.control("gpus", "quarantine", "0", "--reason", "noisy fan").returncode == 0
    wait_for(lambda: states(d) == ["quarantined", "ready"])
    assert "noisy fan" in reasons(d)
    time_of_release = d.client.get(f"gpus/{uuid(d, 1)}")["watched_since"]
    d.stop()
    d.start()
    wait_for(lambda: states(d) == ["quarantined", "ready"], what="both are as they were")
    assert d.client.get(f"gpus/{uuid(d, 1)}")["watched_since"] == time_of_release
    assert health(d) == ["quarantine", "ok"]


def test_one_gpu_lost_of_four_and_a_driver_updated_underneath(daemon: Start) -> None:
    d = daemon({"gpus": GPUS | {"use": "simulated:4"}}, simulator=STEADY)
    asked = prompts(60)
    d.drop("job.jsonl", asked)
    wait_for(lambda: d.servers()[2]["in_flight"] == 4)
    lost = GpuEvent("lost")
    write_script(d.spool / "work" / "simulator", {"2": [lost], "0": [GpuEvent("mismatch")]})
    wait_for(lambda: states(d)[2] == "quarantined")
    wait_for(lambda: "reboot the host" in reasons(d))
    d.done("job.jsonl").check(asked)  # what is loaded has the old driver's library
    assert health(d) == ["ok", "ok", "quarantine", "ok"]
    refused = d.control("gpus", "release", "2")
    assert refused.returncode == 1 and "does not find the GPU" in refused.stderr

    other = prompts(5, "other", model="simulated")
    d.drop("other.jsonl", other)
    wait_for(lambda: states(d)[:2] == ["draining", "draining"], what="nothing else is loaded")
    assert all("reboot the host" in server["reason"] for server in d.servers()[:2])
    assert not d.events("server_strike")
    happens(d, 2, lost)  # after the reboot
    d.done("other.jsonl").check(other)
    assert health(d) == ["ok", "ok", "quarantine", "ok"]
    d.stop()
    d.start()  # it is missing at the start, too
    wait_for(lambda: states(d) == ["ready"] * 3)
    assert health(d) == ["ok", "ok", "quarantine", "ok"]
    assert "forgotten" in d.control("gpus", "release", "2").stdout
    assert len(health(d)) == 3


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of somebody else."""
    with subprocess.Popen(["sleep", "300"]) as process:
        yield process
        process.kill()


def test_gpus_that_are_shared_lent_closed_or_silent(daemon: Start, stranger: subprocess.Popen[bytes]) -> None:
    hour = time.localtime().tm_hour
    closed = f"{(hour + 2) % 24:02d}:00-{(hour + 3) % 24:02d}:00"
    d = daemon({"gpus": GPUS | {"silent_warn_s": 2}, "servers": {"drain_s": 1}}, simulator=STEADY)
    first, second = prompts(90, "a"), prompts(10, "b", model="simulated")
    d.drop("first.jsonl", first)
    wait_for(lambda: d.servers()[0]["in_flight"] == d.servers()[1]["in_flight"] == 4)
    assert d.control("gpus", "lend", "1", "--for", "2s").returncode == 0
    wait_for(lambda: d.servers()[1]["loaded"] is None and states(d)[1] == "draining")
    assert "lent until" in d.servers()[1]["reason"] and "lent until" in d.control("gpus").stdout
    wait_for(lambda: states(d) == ["ready", "ready"], what="it comes back by itself")
    job = d.done("first.jsonl")
    job.check(first)
    assert {result["attempts"] for result in job.results} == {1}

    assert d.control("gpus", "lend", "1", "--back").returncode == 1
    assert d.control("gpus", "lend", "nowhere", "--for", "2h").returncode == 1
    assert d.control("gpus", "lend", "1", "--for", "2h").returncode == 0
    third = prompts(30, "c")
    d.drop("third.jsonl", third)
    wait_for(lambda: d.servers()[0]["in_flight"] == 4)
    happens(d, 0, GpuEvent("foreign", pid=stranger.pid))
    wait_for(lambda: "sleep" in d.client.get("gpus")["gpus"][0]["shared_with"])
    d.done("third.jsonl").check(third)  # what was loaded goes on
    d.drop("second.jsonl", second)
    wait_for(lambda: states(d) == ["draining", "draining"])
    assert f"pid {stranger.pid}" in d.servers()[0]["reason"] and "4.0 GiB" in d.servers()[0]["reason"]
    wait_for(lambda: d.servers()[0]["loaded"] is None, what="our own model is unloaded")
    happens(d, 0, GpuEvent("foreign", pid=stranger.pid, memory_bytes=None))
    wait_for(lambda: "obatchctl gpus share 0" in reasons(d), what="the driver does not tell how much")
    assert d.control("gpus", "share", "0").returncode == 0
    job = d.done("second.jsonl")
    job.check(second)
    assert {result["attempts"] for result in job.results} == {1}
    stranger.kill()

    happens(d, 0, GpuEvent("hang"))
    wait_for(lambda: health(d) == ["unknown", "unknown"])
    fourth = prompts(5, "d", model="simulated")
    d.drop("fourth.jsonl", fourth)
    d.done("fourth.jsonl").check(fourth)
    assert "health of the GPUs is unknown" in reasons(d) and d.control("gpus").returncode == 1

    d.kill()
    happens(d, 0)
    d.configure({"gpus": GPUS | {"allow": closed}})
    d.start()
    wait_for(lambda: states(d) == ["draining", "draining"], what="out of hours")
    wait_for(lambda: "lent until" in d.servers()[1]["reason"], what="a loan holds over a restart")
    assert closed in d.servers()[0]["reason"]
    assert d.control("gpus", "lend", "1", "--for", "soon").returncode == 2
    assert d.control("gpus", "lend", "1", "--back").returncode == 0
    wait_for(lambda: "lent until" not in d.servers()[1]["reason"])


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[list[tuple[float, str]]]:
    """What a service manager at ``notify`` is told, each with its time."""
    told: list[tuple[float, str]] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))

        def listen() -> None:
            while words := listener.recv(4096).decode():
                told.append((time.time(), words))

        thread = threading.Thread(target=listen)
        thread.start()
        yield told
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(tmp_path / "notify"))
        thread.join()


def test_a_driver_that_comes_later_gets_its_servers(
    make_daemon: Callable[..., Daemon], manager: list[tuple[float, str]], tmp_path: Path
) -> None:
    d = make_daemon({"gpus": GPUS}, simulator=STEADY | {"gpus": {"0": [{"kind": "no_driver"}]}})
    d.start(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="40000")
    wait_for(lambda: [s["id"] for s in d.servers()] == ["cpu0"])
    asked = prompts(160)  # enough for every server
    d.drop("job.jsonl", asked)
    wait_for(lambda: d.servers()[0]["in_flight"] == 4)
    happens(d, 0)
    wait_for(lambda: d.events("gpus_came"), 20, "the driver is asked again")
    job = d.done("job.jsonl")
    job.check(asked)
    assert [s["id"] for s in d.ready().servers()] == ["gpu0", "gpu1"]
    assert {"gpu0", "gpu1"} <= set(job.summary["servers"])
    assert {result["attempts"] for result in job.results} == {1}
    assert d.status()["state"] == "running"
    assert d.stop() == 0
    came = d.events("gpus_came")[0].partition("time=")[2].split()[0]
    began_s = datetime.fromisoformat(came).timestamp()
    [_, ready_s] = [at_s for at_s, words in manager if words.startswith("READY=1")]
    beats = [at_s for at_s, words in manager if words == "WATCHDOG=1" and began_s < at_s < ready_s]
    assert len(beats) > 5, "the service manager does not take it for dead meanwhile"

    happens(d, 0, GpuEvent("no_driver"))  # a boot after which it does not come
    d.start()
    assert [s["id"] for s in d.servers()] == ["cpu0"], "work goes on"
    assert d.status()["state"] == "degraded" and "There were 2 GPUs here before" in reasons(d)
    assert "There were 2 GPUs here before" in d.control("doctor").stdout
    shown = d.control("gpus")
    assert shown.returncode == 1 and health(d) == ["unknown", "unknown"]
    assert [d.control("gpus", "release", gpu).returncode for gpu in ("0", "1")] == [0, 0]
    assert d.status()["state"] == "running" and d.control("gpus").returncode == 0
