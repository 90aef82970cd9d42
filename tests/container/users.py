"""Installation, and the users of a service: each step says what was done and what came of it."""

from __future__ import annotations

import io
import json
import re
import time

import pyarrow.parquet
from container import wait_for
from system import ANSWER_S, CANARY, CONFIG, SPOOL, System, step


@step
def install(s: System) -> None:
    _, package = s.package("deb", 0)
    s.c.put("/root/obatchd.deb", package.read_bytes())
    began_s = time.monotonic()
    told = s.c.out("dpkg -i /root/obatchd.deb")
    assert "sudo systemctl enable --now obatchd" in told, told
    s.say("dpkg -i obatchd.deb, without network", f"installed in {time.monotonic() - began_s:.1f} s")
    assert s.c.out("systemctl is-enabled obatchd", check=False) == "disabled"
    assert s.c.out("systemctl is-active obatchd", check=False) == "inactive"
    s.say("systemctl is-enabled, is-active", "disabled, inactive: nothing was asked for")
    s.c.run("dpkg -i /root/obatchd.deb")
    s.say("dpkg -i again", "idempotent")
    for unit in ("obatchd.service", "obatchd-host.service"):
        verdict = s.c.run(f"systemd-analyze verify /usr/lib/systemd/system/{unit}")
        own = [line for line in verdict.stderr.splitlines() if "obatchd" in line]
        assert not own, own
        s.say(f"systemd-analyze verify {unit}", "clean")
        table = s.c.out(f"systemd-analyze security --offline=yes /usr/lib/systemd/system/{unit}")
        score = re.search(rf"level for {unit}: ([\d.]+)", table)
        assert score and float(score[1]) <= 1.8, table
        s.say(f"systemd-analyze security {unit}", f"{score[1]} OK")
    for name in ("alice", "bob", "carol", "rose"):
        s.c.run(f"useradd -m {name}")
        s.uids[name] = int(s.c.out(f"id -u {name}"))
    s.c.run("chmod 700 /home/*; usermod -aG obatch-submit alice; usermod -aG obatch-submit bob")
    s.c.run("usermod -aG obatch-admin rose")
    s.c.put("/etc/obatch/obatchd.toml", CONFIG)
    simulator = json.dumps({"service_s": {"kind": "fixed", "value": ANSWER_S}}).replace('"', '\\"')
    s.c.put(
        "/etc/systemd/system/obatchd.service.d/test.conf", f'[Service]\nEnvironment="OBATCHD_SIMULATOR={simulator}"\n'
    )
    s.c.run("systemctl daemon-reload")


@step
def first_use(s: System) -> None:
    s.c.run("systemctl start obatchd")
    s.ready()
    s.drop("alice", "first.jsonl", 4)
    s.finished("alice", "first", 4)
    text = s.c.out(f"cat {SPOOL}/outbox/alice/first.*/results.jsonl | wc -l", "alice")
    s.say("alice: mv first.jsonl /var/spool/obatch/inbox; cat …/outbox/alice/first.*/results.jsonl | wc -l", text)
    assert text == "4"
    status = s.c.run("obatchctl status", "alice")
    s.say("alice: obatchctl status", status.stdout.splitlines()[0])
    assert "event=ready" in s.c.out("journalctl -u obatchd -o cat -p 6..6")
    s.say("journalctl -u obatchd -p 6..6", "lines carry their priority")
    group = s.c.out("getent group systemd-journal").split(":")[2]
    main = s.c.out("systemctl show -P MainPID obatchd")
    assert group in s.c.out(f"grep ^Groups: /proc/{main}/status").split()
    s.say("groups of the daemon's process", "systemd-journal, for the kernel's messages about GPUs")
    told = wait_for(lambda: re.findall(r'Status: "(.*2 of 2 servers.*)"', s.c.out("systemctl status obatchd")))
    s.say("systemctl status obatchd", told[0])
    s.refused("obatchctl status", "carol", "obatch-submit")
    s.refused("obatchctl doctor", "carol", "sudo usermod -aG obatch-submit carol")
    s.c.run("usermod -aG obatch-submit carol")
    assert s.c.run("obatchctl jobs", "carol").stdout.strip() == "No jobs."
    s.say("usermod -aG obatch-submit carol; carol: obatchctl jobs", "No jobs.")
    s.c.run("gpasswd -d carol obatch-submit")
    s.c.run("systemctl reload obatchd")
    s.ready()
    s.say("systemctl reload", s.c.out("systemctl is-active obatchd"))


