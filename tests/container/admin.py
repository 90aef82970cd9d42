"""The way of a lab's administrator, from the package to its removal, with the commands of docs/service.md."""

from __future__ import annotations

import json
import re
import textwrap
import time
from typing import Any

from container import wait_for
from system import CONFIG, SPOOL, System, no_trace, program_gone, step

_APT = "DEBIAN_FRONTEND=noninteractive apt-get -y -q -o Dpkg::Options::=--force-confold"
_MEMBERS = {"ada": 6, "ben": 4}  # requests that each has answered in the first job
_HOST_UNIT = "/etc/systemd/system/obatchd-host.service.d/test.conf"
_TOLD = "/var/lib/obatch/told"
_NOTIFY = f"""
[notifications]
allow = ["*@example.org"]
mail_command = ["sh", "-c", "cat > {_TOLD}-$0"]
"""


@step
def admin_installs(s: System) -> None:
    c = s.c
    c.run("dpkg -P obatchd 2>/dev/null; rm -rf /etc/obatch", check=False)
    version, package = s.package("deb", 0)
    c.put("/root/packages/obatchd_first.deb", package.read_bytes())
    began_s = time.monotonic()
    c.run(f"cd /root/packages && {_APT} install ./obatchd_*.deb")
    c.put("/etc/obatch/obatchd.toml", CONFIG)
    c.run("systemctl enable --now obatchd")
    for name in (*_MEMBERS, "rita"):
        c.run(f"id {name} 2>/dev/null || useradd -m {name}")
        s.uids[name] = int(c.out(f"id -u {name}"))
    c.run("for name in ada ben; do usermod -aG obatch-submit $name; done; usermod -aG obatch-admin rita")
    s.ready()
    assert c.ctl("status", "rita")["version"] == version
    s.say("apt install ./obatchd_*.deb; a model; systemctl enable --now; three usermod", "ready")
    c.put("/home/ada/first.jsonl", s.prompts(_MEMBERS["ada"], "first"), "ada")
    c.run("cd && obatchctl submit first.jsonl --wait --output-dir answers && ls answers/*/results.jsonl", "ada")
    s.say("ada: obatchctl submit first.jsonl --wait --output-dir answers",
          f"answers {time.monotonic() - began_s:.0f} s after the package came")  # fmt: skip
    s.drop("ben", "second.jsonl", _MEMBERS["ben"])
    s.finished("ben", "second", _MEMBERS["ben"])
    s.say("ben: mv second.jsonl /var/spool/obatch/inbox", "answered")


@step
def admin_looks(s: System) -> None:
    """Whose jobs there are, and how much each member has used."""
    c = s.c
    heading, *rows = c.out("obatchctl jobs --all", "rita").splitlines()
    assert heading.split()[0] == "OWNER" and {row.split()[0] for row in rows} == set(_MEMBERS), (heading, rows)
    s.say("rita: obatchctl jobs --all", rows[0])
    assert {row["name"]: row["succeeded"] for row in c.ctl("usage", "rita")["usage"]} == _MEMBERS
    s.say("rita: obatchctl usage", " | ".join(c.out("obatchctl usage", "rita").splitlines()))
    assert [row["name"] for row in c.ctl("usage", "ben")["usage"]] == ["ben"]
    assert "ada" not in c.out("obatchctl usage; obatchctl jobs", "ben")
    s.say("ben: obatchctl usage", "nothing of ada")
    c.run(f"obatchctl rm {s.job_id('ben', 'second')}", "ben")
    assert {row["name"] for row in c.ctl("usage", "rita")["usage"]} == set(_MEMBERS)
    s.say("ben: obatchctl rm JOB; rita: obatchctl usage", "the sums stay")


def _blocks(page: str) -> list[str]:
    """The parts of a page that are to be typed or written."""
    return re.findall(r"(?:^    .*\n)+", page + "\n", re.MULTILINE)


