"""The steps of ``scripts/demo`` once obatchd is installed: daemon, drops, status, answers, stop.

Exit status: 0 when every request succeeded, 1 when not, 130 after Ctrl-C, which also removes the spool.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from obatchd import terminal
from obatchd.client.control import ControlClient
from obatchd.errors import DaemonDownError

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "etc" / "examples"
STORES = ("~/.ollama/models", "/usr/share/ollama/.ollama/models")  # of a user, of the service that the installer makes
SMALL_MODEL = "qwen2.5:0.5b"  # 400 MB, for whoever has none
SIMULATOR = {
    "load_s": 1.0,
    "tokens_per_s": 25.0,
    "answer": {"kind": "lognormal", "mean": 50},
    "models": [{"name": "simulated"}],
}
START_S, WORK_S, STOP_S = 20.0, 30.0, 8.0  # at most; 60 seconds in all
LOOK_S = 0.2
SHOW_S = 2.0  # between two plain status pages
GPU = Path("/dev/nvidiactl").exists()
CPU_LIMIT_BYTES, GPU_LIMIT_BYTES = 1_500_000_000, 20_000_000_000


class Model(NamedTuple):
    """A model in a store, the one to prefer first."""

    thinks: bool
    size_bytes: int
    name: str
    store: Path


class Plan(NamedTuple):
    """How the daemon is to run, and the words about it."""

    settings: str
    environment: dict[str, str]
    words: str


def models_of(store: Path) -> Iterator[Model]:
    """Models of an Ollama store that can answer; read from its files, because no server need be running."""
    manifests = store / "manifests"
    for path in manifests.glob("*/*/*/*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            manifest = json.loads(path.read_bytes())
            layers = {layer["mediaType"].rpartition(".")[2]: layer for layer in manifest["layers"]}
            config = json.loads(_blob(store, manifest["config"]["digest"]).read_bytes())
            template = _blob(store, layers["template"]["digest"]).read_text("utf-8") if "template" in layers else ""
            host, space, name, tag = path.relative_to(manifests).parts
            if "model" not in layers or "bert" in str(config.get("model_family")) or "embed" in name:
                continue  # kept in the cloud, or only for embeddings
            full = "/".join(part for part in (host, space) if part not in ("registry.ollama.ai", "library"))
            yield Model("think" in template.lower(), layers["model"]["size"], f"{full}/{name}:{tag}".lstrip("/"), store)


def _blob(store: Path, digest: str) -> Path:
    return store / "blobs" / digest.replace(":", "-")


def smallest_model() -> Model | None:
    """The smallest model here that is small enough; one that thinks before it answers only where there is no other."""
    limit_bytes = GPU_LIMIT_BYTES if GPU else CPU_LIMIT_BYTES
    chosen = os.environ.get("OLLAMA_MODELS")
    stores = [Path(store).expanduser() for store in ((chosen,) if chosen else STORES)]
    return min((m for store in stores for m in models_of(store) if m.size_bytes <= limit_bytes), default=None)


def plan(*, simulator: bool) -> Plan:
    """The real Ollama where it is installed and has a model, else the stand-in."""
    ollama = shutil.which("ollama")
    model = smallest_model() if ollama and not simulator else None
    if model is not None:
        tokens = 1024 if model.thinks else 32 if GPU else 16
        return Plan(
            f'model = "{model.name}"\nmax_response_tokens = {tokens}\n'
            f'[servers]\nmodels_dir = "{model.store}"\nstagger_s = 0\n[models]\npull = "never"\n',
            {},
            f"Ollama: {ollama} with the model {model.name}, the smallest here.",
        )
    none_small = f"the installed Ollama has no small model; ollama pull {SMALL_MODEL} gets one"
    why = none_small if ollama else "no ollama on PATH"
    return Plan(
        'model = "simulated"\ngpus = "simulated:4"\n[servers]\nslots = 2\nstagger_s = 0\n',
        {"OBATCHD_SIMULATOR": json.dumps(SIMULATOR)},
        f"SIMULATED ({'as asked' if simulator else why}): 4 stand-in servers and GPUs; the answers are made up.",
    )


class Demo:
    """One run in one temporary directory."""

    def __init__(self, directory: Path, chosen: Plan) -> None:
        self.directory = directory
        self.spool = directory / "spool"
        self.log = directory / "obatchd.log"
        config = directory / "obatchd.toml"
        config.write_text(f"drain_s = {STOP_S / 2}\n{chosen.settings}", "utf-8")
        own = {name: value for name, value in os.environ.items() if not name.startswith("OBATCHD_")}
        with self.log.open("wb") as log:
            # A session of its own: Ctrl-C is for this process, which then stops the daemon in order.
            self._daemon = subprocess.Popen(
                [_command("obatchd"), "--config", config, "--spool", self.spool],
                env=own | chosen.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.client = ControlClient(self.spool)

    def wait_until_ready(self, *, every: bool = False) -> None:
        """Until a server is ready, or every one; exits with the daemon's own words when it ends instead."""
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            if self._daemon.poll() is not None:
                sys.exit(f"obatchd did not start:\n{self.log.read_text('utf-8', 'replace')}")
            with contextlib.suppress(DaemonDownError):
                ready = [server["state"] == "ready" for server in self.client.get("servers")["servers"]]
                if all(ready) if every else any(ready):
                    return
            time.sleep(LOOK_S)
        sys.exit(f"No server became ready within {START_S:.0f} s; the log is {self.log}")

    def drop(self) -> int:
        """Copy the examples into the inbox as ``mv`` would: under a name that is ignored, then renamed."""
        examples = sorted(
            path for path in EXAMPLES.iterdir() if path.is_dir() or path.suffix in (".json", ".jsonl", ".gz")
        )
        for path in examples:
            hidden = self.spool / "inbox" / f".{path.name}"
            if path.is_dir():
                shutil.copytree(path, hidden)
            else:
                shutil.copyfile(path, hidden)
            hidden.rename(self.spool / "inbox" / path.name)
            print(f"  dropped {path.relative_to(ROOT)}")
        return len(examples)

    def watch(self, count: int) -> list[dict[str, Any]]:
        """Show the status until ``count`` jobs are over; their summaries."""
        deadline_s, shown_s = time.monotonic() + WORK_S, float("-inf")
        with self._live_status() if terminal.draws(sys.stdout) else contextlib.nullcontext():
            while True:
                jobs: list[dict[str, Any]] = self.client.get("jobs")["jobs"]
                over = len(jobs) >= count and all(job["state"] in ("done", "refused") for job in jobs)
                if over or time.monotonic() > deadline_s:
                    return jobs
                if not terminal.draws(sys.stdout) and time.monotonic() - shown_s >= SHOW_S:
                    shown_s = time.monotonic()
                    self.show_status()
                time.sleep(LOOK_S)

    @contextlib.contextmanager
    def _live_status(self) -> Iterator[None]:
        arguments = [_command("obatchctl"), "--spool", str(self.spool), "status", "--watch", "--interval", "0.3"]
        with subprocess.Popen(arguments, start_new_session=True) as watching:
            try:
                yield
            finally:
                watching.send_signal(signal.SIGINT)

    def show_status(self) -> None:
        print()
        sys.stdout.flush()
        subprocess.run([_command("obatchctl"), "--spool", self.spool, "status"], check=False)

    def stop(self) -> None:
        """SIGTERM, which lets the daemon stop its servers; a second one and SIGKILL when it takes too long."""
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if self._daemon.poll() is None:
                self._daemon.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._daemon.wait(STOP_S)
                return


