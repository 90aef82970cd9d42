"""The whole daemon as its users run it: the console script, real files, real signals, stand-in servers."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import urllib.request
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import toml
from process_support import BIN, Document, Running, laid_over, wait_for

from obatchd.client.control import ControlClient
from obatchd.client.runtime import read_record
from obatchd.errors import DaemonDownError
from obatchd.servers.environment import SERVER_MARK
from obatchd.servers.sweep import marked, sweep
from obatchd.spool.layout import drop_stem

CHANNEL = "OBATCHD_SIMULATOR_CHANNEL"
_QUICK: Document = {
    "model": "tiny",
    "log_level": "debug",
    "drain_s": 5,
    "gpus": {"use": "simulated:2", "poll_s": 0.1},
    "servers": {"slots": 4, "stagger_s": 0, "backoff_max_s": 0.2, "health_s": 0.3, "stop_grace_s": 3},
    "inbox": {"settle_s": 0.2, "folder_settle_s": 0.2, "rescan_s": 0.5},
    "http": {"listen": ""},
}


def digest(prompt: str) -> str:
    """How a stand-in's answer to ``prompt`` begins."""
    return "digest:" + hashlib.sha256(prompt.encode()).hexdigest()[:16]


def prompts(count: int, name: str = "q", **more: Any) -> list[Document]:
    """Requests with ids and prompts of their own."""
    return [{"id": f"{name}-{i}", "prompt": f"{name}: what is {i}?", **more} for i in range(count)]


def jsonl(requests: Iterable[Document]) -> bytes:
    return b"".join(json.dumps(request).encode() + b"\n" for request in requests)


def json_array_gz(requests: Iterable[Document]) -> bytes:
    return gzip.compress(json.dumps(list(requests)).encode())


def ask_server(url: str, path: str, body: Any = None) -> Document:
    """What a stand-in server says about itself."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url + path, data), timeout=5) as response:
        answer: Document = json.load(response)
        return answer


class Job:
    """A job as its owner sees it: the directory in the outbox."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.id = directory.name.rpartition(".")[2]

    def _document(self, name: str) -> Document:
        document: Document = json.loads((self.directory / name).read_bytes())
        return document

    def _lines(self, name: str) -> list[Document]:
        return [json.loads(line) for line in (self.directory / name).read_bytes().splitlines()]

    @property
    def status(self) -> Document:
        return self._document("status.json")

    @property
    def summary(self) -> Document:
        return self._document("summary.json")

    @property
    def results(self) -> list[Document]:
        return self._lines("results.jsonl")

    @property
    def errors(self) -> list[Document]:
        return self._lines("errors.jsonl")

    def codes(self) -> Counter[str]:
        return Counter(error["code"] for error in self.errors)

    def check(self, asked: Mapping[str, str] | Iterable[Document] | None = None, *, failed: int = 0) -> Document:
        """Every request has one outcome, successes answer their own prompt, the summary adds up; returns it.

        Args:
            asked: id → prompt, or requests with both; None looks at the prompts that the results repeat.
            failed: how many did not succeed.
        """
        results, errors, summary = self.results, self.errors, self.summary
        ids = [record["id"] for record in results + errors]
        lines = Counter((record["line"], record.get("repeat", 0)) for record in results + errors)
        assert len(lines) == len(ids), f"answered twice: lines {[line for line, n in lines.items() if n > 1]}"
        for record in results:
            assert record["response"].startswith(digest(record["prompt"])), record
        if asked is not None:
            wanted = dict(asked) if isinstance(asked, Mapping) else {str(r["id"]): r["prompt"] for r in asked}
            assert set(ids) == set(wanted)
            assert {r["id"]: r["prompt"] for r in results} == {r["id"]: wanted[r["id"]] for r in results}
        places = [(r["line"], r.get("repeat", 0)) for r in results]
        assert places == sorted(places)
        outcomes = {name: summary[name] for name in ("succeeded", "failed", "cancelled", "expired")}
        assert summary["requests"] == sum(outcomes.values()) == len(ids), outcomes
        assert outcomes["succeeded"] == len(results)
        assert sum(group["requests"] for group in summary["failures"].values()) == len(errors)
        assert {code: group["requests"] for code, group in summary["failures"].items()} == dict(self.codes())
        assert len(errors) == failed, dict(self.codes())
        assert abs(summary["serial_s"] - sum(r.get("duration_s", 0) for r in results + errors)) < 0.01
        # Both are rounded: wall_s to milliseconds, of which a quick job has few, speedup to hundredths.
        wall_s, speedup = summary["wall_s"], summary["speedup"]
        assert abs(speedup * wall_s - summary["serial_s"]) < 0.006 * wall_s + 0.001 * speedup + 0.001
        return summary


