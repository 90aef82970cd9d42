"""``scripts/demo --ray``: a Ray of four nodes on this machine gives a head four hosts; one is killed, one is drained.

Exit status: 0 when every prompt was answered exactly once, 1 when not, or when Ray does not start, 130 after Ctrl-C.
"""

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

from demo import Demo, Plan, _command
from ray_here import RayHere

from obatchd.errors import DaemonDownError

NODES, GPUS, PROMPTS = 4, 2, 3_000
HERE_S, WORK_S = 180.0, 420.0  # at most
SIMULATOR = {
    "models": [{"name": "simulated"}],
    "load_s": 1.0,
    "tokens_per_s": 40.0,
    "answer": {"kind": "lognormal", "mean": 25},
}
KILLED, DRAINED = 2, 4


class RayDemo:
    """A head, and the Ray that starts its hosts."""

    def __init__(self, directory: Path, ray: RayHere) -> None:
        self._directory = directory
        self._begun_s = time.monotonic()
        settings = (
            'model = "simulated"\ngpus = "none"\n[servers]\nslots = 4\n'
            f'[cluster]\nlisten = "127.0.0.1:{_free_port()}"\nengine = "ray"\n'
            f'address = "{ray.address}"\n'
        )
        self.demo = Demo(directory, Plan(settings, {}, ""))

    def say(self, words: str) -> None:
        print(f"{time.monotonic() - self._begun_s:5.0f} s  {words}", flush=True)

    def obatchctl(self, *arguments: str) -> None:
        """Run it, as its user types it, and show what it says."""
        command = [_command("obatchctl"), "--spool", self.demo.spool, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(f"\n$ obatchctl {' '.join(arguments)}\n{done.stdout}{done.stderr}", flush=True)

    def here(self) -> set[str]:
        return {host["name"] for host in self.demo.client.get("hosts")["hosts"] if host["state"] == "here"}

    def ready(self) -> Counter[str]:
        """How many servers of each host are ready."""
        with contextlib.suppress(DaemonDownError):  # it is about to answer
            servers = self.demo.client.get("servers")["servers"]
            return Counter(server["id"].partition(".")[0] for server in servers if server["state"] == "ready")
        return Counter()

    def until(self, is_so: Callable[[], bool], words: str, within_s: float = HERE_S) -> None:
        """Wait, and say it; exits where it does not come true."""
        deadline_s = time.monotonic() + within_s
        while not is_so():
            if time.monotonic() > deadline_s:
                self.obatchctl("hosts")
                sys.exit(f"not within {within_s:.0f} s: {words}; logs are in {self._directory}")
            time.sleep(0.2)
        self.say(words)

    def drop(self) -> None:
        lines = [json.dumps({"id": f"q{n}", "prompt": f"Say something about the number {n}."}) for n in range(PROMPTS)]
        hidden = self.demo.spool / "inbox" / ".numbers.jsonl"
        hidden.write_text("\n".join([*lines, ""]), "utf-8")
        hidden.rename(hidden.with_name("numbers.jsonl"))
        self.say(f"dropped numbers.jsonl with {PROMPTS:,} prompts")

    def job(self) -> dict[str, Any]:
        jobs: list[dict[str, Any]] = self.demo.client.get("jobs")["jobs"]
        return jobs[0] if jobs else {"state": "", "succeeded": 0}


def play(shown: RayDemo, ray: RayHere) -> dict[str, Any]:
    """The story; the job's last status."""
    whole = Counter({name: GPUS for name in ray.names()})
    shown.until(lambda: shown.ready() == whole, f"every GPU of {', '.join(ray.names())} has a server")
    shown.drop()
    shown.obatchctl("hosts")
    shown.until(lambda: shown.job()["succeeded"] > PROMPTS / 20, "the work is under way")
    ray.kill_raylet(KILLED)
    killed, drained = ray.name(KILLED), ray.name(DRAINED)
    shown.say(f"the raylet of {killed} is dead (SIGKILL), as when its machine fails")
    shown.until(lambda: killed not in shown.here(), f"the head has missed {killed}; others do its work")
    ray.drain(DRAINED)
    shown.say(f"Ray drains {drained}, as its autoscaler does before it takes a machine away")
    shown.until(lambda: drained not in shown.here(), f"{drained} has given back its work and left")
    shown.obatchctl("hosts")
    ray.start_node(KILLED)
    shown.say(f"ray start on {killed}")
    shown.until(lambda: shown.ready()[killed] == GPUS, f"{killed} is back, by itself")
    shown.until(lambda: shown.job()["state"] == "done", "every prompt has its outcome", WORK_S)
    return shown.job()


def verdict(job: dict[str, Any]) -> list[str]:
    """What is wrong; empty: every prompt was answered exactly once, and no attempt was counted for the hosts' ends."""
    outbox = Path(job["outbox"])
    results = [json.loads(line) for line in (outbox / "results.jsonl").read_bytes().splitlines()]
    times = Counter(result["id"] for result in results)
    wrong = [f"{count - 1} doubled" for count in [max(times.values(), default=1)] if count > 1]
    wrong += [f"{PROMPTS - len(times)} not answered"] if len(times) != PROMPTS else []
    again = sum(result["attempts"] > 1 for result in results)
    wrong += [f"{again} needed a second attempt"] if again else []
    by_host = Counter(str(result["server"]).partition(".")[0] for result in results)
    print(f"\n{len(times):,} of {PROMPTS:,} prompts are answered, each once; by host: {dict(sorted(by_host.items()))}")
    print(f"The answers: {outbox}")
    return wrong


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run(directory: Path) -> int:
    print(f"SIMULATED: each of Ray's {NODES} nodes is this machine, with two stand-in GPUs. Ray itself is a real one.")
    with contextlib.ExitStack() as stack:
        ray = RayHere(NODES, SIMULATOR)
        stack.callback(ray.clean)
        print(f"Ray starts; {NODES} times ray start takes half a minute.", flush=True)
        ray.start()
        print(f"\nray status --address {ray.address}   # in another terminal, with .venv-ray/bin in PATH", flush=True)
        shown = RayDemo(directory, ray)
        stack.callback(shown.demo.stop)
        wrong = verdict(play(shown, ray))
    print("\n".join(wrong) or "The head, all hosts and Ray are stopped.")
    print(f"Remove everything with: rm -r {directory}")
    return 1 if wrong else 0


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    directory = Path(tempfile.mkdtemp(prefix="obatchd-demo-"))
    try:
        return run(directory)
    except KeyboardInterrupt:
        shutil.rmtree(directory, ignore_errors=True)
        print("\nStopped; nothing is left.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