@step
def three_users(s: System) -> None:
    s.drop("alice", f"{CANARY}-alice.jsonl", 4)
    s.finished("alice", f"{CANARY}-alice", 4)
    job = s.job_id("alice", f"{CANARY}-alice")
    box = f"{SPOOL}/outbox/{s.uids['alice']}/{CANARY}-alice.{job}"
    for command in (
        f"ls {SPOOL}/outbox", f"ls {SPOOL}/outbox/alice", f"cat {box}/results.jsonl", f"ls {SPOOL}/inbox",
        f"ls {SPOOL}/work", f"cat {SPOOL}/work/state.db", f"touch {box}/mine", f"rm -r {box}", f"ls {SPOOL}/failed",
    ):  # fmt: skip
        s.refused(command, "bob", "denied")
    for verb in ("job", "cancel", "retry", "pause", "resume", "rm"):
        s.refused(f"obatchctl {verb} {job}", "bob", "no job")
    for command in ("drain", "pause", "reload", "servers restart gpu0", "models rm tiny", "jobs --all"):
        s.refused(f"obatchctl {command}", "bob", "administrators")
    assert CANARY not in s.c.out("obatchctl jobs; obatchctl status", "bob")
    s.say("bob: obatchctl jobs; obatchctl status", "nothing of alice")
    assert job in s.c.out("obatchctl jobs --all", "rose")
    s.say("rose (obatch-admin): obatchctl jobs --all", "has alice's job")
    s.refused(f"obatchctl jobs --all; touch {SPOOL}/inbox/x.jsonl", "carol", "denied")


