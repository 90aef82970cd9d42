"""What the steps of ``scripts/test-system`` share: the service in the container, and how results are checked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from container import Container, wait_for

SPOOL = "/var/spool/obatch"
CANARY = "c4n4ry"
CONFIG = """
model = "tiny"
gpus = "simulated:2"
drain_s = 2
[servers]
slots = 2
stagger_s = 0
[inbox]
settle_s = 0.5
rescan_s = 0.5
[disk]
min_free_bytes = 100_000_000
min_free_inodes = 100
"""
ANSWER_S = 0.4
STEPS: dict[str, Callable[[System], None]] = {}


def step(function: Callable[[System], None]) -> Callable[[System], None]:
    STEPS[function.__name__] = function
    return function


class System:
    """The container with what the steps share."""

    def __init__(self, container: Container, packages: Path) -> None:
        self.c = container
        self.packages = packages
        self.uids: dict[str, int] = {}
        self.canary_job = ""

    def package(self, kind: str, number: int, name: str = "obatchd") -> tuple[str, Path]:
        """Version and place of the oldest (0) or newest (-1) package ``name`` of a kind, ``deb`` or ``rpm``."""
        found = {
            tuple(map(int, re.findall(r"\d+", path.name)[:3])): path
            for path in self.packages.glob(f"{name}[_-][0-9]*.{kind}")
        }
        version = sorted(found)[number]
        return ".".join(map(str, version)), found[version]

    def say(self, what: str, came: object = "") -> None:
        print(f"    {what}  →  {came}" if came != "" else f"    {what}", flush=True)

    def refused(self, command: str, user: str, words: str = "") -> None:
        """Run what must not succeed."""
        done = self.c.run(command, user, check=False)
        said = (done.stdout + done.stderr).strip().splitlines()
        assert done.returncode != 0, f"{user} may: {command}\n{done.stdout}"
        assert words in done.stdout + done.stderr, f"{user}$ {command}: {said}"
        self.say(f"{user}$ {command}", f"{done.returncode}: {said[-1][:110] if said else ''}")

    def prompts(self, count: int, name: str) -> str:
        return "".join(json.dumps({"id": f"{name}-{n}", "prompt": f"{name} {n}"}) + "\n" for n in range(count))

    def drop(self, user: str, name: str, count: int) -> None:
        """Move a file into the inbox, as an ordinary user."""
        self.c.put(f"/home/{user}/{name}", self.prompts(count, name), user)
        self.c.run(f"cd && mv {name} {SPOOL}/inbox/", user)

    def outbox(self, user: str, stem: str) -> Path | None:
        """The results of a drop, as they lie on the container's disk."""
        owner = self.c.root / SPOOL.lstrip("/") / "outbox" / str(self.uids[user])
        return next(iter(owner.glob(f"{stem}.*")), None) if owner.exists() else None

    def finished(self, user: str, stem: str, count: int, timeout_s: float = 90) -> dict[str, Any]:
        """Wait for a job's summary; every request is answered exactly once."""

        def summary() -> Path | None:
            box = self.outbox(user, stem)
            return box / "summary.json" if box and (box / "summary.json").exists() else None

        found = wait_for(summary, timeout_s, f"{stem} of {user} is done")
        assert found is not None
        document: dict[str, Any] = json.loads(found.read_text())
        lines = [json.loads(line) for line in (found.parent / "results.jsonl").read_text().splitlines()]
        assert document["succeeded"] == count == len({line["id"] for line in lines}) == len(lines), document
        return document

    def under_way(self, user: str, stem: str, least: int) -> None:
        """Wait until a job is in the middle."""

        def look() -> bool:
            box = self.outbox(user, stem)
            status = box / "status.json" if box else None
            return bool(status and status.exists() and json.loads(status.read_text())["succeeded"] >= least)

        wait_for(look, 60, f"{stem} has {least} answers")

    def job_id(self, user: str, stem: str) -> str:
        box = wait_for(lambda: self.outbox(user, stem), 30, f"{stem} is a job")
        assert box is not None
        return box.name.rpartition(".")[2]

    def ready(self) -> None:
        """Wait until the service answers and every server is READY."""

        def look() -> bool:
            done = self.c.run("obatchctl status --json", check=False)
            if done.returncode not in (0, 1) or not done.stdout:
                return False
            return all(server["state"] == "ready" for server in json.loads(done.stdout)["servers"])

        wait_for(look, 60, "the service is ready")

    def journal(self) -> str:
        return self.c.out("journalctl -u obatchd --no-pager -o cat")


def program_gone(s: System, kept: str) -> None:
    """After a removal: nothing of the program is left or runs, and what is named by ``kept`` is there."""
    program = (
        "/opt/obatchd /usr/bin/obatchd /usr/bin/obatchd-join /usr/share/obatchd /usr/lib/obatchd "
        "/usr/lib/systemd/system/obatchd.service /usr/lib/systemd/system/obatchd-host.service"
    )
    left = s.c.out(f"ls -d {program} {kept} 2>/dev/null", check=False).split()
    assert sorted(left) == sorted(kept.split()), left
    assert not s.c.out("pgrep -u obatch", check=False)


def no_trace(s: System) -> None:
    """After a purge: nothing is left but logs, what systemd remembers, and what the administrator wrote."""
    found = s.c.out("find /etc /opt /run /usr /var -xdev -name '*obatch*'", check=False).split()
    elsewhere = ("/var/log/", "/var/lib/systemd/", "/var/tmp/", "/var/cache/man/", "/etc/systemd/", "/run/systemd/")
    kept = [path for path in found if not path.startswith(elsewhere)]
    assert kept == [], kept
