"""What several demos share: a head whose hosts an engine starts, its story step by step, and the verdict on its job."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo import LOOK_S, Demo, Plan, _command

from obatchd.errors import DaemonDownError

WORK_S = 420.0  # at most, for all prompts
SIMULATOR = {
    "models": [{"name": "simulated"}],
    "load_s": 1.0,
    "tokens_per_s": 40.0,
    "answer": {"kind": "lognormal", "mean": 25},
}


class Story:
    """A head with its hosts, and one job of many prompts that they work on.

    Args:
        directory: of all its files.
        engine: settings of ``[cluster]`` that name what starts the hosts.
        prompts: how many the job has.
        within_s: the longest step takes so long.
    """

    def __init__(self, directory: Path, engine: str, prompts: int, within_s: float) -> None:
        self.directory = directory
        self.prompts = prompts
        self._within_s = within_s
        self._begun_s = time.monotonic()
        settings = (
            'model = "simulated"\ngpus = "none"\n[servers]\nslots = 4\n'
            f'[cluster]\nlisten = "127.0.0.1:{free_port()}"\n{engine}\n'
        )
        self.demo = Demo(directory, Plan(settings, {}, ""))

    def say(self, words: str) -> None:
        print(f"{time.monotonic() - self._begun_s:5.0f} s  {words}", flush=True)

    def obatchctl(self, *arguments: str, shown: bool = True) -> None:
        """Run it, as its user types it, and show what it says. Exits where it fails."""
        command = [_command("obatchctl"), "--spool", self.demo.spool, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):  # 1: something is not well, which it has told
            sys.exit(f"obatchctl {arguments[0]} failed: {done.stdout}{done.stderr}")
        if shown:
            print(f"\n$ obatchctl {' '.join(arguments)}\n{done.stdout}{done.stderr}", flush=True)

    def answers(self) -> bool:
        """Whether the head does."""
        with contextlib.suppress(DaemonDownError):
            return bool(self.demo.client.get("hosts"))
        return False

    def here(self) -> set[str]:
        """Names of the hosts that are connected."""
        return {host["name"] for host in self.demo.client.get("hosts")["hosts"] if host["state"] == "here"}

    def ready(self) -> Counter[str]:
        """How many servers of each host are ready."""
        servers = self.demo.client.get("servers")["servers"]
        return Counter(server["id"].partition(".")[0] for server in servers if server["state"] == "ready")

    def until(self, is_so: Callable[[], bool], words: str, within_s: float = 0) -> None:
        """Wait, and say it. Exits where it does not come true."""
        within_s = within_s or self._within_s
        deadline_s = time.monotonic() + within_s
        while not is_so():
            if time.monotonic() > deadline_s:
                self.obatchctl("hosts")
                sys.exit(f"not within {within_s:.0f} s: {words}; logs are in {self.directory}")
            time.sleep(LOOK_S)
        self.say(words)

    def drop(self) -> None:
        """Hand the job over, and wait until a part of it is answered."""
        numbers = range(self.prompts)
        lines = [json.dumps({"id": f"q{n}", "prompt": f"Say something about the number {n}."}) for n in numbers]
        hidden = self.demo.spool / "inbox" / ".numbers.jsonl"
        hidden.write_text("\n".join([*lines, ""]), "utf-8")
        hidden.rename(hidden.with_name("numbers.jsonl"))
        self.say(f"dropped numbers.jsonl with {self.prompts:,} prompts")
        self.obatchctl("hosts")
        self.until(lambda: self._job()["succeeded"] > self.prompts / 20, "the work is under way")

    def _job(self) -> dict[str, Any]:
        jobs: list[dict[str, Any]] = self.demo.client.get("jobs")["jobs"]
        return jobs[0] if jobs else {"state": "", "succeeded": 0}

    def verdict(self) -> list[str]:
        """Wait for the end of the job: what is wrong with it.

        Empty: every prompt was answered exactly once, and no attempt was counted for the hosts' ends.
        """
        self.until(lambda: self._job()["state"] == "done", "every prompt has its outcome", WORK_S)
        outbox = Path(self._job()["outbox"])
        results = [json.loads(line) for line in (outbox / "results.jsonl").read_bytes().splitlines()]
        times = Counter(result["id"] for result in results)
        again = sum(result["attempts"] > 1 for result in results)
        wrong = [f"{id} is answered {count} times" for id, count in times.items() if count > 1]
        wrong += [f"{self.prompts - len(times)} not answered"] if len(times) != self.prompts else []
        wrong += [f"{again} needed a second attempt"] if again else []
        by_host = dict(sorted(Counter(str(result["server"]).partition(".")[0] for result in results).items()))
        once = "" if wrong else ", each once"
        print(f"\n{len(times):,} of {self.prompts:,} prompts are answered{once}; by host: {by_host}")
        print(f"The answers: {outbox}")
        return wrong


def free_port() -> int:
    """One on which nobody listens now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def main(run: Callable[[Path], int]) -> int:
    """Run a demo in a directory of its own; its exit status, 130 after Ctrl-C, which also removes the directory."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    directory = Path(tempfile.mkdtemp(prefix="obatchd-demo-"))
    try:
        return run(directory)
    except KeyboardInterrupt:
        shutil.rmtree(directory, ignore_errors=True)
        print("\nStopped; nothing is left.", file=sys.stderr)
        return 130