def _command(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def report(jobs: list[dict[str, Any]], *, simulated: bool) -> bool:
    """Where the answers are, and one of them; whether every request of every job succeeded."""
    good = True
    print("\nThe answers:")
    for job in sorted(jobs, key=lambda job: job["job"]):
        print(f"  {job['succeeded']:>4} of {job['requests']} succeeded  {job['outbox']}")
        for note in job["notes"]:
            print(f"       note: {note}")
        good = good and job["state"] == "done" and job["succeeded"] == job["requests"]
    texts = sorted(path for job in jobs for path in Path(job["outbox"]).glob("responses/*.txt"))
    if texts:
        made_up = ", random words by a stand-in server" if simulated else ""
        print(f"\nOne of them, {texts[0]}{made_up}:\n\n{texts[0].read_text('utf-8').strip()}")
    return good


def run(directory: Path, chosen: Plan) -> int:
    print(chosen.words)
    demo = Demo(directory, chosen)
    try:
        demo.wait_until_ready()
        count = demo.drop()
        jobs = demo.watch(count)
        demo.show_status()
    finally:
        demo.stop()
    good = report(jobs, simulated="OBATCHD_SIMULATOR" in chosen.environment)
    if not good or len(jobs) < count:
        print(f"\nNot every request succeeded within {WORK_S:.0f} s; the daemon's log is {demo.log}")
        print("With stand-in servers: scripts/demo --simulator")
        return 1
    print(f"\nThe daemon and its servers are stopped. Remove everything with: rm -r {directory}")
    print('Next, with your own prompts: "The first hour" in README.md.')
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description="Run obatchd on the examples, in a temporary spool."
    )
    parser.add_argument("--simulator", action="store_true", help="stand-in servers, whatever is installed")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    directory = Path(tempfile.mkdtemp(prefix="obatchd-demo-"))
    try:
        return run(directory, plan(simulator=options.simulator))
    except KeyboardInterrupt:
        shutil.rmtree(directory, ignore_errors=True)
        print("\nStopped; nothing is left.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
