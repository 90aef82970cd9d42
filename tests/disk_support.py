"""A disk that refuses, for one process and what it forks."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster_support import HostProcess
from daemon_support import Daemon, wait_for

STRACE = shutil.which("strace")


@contextlib.contextmanager
def refusing(d: Daemon | HostProcess, error: str, calls: str) -> Iterator[None]:
    """While this lasts, these system calls of a daemon fail with this error, as those of a failing disk do."""
    inject = f"inject={calls}:error={error}"
    command = [str(STRACE), "-f", "-q", "-o", "/dev/null", "-e", f"trace={calls}", "-e", inject]
    for pid in [d.pid, *_forkservers(d)]:
        command += ["-p", str(pid)]
    strace = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:

        def attached() -> bool:
            status = Path(f"/proc/{d.pid}/status").read_text()
            return strace.poll() is not None or f"TracerPid:\t{strace.pid}\n" in status

        wait_for(attached, 10, "strace is attached")
        if strace.poll() is not None:
            pytest.skip(f"strace may not attach: {strace.stderr.read().decode()}")  # type: ignore[union-attr]
        yield
    finally:
        strace.send_signal(signal.SIGINT)  # it lets go of what it traces
        strace.communicate(timeout=10)


def _forkservers(d: Daemon | HostProcess) -> Iterator[int]:
    """From which the processes that write come."""
    for part in d.parts():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if "forkserver" in " ".join(part.cmdline()):
                yield part.pid