@step
def admin_has_it_watched(s: System) -> None:
    """The ten lines of docs/monitoring.md, as they stand in the package."""
    c, file = s.c, "/etc/prometheus/prometheus.yml"
    blocks = _blocks(c.out("cat /usr/share/doc/obatchd/docs/monitoring.md"))
    commands, lines, last = map(textwrap.dedent, blocks[:3])
    c.put("/etc/sudoers.d/rita", "rita ALL=(ALL) NOPASSWD: ALL\n", mode=0o440)
    c.put("/etc/obatch/obatchd.toml", CONFIG + '[http]\nlisten = "127.0.0.1:8434"\n')
    c.run("sudo systemctl restart obatchd", "rita")
    s.ready()
    for command in commands.splitlines():
        c.run(command, "rita")
    text, beneath = (c.root / file.lstrip("/")).read_text(), ""
    for line in reversed(lines.splitlines()):
        if line.startswith(" "):
            beneath = f"{line}\n{beneath}"
        else:
            text, beneath = re.sub(rf"^{line}$", f"{line}\n{beneath.rstrip()}", text, count=1, flags=re.MULTILINE), ""
    c.put(file, text)
    s.say("rita: " + last.strip(), c.out(last, "rita").splitlines()[-1].strip())

    def up() -> bool:
        found = c.out("curl -s 'http://localhost:9090/api/v1/query?query=up'", check=False)
        return '"job":"obatchd"},"value"' in found and any(
            one["metric"]["job"] == "obatchd" and one["value"][1] == "1" for one in json.loads(found)["data"]["result"]
        )

    wait_for(up, 40, "Prometheus says that obatchd is up")
    rules = json.loads(c.out("curl -s http://localhost:9090/api/v1/rules"))["data"]["groups"][0]["rules"]
    wrong = [rule["name"] for rule in rules if rule["health"] not in ("ok", "unknown") or rule["state"] == "firing"]
    assert len(rules) > 20 and wrong == [], wrong
    assert c.out("stat -c '%a %U' /etc/prometheus/obatchd.key") == "400 prometheus"
    s.say("rita: http://localhost:9090/targets", f"up, {len(rules)} alerts")
    c.run("sudo systemctl stop prometheus", "rita")
    c.run("rm /etc/prometheus/obatchd.*")


@step
def admin_has_a_file_written(s: System) -> None:
    """For node_exporter, with the commands of docs/monitoring.md."""
    c = s.c
    page = c.out("cat /usr/share/doc/obatchd/docs/monitoring.md")
    [table] = [textwrap.dedent(block) for block in _blocks(page) if "[metrics]" in block]
    [commands] = [textwrap.dedent(block) for block in _blocks(page) if "setfacl" in block]
    c.put("/etc/obatch/obatchd.toml", CONFIG + table)
    c.run("sudo systemctl start prometheus-node-exporter", "rita")
    c.run(commands, "rita")
    s.ready()
    asked = "curl -s localhost:9100/metrics | grep obatch_state"
    assert asked in page
    found = wait_for(lambda: c.out(asked, check=False), 40, "node_exporter reads the file")
    assert 'obatch_state{state="running"} 1' in found and "node_textfile_scrape_error 0" in c.out(
        "curl -s localhost:9100/metrics | grep node_textfile_scrape_error"
    )
    s.say("rita: " + asked, found.splitlines()[-1])
    c.put("/etc/obatch/obatchd.toml", CONFIG)
    c.run("rm -r /etc/systemd/system/obatchd.service.d /etc/sudoers.d/rita; systemctl daemon-reload")
    c.run("systemctl stop prometheus-node-exporter; systemctl restart obatchd")
    s.ready()
    assert c.out("ls -A /var/lib/prometheus/node-exporter") == ""


@step
def admin_lets_members_be_told(s: System) -> None:
    c = s.c
    c.put("/etc/obatch/obatchd.toml", CONFIG + _NOTIFY)
    c.run("obatchctl config check /etc/obatch/obatchd.toml && obatchctl reload", "rita")
    c.put("/home/ada/told.jsonl", s.prompts(2, "told"), "ada")
    s.refused("cd && obatchctl submit told.jsonl --notify mail:eve@elsewhere.net", "ada", "*@example.org")
    c.run("cd && obatchctl submit told.jsonl --notify mail:ada@example.org", "ada")
    s.finished("ada", "told", 2)
    mail = wait_for(lambda: c.out(f"cat {_TOLD}-ada@example.org", check=False), 30, "ada is told")
    s.say("ada: obatchctl submit told.jsonl --notify mail:ada@example.org", json.loads(mail)["text"])


@step
def admin_backs_up_and_restores(s: System) -> None:
    """A backup of the working service; then the spool is lost, as with a disk, and restored."""
    c, backup = s.c, "/root/backup.tar.gz"
    s.drop("ada", "kept.jsonl", 40)
    s.under_way("ada", "kept", 5)
    s.say(f"obatchctl backup {backup}, in mid-job", c.out(f"obatchctl backup {backup}"))
    assert c.out(f"stat -c %a {backup}") == "600"
    c.run("systemctl stop obatchd")
    s.refused(f"obatchctl restore {backup}", "root", "not empty")
    c.run(f"cd {SPOOL} && rm -r work outbox failed")
    s.say(f"rm -r work outbox failed; obatchctl restore {backup}", c.out(f"obatchctl restore {backup}"))
    c.run("systemctl start obatchd")
    s.ready()
    s.finished("ada", "kept", 40)
    assert c.out(f"cat {SPOOL}/outbox/ada/first.*/results.jsonl | wc -l", "ada") == str(_MEMBERS["ada"])
    s.refused(f"ls {SPOOL}/outbox/ada", "ben", "denied")
    used = {row["name"]: row["succeeded"] for row in c.ctl("usage", "rita")["usage"]}
    assert used == {"ada": _MEMBERS["ada"] + 2 + 40, "ben": _MEMBERS["ben"]}, used
    s.say("systemctl start", f"40 of 40, each once; earlier results and sums are there: {used}")