@step
def edge_table(s: System) -> None:
    c, inbox = s.c, f"{SPOOL}/inbox"
    c.put("/home/alice/closed.jsonl", s.prompts(2, "closed"), "alice", 0o600)
    c.run(f"cd && cp closed.jsonl {inbox}/by-cp.jsonl && mv closed.jsonl {inbox}/by-mv.jsonl", "alice")
    blocked = wait_for(lambda: len(found := c.ctl("status", "alice")["inbox"]["blocked"]) == 2 and found)
    assert {drop["name"] for drop in blocked} == {"by-cp.jsonl", "by-mv.jsonl"}
    assert "obatchctl submit" in blocked[0]["reason"] and c.ctl("status", "bob")["inbox"]["blocked"] == []
    s.say("a 0600 file by cp and by mv", f"blocked, shown to alice alone: {blocked[0]['reason']}")
    c.run(f"umask 077; cat > {inbox}/umask.jsonl", "alice", stdin=s.prompts(2, "umask"))
    s.finished("alice", "umask", 2)
    s.say("a file written into the inbox under umask 077", "done")
    c.run(f"rm {inbox}/by-mv.jsonl {inbox}/by-cp.jsonl", "alice")
    c.put("/home/alice/private.jsonl", s.prompts(2, "private"), "alice", 0o600)
    c.run(
        "cd && obatchctl submit --wait --output-dir copies private.jsonl && ls copies/private.*/summary.json", "alice"
    )
    s.say("a 0600 file in a 0700 home: obatchctl submit --wait --output-dir", "done and copied")
    c.run('mkdir -p ~/set && for n in 1 2 3; do echo "{\\"prompt\\": \\"$n\\"}" > ~/set/$n.json; done', "alice")
    c.run(f"cp -r ~/set {inbox}/by-copy && mv ~/set {inbox}/by-move", "alice")
    reasons = wait_for(lambda: [b for b in c.ctl("status", "alice")["inbox"]["blocked"] if b["name"] == "by-move"], 20)
    assert "obatchctl submit" in reasons[0]["reason"]
    s.say("a folder by mv", f"blocked: {reasons[0]['reason']}")
    c.run(f"mv {inbox}/by-move ~/set; rm -rf {inbox}/by-copy", "alice")
    c.run("obatchctl submit --wait ~/set", "alice")
    s.finished("alice", "set", 3)
    s.say("the same folder by obatchctl submit", "done")
    c.put("/home/alice/own.jsonl", s.prompts(2, "own"), "alice")
    c.run(f"ln ~/own.jsonl {inbox}/linked.jsonl", "alice")
    s.finished("alice", "linked", 2)
    s.say("a hard link of one's own file", "run from a copy")
    c.put("/home/bob/bobs.jsonl", s.prompts(2, "bobs"), "bob")
    s.refused(f"ln /home/bob/bobs.jsonl {inbox}/stolen.jsonl", "alice", "")
    c.run(f"ln -s /etc/shadow {inbox}/link.jsonl; mkfifo {inbox}/pipe.jsonl", "alice")
    socket = "import socket; socket.socket(socket.AF_UNIX).bind"
    c.run(f"python3 -c \"{socket}('{inbox}/socket.jsonl')\"", "alice")
    failed = c.root / SPOOL.lstrip("/") / "failed" / str(s.uids["alice"])
    for stem in ("link", "pipe", "socket"):
        [why] = wait_for(lambda stem=stem: list(failed.glob(f"{stem}.*/*.error.txt")), 20, f"{stem} is refused")
        s.say(f"a {stem} in the inbox", why.read_text().splitlines()[2])
    deep = "import os; [(os.mkdir('d'), os.chdir('d')) for _ in range(1500)]"
    c.run(f'cd {inbox} && mkdir deep && cd deep && python3 -c "{deep}"', "alice")
    c.run(f"(for n in $(seq 20); do echo '{{\"prompt\": \"'$n'\"}}'; done > ~/w.jsonl; exec 3>>~/w.jsonl; "
          f"mv ~/w.jsonl {inbox}/written.jsonl; sleep 0.7; echo '{{\"prompt\": \"late\"}}' >&3)", "alice")  # fmt: skip
    document = s.finished("alice", "written", 20)
    assert document["notes"][0].startswith("19 bytes came after the drop was taken"), document
    s.say("a file its owner writes on into after the rename", document["notes"])
    s.ready()
    s.say("1,500 levels of directories in the inbox", "the service goes on")
    c.run(f"rm -rf {inbox}/deep", "alice")
    c.put(f"{inbox}/roots.jsonl", s.prompts(2, "roots"))
    s.uids["root"] = 0
    s.finished("root", "roots", 2)
    s.say("a file owned by root", "done, results below outbox/0")


@step
def odd_input(s: System) -> None:
    """On the Python of Debian 12, whose regular expressions have faults that were mended in 3.11.5."""
    cell = 'Line one,\n"quoted" line two, ' * 20_000
    quoted = cell.replace('"', '""')
    table = "id,prompt,note\n" + "".join(f'{n},say {n},"{quoted}"\n' for n in range(5))
    cut = {"prompt": "p", "note": 'a\n\\"' * 50_000 + "\ud83d", "score": float("nan")}
    lines = "".join(json.dumps({"id": str(n)} | cut) + "\n" for n in range(3))
    for name, content, count in (("cells.csv", table, 5), ("cut.jsonl", lines, 3)):
        s.c.put(f"/home/alice/{name}", content, "alice")
        s.c.run(f"cd && mv {name} {SPOOL}/inbox/", "alice")
        s.finished("alice", name.partition(".")[0], count)
    s.say("cells over blocks of a table; NaN, and halves of characters behind 150,000 escapes", "all are answered")


