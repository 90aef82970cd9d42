"""``scripts/demo --slurm``: a Slurm on this machine gives a head four hosts; one is killed, one reaches its time limit.

Needs root, and installs Debian's slurmctld, slurmd and munge where they are missing. Exit status: 0 when every prompt
was answered exactly once, 1 when not, or when there can be no Slurm here, 130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import os
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
from slurm_here import NoSlurmError, SlurmHere, install

from obatchd.errors import DaemonDownError

PROMPTS = 4_000
HERE_S, WORK_S = 90.0, 420.0  # at most
SHOW_S = 10.0
SIMULATOR = {
    "models": [{"name": "simulated"}],
    "load_s": 1.0,
    "tokens_per_s": 40.0,
    "answer": {"kind": "lognormal", "mean": 25},
}
# The nodes are one machine here, so each gets the stand-in GPUs and the loopback address that a machine would have.
ON_A_NODE = """\
#!/bin/bash
export OBATCHD_GPUS=simulated:2 OBATCHD_SERVERS_LISTEN=127.0.0.$((10 + ${{SLURMD_NODENAME#node}}))
export OBATCHD_SIMULATOR='{simulator}'
exec {obatchd} "$@"
"""


class SlurmDemo:
    """A head, a Slurm beside it, and the jobs that bring hosts."""

    def __init__(self, directory: Path, slurm: SlurmHere) -> None:
        self._directory = directory
        self._slurm = slurm
        self._begun_s = time.monotonic()
        settings = (
            f'model = "simulated"\ngpus = "none"\n[cluster]\nlisten = "127.0.0.1:{_free_port()}"\nengine = "slurm"\n'
        )
        self.demo = Demo(directory, Plan(settings + "[servers]\nslots = 4\n", {}, ""))
        self._program = directory / "obatchd-on-a-node"
        self._program.write_text(
            ON_A_NODE.format(simulator=json.dumps(SIMULATOR), obatchd=_command("obatchd")), "utf-8"
        )
        self._program.chmod(0o755)

    def say(self, words: str) -> None:
        print(f"{time.monotonic() - self._begun_s:5.0f} s  {words}", flush=True)

    def submit(self, name: str, *options: str) -> str:
        """Make a file for sbatch by obatchctl, and submit it; the job's id."""
        file = self._directory / f"{name}.sbatch"
        arguments = ["cluster", "slurm", *options, "--gres=gpu:2", "--name", name, "-o", str(file)]
        print(f"\n$ obatchctl {' '.join(arguments)}\n$ sbatch {file}", flush=True)
        here = ["--obatchd", str(self._program), "--directory", str(self._directory / "hosts")]
        self.obatchctl(*arguments, *here, shown=False)
        log = f"--output={self._directory}/{name}-%j.log"
        own = {key: value for key, value in os.environ.items() if not key.startswith("OBATCH")}
        return self._slurm.call("sbatch", "--parsable", log, str(file), environment=own)

    def obatchctl(self, *arguments: str, shown: bool = True) -> None:
        done = subprocess.run(
            [_command("obatchctl"), "--spool", self.demo.spool, *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode not in (0, 1):
            sys.exit(f"obatchctl {arguments[0]} failed: {done.stdout}{done.stderr}")
        if shown:
            print(done.stdout, flush=True)

    def answers(self) -> bool:
        with contextlib.suppress(DaemonDownError):
            return bool(self.demo.client.get("hosts"))
        return False

    def here(self) -> set[str]:
        return {host["name"] for host in self.demo.client.get("hosts")["hosts"] if host["state"] == "here"}

    def until(self, is_so: Callable[[], bool], words: str, within_s: float = HERE_S) -> None:
        """Wait, and say it; shows the hosts' table now and then. Exits where it does not come true."""
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


def play(shown: SlurmDemo, slurm: SlurmHere) -> dict[str, Any]:
    """The story; the job's last status."""
    shown.until(shown.answers, "the head runs")
    shown.submit("pilots", "-N", "3", "--apart", "--time", "1h")
    short = shown.submit("short", "-N", "1", "--time", "2m", "--notice", "30s", "--renew")
    names = set(slurm.nodes)
    shown.until(lambda: shown.here() == names, f"{', '.join(sorted(names))} are here")
    limited = slurm.call("squeue", "--noheader", f"--jobs={short}", "--format=%N")
    killed = min(names - {limited})
    shown.drop()
    shown.obatchctl("hosts")
    shown.until(lambda: shown.job()["succeeded"] > PROMPTS / 20, "the work is under way")
    slurm.kill_node(killed)
    shown.say(f"{killed} is dead: SIGKILL to its slurmd and to all that it ran")
    shown.until(lambda: killed not in shown.here(), f"the head has missed {killed}")
    slurm.start_node(killed)
    shown.say(f"{killed} boots again")
    shown.until(lambda: killed in shown.here(), f"{killed} is back: Slurm has put its job into the queue again")
    shown.until(lambda: limited not in shown.here(), f"{limited} has left: its time limit is near")
    shown.obatchctl("hosts")
    shown.until(lambda: limited in shown.here(), f"{limited} is back: its job went back to the queue")
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
    print("SIMULATED: each of Slurm's four nodes is this machine, with two stand-in GPUs. Slurm itself is a real one.")
    with contextlib.ExitStack() as stack:
        try:
            install()
            slurm = SlurmHere(nodes=4, gpus=2)
            stack.callback(slurm.stop)
            slurm.start()
        except NoSlurmError as error:
            print(f"There can be no Slurm here: {error}", file=sys.stderr)
            return 1
        print(f"\nexport SLURM_CONF={slurm.environment['SLURM_CONF']}   # for squeue and sinfo in another terminal")
        shown = SlurmDemo(directory, slurm)
        stack.callback(shown.demo.stop)
        wrong = verdict(play(shown, slurm))
    print("\n".join(wrong) or "Slurm, the head and all hosts are stopped.")
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
