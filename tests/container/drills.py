"""Faults of a host, upgrades, removal, and a user's own daemon: each step says what was done and what came of it."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from container import wait_for
from system import CANARY, SPOOL, System, no_trace, program_gone, step


@step
def stopped_process(s: System) -> None:
    s.c.put("/etc/systemd/system/obatchd.service.d/watchdog.conf", "[Service]\nWatchdogSec=4\n")
    s.c.run("systemctl daemon-reload; systemctl restart obatchd")
    s.ready()
    s.drop("alice", "stopped.jsonl", 40)
    s.under_way("alice", "stopped", 5)
    pid = s.c.out("systemctl show -P MainPID obatchd")
    s.c.run(f"kill -STOP {pid}")
    wait_for(lambda: s.c.out("systemctl show -P MainPID obatchd") not in ("0", pid), 60, "systemd starts it again")
    s.finished("alice", "stopped", 40)
    assert "Watchdog timeout" in s.journal()
    s.say("SIGSTOP of the main process in mid-job", "systemd's watchdog restarted it; 40 of 40, each once")
    s.c.run(
        "rm /etc/systemd/system/obatchd.service.d/watchdog.conf; systemctl daemon-reload; systemctl restart obatchd"
    )
    s.ready()


@step
def out_of_memory(s: System) -> None:
    s.drop("alice", "memory.jsonl", 40)
    s.under_way("alice", "memory", 3)
    pid = s.c.out("systemctl show -P MainPID obatchd")
    [runner, *_] = s.c.host_pids("simulator.ollama runner")
    how = s.c.kill_for_memory(runner)
    s.finished("alice", "memory", 40)
    assert s.c.out("systemctl show -P MainPID obatchd") == pid
    crashes = s.journal().count("code=runner_crash")
    s.say(f"a runner in mid-job: {how}", f"{crashes} attempts end as runner_crash; 40 of 40, each once; daemon stays")


@step
def full_disk(s: System) -> None:
    s.drop("alice", "full.jsonl", 40)
    s.under_way("alice", "full", 3)
    s.c.run(f"fallocate -l $(($(df --output=avail -B1 {SPOOL} | tail -n 1) - 20000000)) {SPOOL}/ballast")
    status = wait_for(lambda: (found := s.c.ctl("status"))["disk"]["low"] and found, 30, "the disk is low")
    s.say("fallocate until 20 MB are left in mid-job", f"{status['state']}: {status['reasons'][0]}")
    s.c.run(f"dd if=/dev/zero of={SPOOL}/ballast2 bs=1M status=none", check=False)
    time.sleep(2)
    s.c.run(f"rm {SPOOL}/ballast {SPOOL}/ballast2")
    s.finished("alice", "full", 40)
    assert "Traceback" not in s.journal()
    s.say("no byte left for 2 s, then room again", "40 of 40, each once")


@step
def clock_jumps(s: System) -> None:
    library = s.c.out("ls /usr/lib/*/faketime/libfaketimeMT.so.1")
    s.c.put("/etc/clock", "+0\n")
    s.c.put(
        "/etc/systemd/system/obatchd.service.d/clock.conf",
        f"[Service]\nEnvironment=LD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE=/etc/clock DONT_FAKE_MONOTONIC=1 "
        "FAKETIME_CACHE_DURATION=1\n",
    )
    s.c.run("systemctl daemon-reload; systemctl restart obatchd")
    s.ready()
    s.drop("alice", "clock.jsonl", 40)
    s.under_way("alice", "clock", 3)
    jobs = []
    for number, step_text in enumerate(("+1d", "-1d", "+0")):
        s.c.put("/etc/clock", step_text + "\n")
        time.sleep(2)
        s.drop("bob", f"clock-{number}.jsonl", 2)
        s.finished("bob", f"clock-{number}", 2)
        jobs.append(s.job_id("bob", f"clock-{number}"))
    s.finished("alice", "clock", 40)
    assert jobs == sorted(jobs), jobs
    assert jobs[0][:8] > time.strftime("%Y%m%d", time.gmtime())
    s.say("the clock jumps by +1, -1 and 0 days in mid-job", f"40 of 40, each once; job ids still sort: {jobs}")
    s.c.run("rm /etc/systemd/system/obatchd.service.d/clock.conf; systemctl daemon-reload; systemctl restart obatchd")
    s.ready()


@step
def rolling_restart(s: System) -> None:
    s.drop("alice", "rolling.jsonl", 60)
    s.under_way("alice", "rolling", 3)
    before = {server["id"]: server["pid"] for server in s.c.ctl("status")["servers"]}
    for server in before:
        s.c.run(f"obatchctl servers restart {server}")
        s.ready()
    after = {server["id"]: server["pid"] for server in s.c.ctl("status")["servers"]}
    assert all(after[server] != pid for server, pid in before.items())
    document = s.finished("alice", "rolling", 60)
    box = s.outbox("alice", "rolling")
    assert box is not None
    tries = {json.loads(line)["attempts"] for line in (box / "results.jsonl").read_text().splitlines()}
    assert tries == {1}, tries
    s.say("obatchctl servers restart gpu0, gpu1 in mid-job (an upgrade of Ollama)",
          f"{document['succeeded']} of 60, all at the first attempt")  # fmt: skip


@step
def silence_and_erasure(s: System) -> None:
    for user in ("alice", "bob"):
        for job in s.c.ctl("jobs --mine", user)["jobs"]:
            if CANARY in job["name"]:
                s.canary_job = job["job"]
    journal = s.c.out("journalctl --no-pager -o cat")
    logs = s.c.out(f"cat {SPOOL}/work/logs/*")
    status = s.c.out("systemctl show -P StatusText obatchd")
    for where, text in (("journal", journal), ("logs of servers", logs), ("STATUS=", status)):
        lines = [line for line in text.splitlines() if CANARY in line and "dpkg" not in line]
        assert not lines, (where, lines[:3])
    s.say("grep for the canary in the journal, the servers' logs, STATUS=", "nothing")
    held = s.c.out(f"grep -rl {CANARY} {SPOOL}; find {SPOOL} -name '*{CANARY}*'", check=False).splitlines()
    assert len(held) > 3
    s.c.run(f"obatchctl rm {s.canary_job}", "alice")
    held = s.c.out(f"grep -rl {CANARY} {SPOOL}; find {SPOOL} -name '*{CANARY}*'", check=False).splitlines()
    assert held == [], held
    s.say("alice: obatchctl rm JOB; grep -r for its canary in the whole spool", "nothing")


@step
def own_daemon(s: System) -> None:
    c = s.c
    c.run("useradd -m dave; loginctl enable-linger dave")
    uid = c.out("id -u dave")
    wait_for(lambda: c.run(f"test -S /run/user/{uid}/bus", check=False).returncode == 0, 30, "dave's session")
    session = f"export XDG_RUNTIME_DIR=/run/user/{uid} DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/{uid}/bus"
    c.put("/home/dave/.config/obatch/obatchd.toml", 'model = "tiny"\ngpus = "simulated:1"\n[inbox]\nsettle_s = 0.5\n')
    c.run("chown -R dave: /home/dave")
    verdict = c.run(f"{session}; systemd-analyze verify --user /usr/lib/systemd/user/obatchd.service", "dave")
    assert "obatchd" not in verdict.stderr, verdict.stderr
    c.run(f"{session}; systemctl --user enable --now obatchd", "dave")
    s.say("dave, without root: systemctl --user enable --now obatchd", c.out(
        f"{session}; systemctl --user is-active obatchd", "dave"))  # fmt: skip
    c.put("/home/dave/own.jsonl", s.prompts(3, "own"), "dave")
    c.run(f"{session}; cd && cp own.jsonl .local/state/obatch/inbox/", "dave")
    found = "ls ~/.local/state/obatch/outbox/own.*/summary.json"
    wait_for(lambda: c.run(found, "dave", check=False).returncode == 0, 30, "dave's job is done")
    told = c.out(f"{session}; obatchctl status", "dave")
    assert "/home/dave/.local/state/obatch" in told
    s.say("dave: cp own.jsonl ~/.local/state/obatch/inbox; obatchctl status", told.splitlines()[0])
    s.refused("ls /home/dave/.local/state/obatch/outbox", "alice", "denied")
    c.run(f"{session}; systemctl --user disable --now obatchd", "dave")


@step
def manual(s: System) -> None:
    c = s.c
    for page in ("8 obatchd", "1 obatchctl", "5 obatchd.toml"):
        text = c.out(f"MANWIDTH=80 man {page} | col -bx")
        s.say(f"man {page}", f"{len(text.splitlines())} lines, {text.split()[0]}")
    complete = "COMP_WORDS='obatchctl servers ' COMP_CWORD=2 _OBATCHCTL_COMPLETE=bash_complete obatchctl"
    words = [line.partition(",")[2] for line in c.out(complete).splitlines()]
    assert {"list", "drain", "restart"} <= set(words)
    s.say("obatchctl servers <TAB>", " ".join(words))
    assert c.run("bash -c '. /usr/share/bash-completion/completions/obatchctl; complete -p obatchctl'").stdout
    doctor = c.run("obatchctl doctor", check=False)
    s.say("obatchctl doctor", f"{doctor.returncode}: " + " | ".join(
        line for line in doctor.stdout.splitlines() if not line.startswith("ok"))[:300])  # fmt: skip


def _gpus(s: System) -> dict[str, Any]:
    """What an upgrade leaves as it is: servers, the judgement on each GPU, and all that was written down of them."""
    look = (
        "import json, sqlite3; db = sqlite3.connect('work/history.db'); "
        "print(json.dumps(db.execute('SELECT uuid, seconds, at_s FROM samples').fetchall()))"
    )
    return {
        "servers": [(server["id"], server["url"]) for server in s.c.ctl("servers")["servers"]],
        "cards": [(gpu["uuid"], gpu["health"], gpu["quarantine"]) for gpu in s.c.ctl("gpus")["gpus"]],
        "events": s.c.ctl("gpus events")["events"],
        "history": json.loads(s.c.out(f'cd {SPOOL} && python3 -c "{look}"')),
    }


@step
def upgrade_and_removal(s: System) -> None:
    c = s.c
    (old, _), (new, newer) = s.package("deb", 0), s.package("deb", -1)
    c.put("/root/newer.deb", newer.read_bytes())
    c.run("echo '# mine' >> /etc/obatch/obatchd.toml")
    c.run("obatchctl gpus quarantine 1 --reason 'its fan is loud'")
    s.drop("alice", "upgrade.jsonl", 40)
    s.under_way("alice", "upgrade", 5)
    before = _gpus(s)
    c.run("dpkg -i --force-confold /root/newer.deb")
    s.finished("alice", "upgrade", 40)
    health = ["ok", "quarantine"]  # that of the first is known a few readings after the start
    wait_for(lambda: [gpu["health"] for gpu in c.ctl("gpus")["gpus"]] == health, 30, "the health of both GPUs")
    after = _gpus(s)
    assert (after["servers"], after["cards"]) == (before["servers"], before["cards"])
    for kept in ("events", "history"):
        assert [entry for entry in before[kept] if entry not in after[kept]] == []
    version = c.ctl("status")["version"]
    assert version == new and "# mine" in c.out("cat /etc/obatch/obatchd.toml")
    copies = c.out(f"cd {SPOOL}/work && ls *.before-schema-*")
    venvs = c.out("ls /opt/obatchd")
    assert f"{old}-" not in venvs, venvs
    s.say(f"dpkg -i of {new} in mid-job", 
          f"runs {version}; 40 of 40, each once; configuration, quarantine and history are kept; {copies}")  # fmt: skip
    c.run("obatchctl gpus release 1")
    done = c.run("dpkg -i --force-confold /root/obatchd.deb")
    code = c.out("systemctl show -P ExecMainStatus obatchd")
    said = re.findall(r"was written by a newer obatchd.*", s.journal())
    assert code == "78" and said and c.out("systemctl is-active obatchd", check=False) == "failed"
    assert "did not start again" in done.stderr
    s.say(f"dpkg -i of {old} again", f"exit {code}, no restart: {said[-1][:120]}")
    c.run("dpkg -i --force-confold /root/newer.deb; systemctl reset-failed obatchd; systemctl start obatchd")
    s.ready()
    s.drop("bob", "again.jsonl", 3)
    s.finished("bob", "again", 3)
    s.say(f"dpkg -i of {new}, systemctl start", "goes on where it was")
    c.run("dpkg -r obatchd")
    ours = f"/etc/obatch/obatchd.toml {SPOOL}/work/state.db /var/lib/obatch"
    program_gone(s, ours)
    s.say("dpkg -r obatchd", f"left: {ours}")
    c.run("dpkg -P obatchd")
    no_trace(s)
    groups = c.out("getent group | grep -o '^obatch[a-z-]*' | tr '\\n' ' '")
    s.say("dpkg -P obatchd", f"left: the user and the groups {groups}")