def _here(s: System) -> dict[str, Any]:
    """Wait until the one host is here with both its servers; what is told of it, and loads of models by server."""

    def look() -> dict[str, Any] | None:
        hosts = s.c.ctl("hosts", "rita")["hosts"]
        return hosts[0] if [(host["state"], host["ready"]) for host in hosts] == [("here", 2)] else None

    found = wait_for(look, 60, "the host is here")
    assert found is not None
    servers = [server for server in s.c.ctl("servers", "rita")["servers"] if server.get("host")]
    return found | {"loads": {server["id"]: _loads(s, server["url"]) for server in servers}}


def _loads(s: System, url: str) -> int:
    state: dict[str, list[Any]] = json.loads(s.c.out(f"curl -s {url}/simulator/state"))
    return len(state["loads"])


def _joins(s: System) -> str:
    """What the head says is typed, and what the host says to that."""
    typed = re.search(r"sudo (obatchd-join '\S+')", s.c.out("obatchctl hosts code", "rita"))
    assert typed is not None
    return s.c.out(typed[1])


@step
def admin_has_a_host(s: System) -> None:
    """As docs/fleet.md says; head and host are one machine here, with GPUs of different machines."""
    c, journal = s.c, "journalctl -o cat --no-pager"
    c.put("/etc/obatch/obatchd.toml", CONFIG + '[cluster]\nlisten = "127.0.0.1:7700"\n')
    c.put("/etc/obatch/host.toml", 'gpus = "simulated:2"\n')
    c.put(_HOST_UNIT, "[Service]\nEnvironment=OBATCHD_SIMULATOR_MACHINE=2\n")
    c.run("systemctl daemon-reload; systemctl restart obatchd")
    s.ready()
    since = c.out("date +@%s")
    s.say("sudo obatchd-join 'obatch://…'", _joins(s))
    _here(s)
    for unit in ("obatchd-host", "obatchd"):  # nothing is wrong at a first start
        assert c.out(f"{journal} -u {unit} --since {since} -p warning -q", check=False) == ""
    s.drop("ada", "fleet.jsonl", 90)
    s.under_way("ada", "fleet", 5)
    before = _here(s)
    c.run("systemctl restart obatchd")
    assert _here(s)["loads"] == before["loads"] and set(before["loads"].values()) == {1}
    s.under_way("ada", "fleet", 20)
    c.run("systemctl restart obatchd-host")
    s.finished("ada", "fleet", 90)
    s.say(
        "systemctl restart obatchd, later obatchd-host, in mid-job",
        "90 of 90, each once; no model loaded again for the head",
    )
    host = _here(s)["name"]
    c.run(f"obatchctl hosts drain {host} && obatchctl hosts forget {host}", "rita")
    told = wait_for(
        lambda: re.findall(r"event=head_refuses.*", c.out(f"{journal} -u obatchd-host -n 5")), 30, "it is told"
    )
    assert "obatchctl hosts code" in told[0] and c.out("systemctl is-active obatchd-host") == "active"
    s.say(f"obatchctl hosts forget {host}; journalctl -u obatchd-host", told[0])
    _joins(s)
    assert _here(s)["name"] == host
    s.say("the same once more", f"{host} is here again")


@step
def admin_upgrades_and_removes(s: System) -> None:
    c = s.c
    version, package = s.package("deb", -1)
    c.put("/root/packages/obatchd_next.deb", package.read_bytes())
    s.drop("ada", "upgrade.jsonl", 60)
    s.under_way("ada", "upgrade", 5)
    c.run(f"cd /root/packages && {_APT} install ./obatchd_next.deb")
    s.finished("ada", "upgrade", 60)
    wait_for(lambda: c.ctl("status", "rita")["version"] == version, 30, f"{version} runs")
    assert _here(s)["version"] == version
    s.say(f"apt install of {version} in mid-job", "60 of 60, each once; the host has it, too")
    c.run(f"{_APT} remove obatchd")
    kept = f"/etc/obatch/obatchd.toml {SPOOL}/work/state.db /var/lib/obatch"
    kept += " /etc/obatch/host.toml /var/lib/obatch-host/credential"
    program_gone(s, kept)
    s.say("apt remove obatchd", f"left: {kept}")
    c.run(f"{_APT} purge obatchd")
    no_trace(s)
    s.say("apt purge obatchd", "nothing is left but the groups")
