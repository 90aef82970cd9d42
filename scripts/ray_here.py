"""A Ray of several nodes on loopback addresses of this machine, as ``ray start`` makes it, and what fails in it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

BIN = Path(sys.executable).parent
MISSING = importlib.util.find_spec("ray") is None
NO_DASHBOARD = importlib.util.find_spec("aiohttp_cors") is None  # of ray[default], without which it serves nothing
_START_S = 120.0
_TRIES = 3  # ray start gives up on a busy machine after some time of its own
_OURS = ("OBATCH", "OLLAMA_", "RAY_")


class RayHere:
    """Nodes ``ray1``, ``ray2`` … with two stand-in GPUs each; on the first one is Ray's own head.

    Args:
        nodes: how many there are.
        simulator: configuration of the stand-in servers of their hosts.
        dashboard: with Ray's dashboard, which ``ray list`` and ``ray job`` ask; needs ``ray[default]``.

    Attributes:
        started_s: when the latest ``ray start`` had its raylet, monotonic.
    """

    def __init__(self, nodes: int, simulator: dict[str, Any] | None = None, *, dashboard: bool = False) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="ob-ray-"))  # short: the names of Ray's sockets are long
        self.numbers = range(1, nodes + 1)
        self.port = _free_port()
        self.address = f"{self.ip(1)}:{self.port}"
        self.started_s = 0.0
        self._dashboard = ["--include-dashboard=false"]
        self._dashboard_url = ""
        if dashboard:
            port = _free_port()
            self._dashboard = ["--include-dashboard=true", f"--dashboard-port={port}"]
            self._dashboard_url = f"http://127.0.0.1:{port}"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        self.environment |= {
            "HOME": str(self.root),
            "OBATCH_HOSTS_DIR": str(self.root / "hosts"),
            "OBATCHD_SIMULATOR": json.dumps(simulator or {}),
            "OBATCHD_LOG_LEVEL": "debug",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    @staticmethod
    def ip(number: int) -> str:
        """Not 127.0.0.1, for which Ray takes the address of a real interface."""
        return f"127.0.0.{10 + number}"

    @staticmethod
    def name(number: int) -> str:
        return f"ray{number}"

    def names(self) -> list[str]:
        return [self.name(number) for number in self.numbers]

    def directory(self, number: int) -> Path:
        return self.root / "hosts" / self.name(number)

    # Life.

    def start(self) -> RayHere:
        """Start whatever of it does not run."""
        if self.gcs() is None:
            self._ended(self.raylets())  # of an earlier head
            self._start(1, "--head", "--port", str(self.port), "--temp-dir", str(self.root / "t"), *self._dashboard)
        for number in self.numbers:
            self.start_node(number)
        return self

    def start_node(self, number: int) -> None:
        if self.raylet(number) is None:
            self._start(number, "--address", self.address)

    def _own(self, number: int) -> dict[str, str]:
        """What tells nodes apart that are one machine here."""
        return {"OBATCHD_GPUS": "simulated:2", "OBATCHD_SERVERS_LISTEN": self.ip(number)}

    def _start(self, number: int, *more: str) -> None:
        command = [
            str(BIN / "ray"), "start", *more, "--node-ip-address", self.ip(number), "--node-name", self.name(number),
            "--num-cpus", "1", "--num-gpus", "2", "--object-store-memory", "80000000", "--disable-usage-stats",
        ]  # fmt: skip
        for _ in range(_TRIES):
            with open(self.root / "ray-start.log", "ab") as log:
                done = subprocess.run(
                    command, env=self.environment | self._own(number), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    timeout=_START_S, check=False, start_new_session=True,
                )  # fmt: skip
            if done.returncode == 0:
                self.started_s = time.monotonic()
                return
            self._ended([raylet] if (raylet := self.raylet(number)) is not None else [])
        raise AssertionError((self.root / "ray-start.log").read_text()[-3000:])

    def clean(self) -> None:
        """End all of it, with its hosts and their servers."""
        for _ in range(3):  # what runs may start more meanwhile
            self._ended(list(self.processes()))
        shutil.rmtree(self.root, ignore_errors=True)

    @staticmethod
    def _ended(processes: list[psutil.Process]) -> None:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)

    # Its processes.

    def processes(self) -> Iterator[psutil.Process]:
        """Everything that was started in it and lives."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("HOME") == str(self.root) and _alive(process):
                    yield process

    def _named(self, program: str) -> list[psutil.Process]:
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if process.name() == program:
                    found.append(process)
        return found

    def gcs(self) -> psutil.Process | None:
        """Ray's head."""
        return next(iter(self._named("gcs_server")), None)

    def raylets(self) -> list[psutil.Process]:
        return self._named("raylet")

    def raylet(self, number: int) -> psutil.Process | None:
        wanted = f"--node_ip_address={self.ip(number)}"
        for process in self.raylets():
            with contextlib.suppress(psutil.Error):
                if wanted in process.cmdline():
                    return process
        return None

    def host(self, number: int) -> psutil.Process | None:
        """``obatchd host`` on a node."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                if "host" in line and str(self.directory(number)) in line:
                    return process
        return None

    # Faults.

    def kill_raylet(self, number: int) -> None:
        process = self.raylet(number)
        assert process is not None
        process.kill()
        process.wait(10)

    def kill_gcs(self) -> None:
        process = self.gcs()
        assert process is not None
        process.kill()
        process.wait(10)

    def node_id(self, number: int) -> str:
        """Ray's own id of a node, out of the command line of its raylet."""
        process = self.raylet(number)
        assert process is not None
        return next(one.partition("=")[2] for one in process.cmdline() if one.startswith("--node_id="))

    def drain(self, number: int) -> None:
        """Have Ray announce that it takes a node away, as its autoscaler and a preemption do."""
        self.command(
            "drain-node", "--address", self.address, "--node-id", self.node_id(number),
            "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a try",
            "--deadline-remaining-seconds", "600",
        )  # fmt: skip

    def command(self, *arguments: str) -> str:
        """Run ``ray`` with these, which has to succeed; what it prints to its standard output."""
        found = {"RAY_ADDRESS": self._dashboard_url} if self._dashboard_url else {}
        done = subprocess.run(
            [str(BIN / "ray"), *arguments], env=self.environment | found, capture_output=True, text=True,
            timeout=_START_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"ray {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def end_by_hand(self) -> None:
        """``SIGTERM`` to all raylets and Ray's head, as ``ray stop``."""
        processes = [*self.raylets(), *self._named("gcs_server")]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(processes, timeout=20)
        self._ended(left)
        _wait_for(lambda: not self.raylets())


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _wait_for(look: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not look():
        if time.monotonic() > deadline_s:
            raise AssertionError("Ray did not end")
        time.sleep(0.05)
