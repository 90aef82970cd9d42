"""Shared by the benchmarks: a daemon on a spool of its own, nginx as a server without latency, tables, the last line.

Every benchmark prints a table and, as its last line, one JSON object: ``{"bench", "figures", "goals", "met"}``.
Figures are measured side by side in one run, because machines are noisy; only ratios count.
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
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import toml

from obatchd.client.control import ControlClient
from obatchd.errors import DaemonDownError
from obatchd.servers.sweep import sweep

BIN = Path(sys.executable).parent
_ANSWER = {
    "model": "bench",
    "created_at": "2026-01-01T00:00:00Z",
    "message": {"role": "assistant", "content": "The answer is forty-two, as it has always been."},
    "done": True,
    "done_reason": "stop",
    "total_duration": 1_000_000,
    "load_duration": 1000,
    "prompt_eval_count": 12,
    "prompt_eval_duration": 1000,
    "eval_count": 11,
    "eval_duration": 1000,
}
_MODEL = {
    "name": "bench:latest",
    "model": "bench:latest",
    "modified_at": "2026-01-01T00:00:00Z",
    "size": 1000,
    "digest": "0" * 64,
    "details": {"family": "llama", "parameter_size": "1M", "quantization_level": "F16"},
}
CANNED = {
    "/api/version": {"version": "0.24.0"},
    "/api/tags": {"models": [_MODEL]},
    "/api/show": {
        "details": _MODEL["details"],
        "model_info": {"llama.context_length": 8192},
        "capabilities": ["completion"],
    },
    "/api/ps": {"models": [{**_MODEL, "size_vram": 0, "expires_at": "2030-01-01T00:00:00Z", "context_length": 8192}]},
    "/api/generate": {
        "model": "bench",
        "created_at": "2026-01-01T00:00:00Z",
        "response": "",
        "done": True,
        "done_reason": "load",
    },
    "/api/chat": _ANSWER,
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(look: Callable[[], Any], timeout_s: float, what: str, pause_s: float = 0.005) -> Any:
    """The first true value of ``look``; exits with a message after ``timeout_s``."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := look()):
        if time.monotonic() > deadline_s:
            raise SystemExit(f"not within {timeout_s:g} s: {what}")
        time.sleep(pause_s)
    return value


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A temporary directory on a real file system: ``BENCH_DIR``, else the current one's disk."""
    parent = os.environ.get("BENCH_DIR") or tempfile.gettempdir()
    directory = Path(tempfile.mkdtemp(prefix="obatchd-bench-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def nginx(directory: Path, count: int, chat_log: Path | None = None) -> Iterator[list[int]]:
    """``count`` addresses that answer everything at once with canned bodies; yields their ports.

    ``chat_log`` gets a line for each prompt, beginning with the time of its answer in seconds (epoch).
    """
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise SystemExit("this benchmark needs nginx: apt-get install nginx-light")
    ports = [free_port() for _ in range(count)]
    logged = f"access_log {chat_log} seconds;" if chat_log else ""
    places = "".join(
        f"location = {path} {{ {logged if path == '/api/chat' else ''} return 200 '{json.dumps(body)}\\n'; }}\n"
        for path, body in CANNED.items()
    )
    listen = " ".join(f"listen 127.0.0.1:{port};" for port in ports)
    config = directory / "nginx.conf"
    config.write_text(
        f"worker_processes 1; daemon off; pid {directory}/nginx.pid; error_log {directory}/nginx.err;\n"
        "events { worker_connections 4096; }\n"
        f"http {{ log_format seconds $msec; access_log off; keepalive_requests 1000000000;\n"
        f"client_body_temp_path {directory}/body;\n"
        f"default_type application/json; server {{ {listen}\n{places} }} }}\n"
    )
    process = subprocess.Popen([program, "-e", f"{directory}/nginx.err", "-c", config], stderr=subprocess.DEVNULL)
    with _serving(process, ports):
        yield ports


@contextlib.contextmanager
def slot_servers(count: int, slots: int, mean_s: float, sigma: float) -> Iterator[list[int]]:
    """``count`` servers of ``slots`` slots, whose answers take log-normal times; yields their ports."""
    ports = [free_port() for _ in range(count)]
    program = Path(__file__).with_name("slot_servers.py")
    process = subprocess.Popen([sys.executable, program, str(slots), str(mean_s), str(sigma), *map(str, ports)])
    with _serving(process, ports):
        yield ports


@contextlib.contextmanager
def _serving(process: subprocess.Popen[bytes], ports: list[int]) -> Iterator[None]:
    """From when the servers answer until their process has ended."""
    try:
        wait_for(lambda: _connects(ports[-1]), 10, "the servers answer")
        yield
    finally:
        process.terminate()
        process.wait(10)


def settled_size(log: Path) -> int:
    """The size of a server's log when nothing is added any more: requests in flight have ended."""
    size = -1
    while size != log.stat().st_size:
        size = log.stat().st_size
        time.sleep(0.2)
    return size


def cpu_s(processes: list[psutil.Process]) -> float:
    """Seconds of processor time that these processes have used."""
    times = [process.cpu_times() for process in processes]
    return sum(t.user + t.system for t in times)


def ask(url: str, path: str, body: Any = None) -> Any:
    """The JSON answer of a server; ``body`` is posted."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url + path, data), timeout=10) as response:
        return json.load(response)


def _connects(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
        return True
    return False


class Daemon:
    """A daemon for measuring; ``prefix`` is put in front of its command, e.g. strace."""

    def __init__(self, directory: Path, config: Mapping[str, Any], simulator: Mapping[str, Any] | None = None) -> None:
        self.spool = directory / "spool"
        self.inbox, self.outbox = self.spool / "inbox", self.spool / "outbox"
        self.log = directory / "log"
        self._config = directory / "obatchd.toml"
        self._config.write_text(toml.dumps(dict(config)))
        self._simulator = json.dumps(dict(simulator or {}))
        self.client = ControlClient(self.spool)
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self, prefix: list[str] | None = None) -> None:
        environment = {**os.environ, "OBATCHD_SIMULATOR": self._simulator}
        command = [*(prefix or []), str(BIN / "obatchd"), "--config", str(self._config), "--spool", str(self.spool)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def start(self, prefix: list[str] | None = None) -> None:
        """Start it and wait until every server is ready."""
        self.launch(prefix)
        wait_for(self._ready, 60, f"the daemon is ready; its log: {self.log}", 0.05)

    def _ready(self) -> bool:
        with contextlib.suppress(DaemonDownError):
            servers = self.client.get("status")["servers"]
            return bool(servers) and all(server["state"] == "ready" for server in servers)
        return False

    @property
    def main(self) -> psutil.Process:
        """The daemon's main process, also when it runs below another program."""
        return psutil.Process(self.client.get("status")["pid"])

    def status(self) -> dict[str, Any]:
        return self.client.get("status")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(DaemonDownError, psutil.NoSuchProcess):
                self.main.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self.sweep()

    def kill(self) -> None:
        """SIGKILL the main process."""
        self.main.kill()
        if self.process is not None:
            self.process.wait()

    def sweep(self) -> None:
        with contextlib.suppress(OSError):
            sweep((self.spool / "work" / "uuid").read_text().strip())

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def remote_config(ports: list[int], **more: Any) -> dict[str, Any]:
    """A configuration whose servers are those ports."""
    return {
        "model": "bench",
        "log_level": "warning",
        "ollama_instances": {f"127.0.0.1:{port}": index for index, port in enumerate(ports)},
        **more,
    }


def prompt_lines(path: Path, count: int) -> None:
    """``count`` one-line prompts of about 90 bytes with ids."""
    with open(path, "w") as file:
        for i in range(count):
            file.write(f'{{"id": "r{i}", "prompt": "What is the meaning of line {i} in this file of prompts?"}}\n')


def table(title: str, rows: list[tuple[str, str]]) -> None:
    """Print a table of two columns."""
    print(title)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


def finish(bench: str, figures: Mapping[str, float], goals: Mapping[str, tuple[str, float]]) -> int:
    """Print the last line; the exit code is 0 when every goal is met.

    Args:
        goals: figure → (">=" or "<=", limit).
    """
    met = all(
        figures[name] >= limit if sign == ">=" else figures[name] <= limit for name, (sign, limit) in goals.items()
    )
    document = {
        "bench": bench,
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "goals": {name: limit for name, (_, limit) in goals.items()},
        "met": met,
    }
    print(json.dumps(document))
    return 0 if met else 1
