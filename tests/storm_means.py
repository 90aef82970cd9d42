"""What a storm has beside kills: a proxy in front of a server, writers that stall, the end of a whole allocation."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from daemon_support import Document, ask_server, wait_for
from front_support import Front, Page, front_of
from port_support import free_ports

# What the proxy answers in place of the server behind it, in turn; None passes everything on.
_PAGES = (Page(502), None, Page(404), None, Page(200, b"<html>Sign in</html>"), None, Page(504, b""), None)
_STALL_S = 0.8  # four times settle_s of a storm's configuration, and less than ten times it


class FrontedServer:
    """A server of somebody else's, behind a proxy that now and then answers in its place."""

    def __init__(self, front: Front) -> None:
        self.url = front.url
        self._front = front
        self._turns = 0

    def turn(self) -> None:
        """Let the proxy do the next thing to prompts."""
        page = _PAGES[self._turns % len(_PAGES)]
        self._turns += 1
        if page is None:
            self.clear()
        else:
            self._front.pages["/api/chat"] = page

    def clear(self) -> None:
        self._front.pages.clear()


@contextlib.contextmanager
def fronted_server(root: Path, simulator: Document) -> Iterator[FrontedServer]:
    """A stand-in server and the proxy before it, until the end of the block."""
    address = f"127.0.0.1:{free_ports(1)}"
    environment = {**os.environ, "HOME": str(root), "OLLAMA_HOST": address, "OBATCHD_SIMULATOR": json.dumps(simulator)}
    command = [sys.executable, "-m", "obatchd.simulator.ollama", "serve"]
    with open(root / "fronted.log", "ab") as log:
        server = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    runners: list[psutil.Process] = []
    try:
        wait_for(lambda: _answers(f"http://{address}"), 30, "the server behind the proxy answers")
        with front_of(f"http://{address}") as front:
            yield FrontedServer(front)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            runners = psutil.Process(server.pid).children(recursive=True)
        server.terminate()
        server.wait(10)
        for runner in runners:
            with contextlib.suppress(psutil.NoSuchProcess):
                runner.kill()


class SlowWriter:
    """Writes files into the inbox as somebody with a bad line does: half, a stall, the rest."""

    def __init__(self) -> None:
        self._writers: list[threading.Thread] = []

    def write(self, path: Path, content: bytes) -> None:
        writer = threading.Thread(target=_write_slowly, args=(path, content))
        writer.start()
        self._writers.append(writer)

    def join(self) -> None:
        for writer in self._writers:
            writer.join()
        self._writers.clear()


def preempt(daemon: subprocess.Popen[bytes], parts: list[psutil.Process], grace_s: float) -> int:
    """SIGTERM to everything at once, and SIGKILL for what is left after ``grace_s``, as Slurm does; the exit code."""
    everything = [psutil.Process(daemon.pid), *parts]
    _send(everything, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        daemon.wait(grace_s)
    _send(everything, signal.SIGKILL)
    return daemon.wait(10)


def _send(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _write_slowly(path: Path, content: bytes) -> None:
    half = content.find(b"\n", len(content) // 2) + 1 or len(content) // 2
    with open(path, "xb") as file:
        file.write(content[:half])
        file.flush()
        time.sleep(_STALL_S)
        file.write(content[half:])


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(ask_server(url, "/api/version"))
    return False
