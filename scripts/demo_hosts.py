"""``scripts/demo --hosts 3``: one head and several hosts on loopback addresses, with stand-in GPUs.

Certificates and codes are as in life. One host is killed in the middle of the work, and started again; then there is a
burn-in over all hosts, with one GPU that is slow. Exit status: 0 when every prompt was answered exactly once and just
that GPU failed, 1 when not, 130 after Ctrl-C, which also removes the directory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from demo import LOOK_S, STOP_S, Demo, Plan, _command
from demo_hosts_burnin import burn_in
from demo_parts import free_port, main

from obatchd.errors import DaemonDownError

GPUS = 2  # of each host
JOBS, PROMPTS = 3, 240
WAIT_S = 60.0  # the longest step
AWAY_S = 4.0  # how long the host that is killed stays away
SIMULATOR = {
    "load_s": 0.5,
    "service_s": {"kind": "uniform", "low": 0.2, "high": 0.6},
    "answer": {"kind": "uniform", "low": 60, "high": 120},
    "models": [{"name": "simulated"}],
}
_LINK = re.compile(r"obatch://\S+")


class Host:
    """One host: its directory, and ``obatchd host`` while it runs."""

    def __init__(self, directory: Path, number: int) -> None:
        self.name = f"node{number:02}"
        self.directory = directory / self.name
        self.log = directory / f"{self.name}.log"
        self._config = directory / f"{self.name}.toml"
        self._address = f"127.0.0.{number + 1}"
        self._process: subprocess.Popen[bytes] | None = None
        own = {name: value for name, value in os.environ.items() if not name.startswith(("OBATCH", "OLLAMA_"))}
        self._environment = own | {
            "HOME": str(directory),
            "OBATCHD_SIMULATOR": json.dumps(SIMULATOR),
            "OBATCHD_SIMULATOR_MACHINE": str(number),
        }

    def join(self, link: str) -> None:
        """Join by the link, as an administrator of the host types it; exits where that is refused."""
        command: list[str | Path] = [
            _command("obatchd-join"), link, "--name", self.name, "--dir", self.directory, "--config", self._config,
        ]  # fmt: skip
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{self.name} could not join:\n{done.stdout}{done.stderr}")
        settings = f'\n[gpus]\nuse = "simulated:{GPUS}"\n\n[servers]\nlisten = "{self._address}"\n'
        with self._config.open("a") as file:
            file.write(settings)
        print(f"  {self.name} has joined with a code of its own; its servers listen on {self._address} alone")

    def start(self) -> None:
        command: list[str | Path] = [_command("obatchd"), "host", "--config", self._config, "--dir", self.directory]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL, as the kernel's out-of-memory killer would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def tell_to_stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        """Wait for its end after ``tell_to_stop``; SIGKILL where that takes too long."""
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        if self._process.poll() is None:
            self._process.kill()


class Fleet(Demo):
    """The head, and its hosts."""

    def __init__(self, directory: Path, count: int) -> None:
        self.door = f"127.0.0.1:{free_port()}"
        settings = f'model = "simulated"\ngpus = "none"\n[servers]\nslots = 4\n[cluster]\nlisten = "{self.door}"\n'
        super().__init__(directory, Plan(settings, {}, ""))
        self.hosts = [Host(directory, number) for number in range(1, count + 1)]

    def obatchctl(self, *arguments: str) -> str:
        command = [_command("obatchctl"), "--spool", str(self.spool), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout or done.stderr

    def show(self, *arguments: str) -> None:
        print(f"\n$ obatchctl {' '.join(arguments)}\n{self.obatchctl(*arguments).rstrip()}")

    def ready(self) -> int:
        with contextlib.suppress(DaemonDownError):
            return sum(server["state"] == "ready" for server in self.client.get("servers")["servers"])
        return 0

    def until(self, look: Callable[[], bool], what: str) -> None:
        """Wait until it is so; exits after ``WAIT_S``."""
        deadline_s = time.monotonic() + WAIT_S
        while not look():
            if time.monotonic() > deadline_s:
                sys.exit(f"Not within {WAIT_S:.0f} s: {what}. The logs are in {self.directory}")
            time.sleep(LOOK_S)

    def is_open(self) -> bool:
        """Whether the head answers and has its certificate, which it makes at its first start."""
        with contextlib.suppress(DaemonDownError):
            return bool(self.client.get("hosts")["door"]["fingerprint"])
        return False

    def join(self) -> None:
        self.until(self.is_open, "the door of the head is open")
        print(f"The head runs; its door is {self.door}, with a certificate of its own.")
        for host in self.hosts:
            found = _LINK.search(told := self.obatchctl("hosts", "code"))
            if found is None:
                sys.exit(f"obatchctl hosts code:\n{told}")
            host.join(found[0].strip("'\""))
            host.start()
        self.until(lambda: self.ready() == GPUS * len(self.hosts), "every server of every host is ready")

    def drop_jobs(self) -> dict[str, list[str]]:
        """Hand some jobs over; the ids of their prompts, by the name of the drop."""
        dropped: dict[str, list[str]] = {}
        for number in range(1, JOBS + 1):
            name = f"questions{number}"
            ids = [f"{name}-{place}" for place in range(PROMPTS)]
            lines = "".join(json.dumps({"id": one, "prompt": f"What is {one}?"}) + "\n" for one in ids)
            hidden = self.spool / "inbox" / f".{name}.jsonl"
            hidden.write_text(lines)
            hidden.rename(self.spool / "inbox" / f"{name}.jsonl")
            dropped[name] = ids
        return dropped

    def answered(self) -> int:
        return sum(job["succeeded"] for job in self.client.get("jobs")["jobs"])

    def stop(self) -> None:
        for host in self.hosts:
            host.tell_to_stop()
        super().stop()
        for host in self.hosts:
            host.stop()


def wrong(spool: Path, dropped: dict[str, list[str]]) -> Iterator[str]:
    """What is not as it should be: a prompt without an answer, or with several."""
    for name, ids in dropped.items():
        found = list((spool / "outbox").glob(f"{name}.*/results.jsonl"))
        lines = [line for path in found for line in path.read_bytes().splitlines()]
        counts = Counter(str(json.loads(line)["id"]) for line in lines)
        yield from (f"{one} has {counts[one]} answers" for one in ids if counts[one] != 1)
        yield from (f"{one} was never asked" for one in counts.keys() - set(ids))


def tries(spool: Path) -> Counter[int]:
    """How many attempts the answers took."""
    found: Counter[int] = Counter()
    for path in (spool / "outbox").glob("*/results.jsonl"):
        answers: list[dict[str, Any]] = [json.loads(line) for line in path.read_bytes().splitlines()]
        found.update(answer["attempts"] for answer in answers)
    return found


def run(directory: Path, count: int) -> int:
    begun_s = time.monotonic()
    total = JOBS * PROMPTS
    print(f"SIMULATED: {count} hosts with {GPUS} stand-in GPUs each, on loopback addresses; the answers are made up.")
    fleet = Fleet(directory, count)
    try:
        fleet.join()
        fleet.show("hosts")
        dropped = fleet.drop_jobs()
        fleet.until(lambda: fleet.answered() > total // 6, "answers come")
        victim = fleet.hosts[len(fleet.hosts) // 2]
        print(f"\n{fleet.answered()} of {total} prompts are answered. Now {victim.name} is killed (SIGKILL).")
        victim.kill()
        time.sleep(AWAY_S)
        fleet.show("hosts")
        victim.start()
        print(f"\n{victim.name} is started again.")
        fleet.until(lambda: fleet.ready() == GPUS * count, f"{victim.name} is back")
        print(f"{victim.name} is back; {fleet.answered()} of {total} prompts are answered.")
        whole = [f"{name}.*/summary.json" for name in dropped]
        fleet.until(lambda: all(any((fleet.spool / "outbox").glob(shape)) for shape in whole), "all jobs are done")
        fleet.show("status")
        found = [*wrong(fleet.spool, dropped), *burn_in(fleet)]
    finally:
        fleet.stop()
    if found:
        print("\n".join(["", *found[:20], f"The logs are in {directory}"]))
        return 1
    print(f"\nEvery one of {total} prompts has exactly one answer; attempts: {dict(tries(fleet.spool))}.")
    print(f"It took {time.monotonic() - begun_s:.0f} s. Everything is stopped. Remove it with: rm -r {directory}")
    print("Next, on machines of yours: docs/fleet.md")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="scripts/demo", description="A head and hosts on this machine.")
    parser.add_argument("--hosts", type=int, choices=range(1, 9), default=3, metavar="N", help="from 1 to 8")
    options = parser.parse_args()
    sys.exit(main(lambda directory: run(directory, options.hosts)))