@step
def ports(s: System) -> None:
    url = s.c.ctl("status")["servers"][0]["url"]
    for user in ("carol", "alice"):
        s.refused(f"curl -sS -m 3 {url}/api/version", user, "connect")
    s.say("root: curl …/api/version", s.c.out(f"curl -sS -m 3 {url}/api/version"))
    s.c.run("mv /usr/sbin/nft /usr/sbin/nft.away; systemctl restart obatchd")
    s.ready()
    told = s.c.run("obatchctl status; obatchctl doctor", check=False).stdout
    assert told.count("every user of this host can reach the servers' ports") == 2, told
    s.say("without nft: obatchctl status, doctor", "every user of this host can reach the servers' ports …")
    s.c.run("mv /usr/sbin/nft.away /usr/sbin/nft; systemctl restart obatchd")
    s.ready()
    assert "ports" not in str(s.c.ctl("status")["notices"])
    s.c.run("systemctl stop obatchd")
    assert "obatchd" not in s.c.out("nft list tables")
    s.say("systemctl stop; nft list tables", "the rules are gone")
    s.c.run("systemctl start obatchd")
    s.ready()


@step
def restart_and_reboot(s: System) -> None:
    s.c.run("systemctl enable obatchd")
    s.drop("alice", "restart.jsonl", 60)
    s.under_way("alice", "restart", 5)
    s.c.run("systemctl restart obatchd")
    s.say("systemctl restart in mid-job", f"{s.finished('alice', 'restart', 60)['succeeded']} of 60, each once")
    s.drop("bob", "reboot.jsonl", 60)
    s.under_way("bob", "reboot", 5)
    s.c.reboot()
    s.say("systemctl reboot in mid-job", f"{s.finished('bob', 'reboot', 60)['succeeded']} of 60, each once")


@step
def parquet(s: System) -> None:
    """A library that is too large for the package comes with one of its own, and goes with it."""
    prompts = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["one", "two"]}), prompts)
    s.c.put("/home/alice/table.parquet", prompts.getvalue(), "alice")
    advice = "sudo apt install ./obatchd-parquet_*.deb"
    submit = "cd && obatchctl submit table.parquet --text-column prompt"
    s.refused(submit, "alice", advice)
    export = f"cd && obatchctl results {s.job_id('alice', 'first')} -o answers.parquet"
    s.refused(export, "alice", advice)
    _, package = s.package("deb", 0, "obatchd-parquet")
    s.c.put("/root/parquet.deb", package.read_bytes())
    began_s = time.monotonic()
    s.c.run("dpkg -i /root/parquet.deb")
    s.say("dpkg -i obatchd-parquet.deb, without network", f"installed in {time.monotonic() - began_s:.1f} s")
    s.ready()
    s.c.run(submit, "alice")
    s.finished("alice", "table", 2)
    s.c.run(export, "alice")
    s.say(f"alice: {submit}; {export}", "answered, written")
    s.c.run("dpkg -P obatchd-parquet")
    s.ready()
    s.refused(export, "alice", advice)
    s.say("dpkg -P obatchd-parquet", "the daemon goes on without it")


@step
def being_told(s: System) -> None:
    """A member is told of the end of a job, as far as the administrator lets them, who tries whether alarms arrive."""
    keep = '["sh", "-c", "cat > /var/lib/obatch/told-$0"'
    told = f'[notifications]\nallow = ["*@example.org"]\nmail_command = {keep}]\n[alarms]\ncommand = {keep}, "rose"]\n'
    s.c.put("/etc/obatch/obatchd.toml", CONFIG + told)
    s.c.run("obatchctl reload", "rose")
    s.c.put("/home/alice/told.jsonl", s.prompts(2, "told"), "alice")
    submit = "cd && obatchctl submit told.jsonl --notify mail:"
    s.refused(f"{submit}eve@elsewhere.net", "alice", "is not allowed on this host; allowed: *@example.org")
    s.c.run(f"{submit}alice@example.org", "alice")
    s.finished("alice", "told", 2)
    look = "cat /var/lib/obatch/told-alice@example.org"
    mail = wait_for(lambda: s.c.out(look, check=False), 30, "the submitter is told")
    s.say(f"alice: {submit}alice@example.org", json.loads(mail)["text"])
    s.refused("obatchctl alarms test", "alice", "only administrators")
    s.say("rose: obatchctl alarms test", s.c.out("obatchctl alarms test", "rose"))
    assert json.loads(s.c.out("cat /var/lib/obatch/told-rose"))["kind"] == "test"
    s.c.put("/etc/obatch/obatchd.toml", CONFIG)
    s.c.run("obatchctl reload", "rose")
