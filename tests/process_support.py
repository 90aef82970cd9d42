"""A program of ours that runs for a test, with a log of its own: started, looked at, told to stop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

T = TypeVar("T")
Document = dict[str, Any]
BIN = Path(sys.executable).parent
_OURS = ("OBATCH", "OLLAMA_")
_START_S = 60.0


def wait_for(look: Callable[[], T], timeout_s: float = 30, what: str = "") -> T:
    """The first true value of ``look``; fails after ``timeout_s``."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := look()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {timeout_s:g} s: {what or look}")
        time.sleep(0.01)
    return value


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def laid_over(*documents: Document) -> Document:
    """The later ones over the earlier ones, table by table."""
    merged: Document = {}
    for document in documents:
        for name, value in document.items():
            old = merged.get(name)
            merged[name] = {**old, **value} if isinstance(value, dict) and isinstance(old, dict) else value
    return merged


class Running:
    """One program at a time, which may be killed and started again.

    Args:
        root: directory of its files and its log; its home.
        name: of the program, for messages.
        simulator: configuration of stand-in servers and GPUs.
    """

    def __init__(self, root: Path, name: str, simulator: Document | None = None) -> None:
        root.mkdir(exist_ok=True)
        self.root = root
        self.log_file = root / "log"
        self.simulator = simulator or {}
        self.process: subprocess.Popen[bytes] | None = None
        self.was_killed = False
        self._name = name

    def environment(self) -> dict[str, str]:
        """Nothing of ours but what this program is to have."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        return kept | {
            "HOME": str(self.root),
            "PYTHONFAULTHANDLER": "1",
            "OBATCHD_SIMULATOR": json.dumps(self.simulator),
        }

    def run(self, command: Sequence[str | Path], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start the process and return at once."""
        with open(self.log_file, "ab") as log:
            # A session of its own, as a terminal's foreground group is: Ctrl-C reaches everything in it.
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        return self.process

    def until(self, look: Callable[[], bool], what: str) -> None:
        """Wait for a sign of the start; fails with the log where the process ends before."""
        process = self.process
        assert process is not None

        def seen() -> bool:
            if process.poll() is not None:
                raise AssertionError(f"{self._name} exited with {process.returncode}:\n{self.log()[-3000:]}")
            return look()

        wait_for(seen, _START_S, what)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def parts(self) -> list[psutil.Process]:
        """Every process below it that lives now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).children(recursive=True)
        return []

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 20) -> int:
        """Signal it and wait for its end; its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # faulthandler writes down where every thread is
            self.process.wait(10)
            raise AssertionError(f"{self._name} did not end within {timeout_s:g} s:\n{self.log()[-6000:]}") from None

    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def events(self, name: str) -> list[str]:
        """Lines of its log for one event."""
        return [line for line in self.log().splitlines() if f" event={name} " in f"{line} "]