class Daemon(Running):
    """One daemon on one spool of its own; may be killed and started again.

    Args:
        root: directory of the spool, the configuration and the log.
        config: laid over quick settings, table by table; a string is the whole file.
        simulator: configuration of the stand-in servers.
    """

    def __init__(
        self,
        root: Path,
        config: Document | str | None = None,
        simulator: Document | None = None,
        spool: Path | None = None,
    ) -> None:
        super().__init__(root, "obatchd", simulator)
        self.spool = spool or root / "s"
        self.inbox, self.outbox = self.spool / "inbox", self.spool / "outbox"
        self.config_file = root / "obatchd.toml"
        self.configure(config)
        self.wrapper: tuple[str, ...] = ()  # a command that starts the daemon
        self.client = ControlClient(self.spool)

    def configure(self, config: Document | str | None) -> None:
        """Write the configuration file."""
        if not isinstance(config, str):
            config = toml.dumps(laid_over(_QUICK, config or {}))
        self.config_file.write_text(config)

    # Life.

    def launch(self, crash_at: str = "", **variables: str) -> subprocess.Popen[bytes]:
        """Start the process and return at once."""
        environment = self.environment() | variables
        if trouble := os.environ.get(CHANNEL):  # of the tests that run over a bad channel to workers
            environment[CHANNEL] = trouble
        if crash_at:
            environment["OBATCHD_CRASH_AT"] = crash_at
            self.was_killed = True
        command = [*self.wrapper, BIN / "obatchd", "--config", self.config_file, "--spool", self.spool]
        return self.run(command, environment)

    def start(self, crash_at: str = "", **variables: str) -> Daemon:
        """Start it and wait until it answers."""
        process = self.launch(crash_at, **variables)

        def answers() -> bool:
            with contextlib.suppress(DaemonDownError):
                return bool(self.status()["pid"] == process.pid)
            return False

        self.until(answers, "the daemon answers")
        return self

    def ready(self) -> Daemon:
        """Wait until every server is READY."""
        wait_for(lambda: all(s["state"] == "ready" for s in self.status()["servers"]), 60, "all servers are READY")
        return self

    def kill(self) -> list[psutil.Process]:
        """SIGKILL the daemon; returns the processes it had, except servers and runners."""
        parts = [part for part in self.parts() if not is_server(part)]
        self.was_killed = True
        os.kill(self.pid, signal.SIGKILL)
        assert self.process is not None
        self.process.wait(10)
        return parts

    def clean(self) -> None:
        """End everything of this spool, however the test ended."""
        if self.process is not None and self.process.poll() is None:
            parts = self.parts()
            for timeout_s in (0.5, 3):
                self.process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout_s)
            if self.process.poll() is None:
                self.kill()
            psutil.wait_procs(parts, timeout=5)
        with contextlib.suppress(OSError):
            sweep((self.spool / "work" / "uuid").read_text().strip())
        with contextlib.suppress(DaemonDownError, OSError):
            shutil.rmtree(read_record(self.spool).runtime_dir)

    def servers_alive(self) -> list[psutil.Process]:
        """Servers and runners of this spool."""
        return marked((self.spool / "work" / "uuid").read_text().strip())

    # Looking.

    def status(self) -> Document:
        return self.client.get("status")

    def succeeded(self) -> int:
        """Requests of jobs in work that have their answer; a drop that was just taken may not be among them yet."""
        return sum(job["succeeded"] for job in self.status()["jobs"])

    def servers(self) -> list[Document]:
        found: list[Document] = self.status()["servers"]
        return found

    def seen(self) -> list[Document]:
        """What each stand-in server saw, from its own side."""
        return [ask_server(server["url"], "/simulator/state") for server in self.servers()]

    def received(self) -> list[Document]:
        """Every prompt that reached a slot of a server, in order of arrival."""
        found: list[Document] = []
        for server in self.servers():
            found += ask_server(server["url"], "/simulator/requests")["requests"]
        return sorted(found, key=lambda request: request["at_s"])

    def faults(self, *faults: Document, server: int | None = None) -> None:
        """Replace the faults of one stand-in server, or of all."""
        for number, entry in enumerate(self.servers()):
            if server in (None, number):
                ask_server(entry["url"], "/simulator/faults", list(faults))

    def control(self, *arguments: str | Path, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
        """Run ``obatchctl`` on this spool."""
        command = [BIN / "obatchctl", "--spool", self.spool, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)

    # Drops.

    def drop(self, name: str, content: bytes | list[Document] | Mapping[str, bytes], owner: int | None = None) -> str:
        """Rename a drop into the inbox: bytes, requests for JSONL, or the files of a folder. Returns its name."""
        return self.drop_all({name: content}, owner)[0]

    def drop_all(
        self, drops: Mapping[str, bytes | list[Document] | Mapping[str, bytes]], owner: int | None = None
    ) -> list[str]:
        """Several drops, written first and then renamed together."""
        staging = self.root / "staging"
        staging.mkdir(exist_ok=True)
        for name, content in drops.items():
            path = staging / name
            if isinstance(content, Mapping):
                path.mkdir()
                for file, data in content.items():
                    (path / file).write_bytes(data)
            else:
                path.write_bytes(content if isinstance(content, bytes) else jsonl(content))
            if owner is not None:
                os.chown(path, owner, -1)
        for name in drops:
            os.rename(staging / name, self.inbox / name)
        return list(drops)

    def job(self, name: str, timeout_s: float = 30) -> Job:
        """The job of a drop, once it is in the outbox."""
        shape = f"{drop_stem(os.fsencode(name))}.????????-??????-????"  # not of a retry, which is called r.retry.ID

        def find() -> Path | None:
            return next((path for path in self.outbox.glob(shape) if (path / "status.json").exists()), None)

        found = wait_for(find, timeout_s, f"{name} is a job")
        assert found is not None
        return Job(found)

    def done(self, name: str, timeout_s: float = 30) -> Job:
        """The job of a drop, once it is complete."""
        job = self.job(name, timeout_s)
        wait_for((job.directory / "summary.json").exists, timeout_s, f"{name} is done")
        return job


def is_server(process: psutil.Process) -> bool:
    """Whether it is an ``ollama serve`` of ours, or a runner of one."""
    try:
        return SERVER_MARK in process.environ()
    except (psutil.Error, OSError):
        return False


def kill_server(server: Document) -> None:
    """SIGKILL an ``ollama serve`` alone, as the kernel's out-of-memory killer would."""
    os.kill(server["pid"], signal.SIGKILL)
