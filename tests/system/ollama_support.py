"""Starts a real or a simulated Ollama for tests, and cleans up after it."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

START_LIMIT_S = 30.0
SIMULATED_COMMAND = [sys.executable, "-m", "obatchd.simulator.ollama"]


def real_command() -> list[str] | None:
    """The real Ollama that ``scripts/real-ollama`` made sure of, if there is one."""
    path = os.environ.get("OBATCHD_TEST_OLLAMA")
    return [path] if path and os.environ.get("OBATCHD_TEST_MODELS") else None


@functools.cache
def real_version() -> str:
    """Its version, such as ``0.33.2``."""
    command = real_command()
    assert command is not None
    # The port is one where nothing answers, so that the program speaks of itself only.
    asked = subprocess.run(
        [*command, "--version"], env={**os.environ, "OLLAMA_HOST": "127.0.0.1:1"}, capture_output=True, text=True
    )
    return (asked.stdout + asked.stderr).split()[-1]


def real_line() -> str:
    """The line of versions that it belongs to, such as ``0.33``."""
    return real_version().rpartition(".")[0]


def real_models() -> Path:
    """The model store that goes with it: ``tiny``, ``tiny2``, ``endless`` and ``vectors``. Tests never change it."""
    return Path(os.environ["OBATCHD_TEST_MODELS"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], what: str, limit_s: float = START_LIMIT_S) -> Any:
    """The first true value of ``condition``, asked again and again until ``limit_s`` are over."""
    deadline_s = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"{what} did not happen within {limit_s} s"
        time.sleep(0.02)
    return value


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    type: str
    body: bytes
    whole: bool = True  # the connection was not cut

    def json(self) -> Any:
        return json.loads(self.body)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.body.splitlines()]


@dataclass
class Ollama:
    """A server process in its own session, with its address and its log."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    environment: dict[str, str] = field(repr=False, default_factory=dict)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: Any = None, limit_s: float = 60.0) -> Answer:
        """One request; ``body`` is sent as it is when it is bytes, else as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=limit_s)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        with contextlib.closing(connection):
            connection.request(method, path, data)
            response = connection.getresponse()
            kind = (response.getheader("Content-Type") or "").partition(";")[0]
            try:
                return Answer(response.status, kind, response.read())
            except http.client.IncompleteRead as error:
                return Answer(response.status, kind, error.partial, whole=False)

    def runners(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def answers(self) -> bool:
        try:
            return self.ask("GET", "/api/version", limit_s=2).status == 200
        except (OSError, http.client.HTTPException):
            assert self.process.poll() is None, f"the server ended: {self.log_text()}"
            return False

    def stop(self) -> None:
        """Kill the whole process group, orphaned runners included."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def launch(command: list[str], directory: Path, models: Path | None = None, **environment: str) -> Ollama:
    """Start ``command serve`` without waiting for it.

    Args:
        command: of the program, from :func:`real_command` or ``SIMULATED_COMMAND``.
        directory: for its home, its log and, without ``models``, its model store.
        environment: more variables, over those of a CPU server with two slots.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port = int(environment.pop("port", "0")) or free_port()
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(models or directory / "models"),
        "OLLAMA_NUM_PARALLEL": "2",
        "OLLAMA_CONTEXT_LENGTH": "4096",
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NO_CLOUD": "1",
        "CUDA_VISIBLE_DEVICES": "-1",
        **environment,
    }
    log = directory / f"serve-{port}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, "serve"],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Ollama(process, port, log, variables)


@contextlib.contextmanager
def serving(command: list[str], directory: Path, models: Path | None = None, **environment: str) -> Iterator[Ollama]:
    """A server that answers, for the length of a ``with`` block."""
    server = launch(command, directory, models, **environment)
    try:
        wait_for(server.answers, "the start of the server")
        yield server
    finally:
        server.stop()
