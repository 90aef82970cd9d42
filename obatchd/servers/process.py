"""One server process with its runners: a session and process group of its own, started and ended as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import psutil

import obatchd.log
from obatchd.errors import ServerError
from obatchd.servers.logs import LogDrain
from obatchd.tasks import set_within

log = obatchd.log.get(__name__)

TRIED = ("0.24", "0.33")  # with which tests/system was run: of the old line the last, and of that with llama-server
_POLL_S = 0.02
_LEFTOVER_S = 5.0  # how long SIGKILLed runners may take to give their memory back
_STOPS = 20
_PIPE_BYTES = 64 * 1024  # capacity of a pipe: pipe(7)
# A runner that serves as a probe of the GPUs has no model. Ollama's words of v0.24, and since v0.30 (llm/server.go).
_RUNNER_STARTS = re.compile(r"starting (runner|llama-server)\b.*--model")
_RUNNER_STARTED = re.compile(r"(runner|llama-server) (started in|terminated|process no longer running)")
_NO_PARALLEL = "does not currently support parallel requests"


def version_warning(version: str) -> str | None:
    """A warning about a server's version, or None when this was tried with it."""
    match = re.match(r"v?(\d+\.\d+)", version)
    if match and match[1] in TRIED:
        return None
    return f"Ollama {version or 'of unknown version'} is used, but only {' and '.join(TRIED)} are known to work."


class ProcessListener(Protocol):
    """Hears of the end of a process; :class:`obatchd.servers.managed.ManagedServer`."""

    def process_ended(self) -> None:
        """It ended, asked or not, and was reaped."""


class ServerProcess:
    """Starts and ends ``ollama serve``."""

    def __init__(self, server: str, log_path: Path, listener: ProcessListener) -> None:
        self.pid: int | None = None  # of the serving process, None when none runs
        self.returncode: int | None = None  # of the latest process; negative for a signal
        self.ended = asyncio.Event()  # set when the process has ended and been reaped with its whole group
        self.stopped = deque[float](maxlen=_STOPS)  # when we signalled one to end lately; epoch seconds
        self.loading_since_s: float | None = None  # monotonic; as its log tells, None while it loads no model
        self.one_slot = False  # the server said in its log that the loaded model cannot use more than one slot
        self._server = server
        self._listener = listener
        self._devices: list[str] = []
        self._device_seen = asyncio.Event()
        self.log = LogDrain(server, log_path, self)
        self._popen: subprocess.Popen[bytes] | None = None
        self._output = -1  # read end of the pipe that it writes to; -1: closed

    async def start(self, command: Sequence[str], environment: Mapping[str, str], cwd: Path) -> None:
        """Start the process; raises ServerError (``start_failed``) where the program cannot be executed."""
        self._devices.clear()
        self._device_seen.clear()
        self.ended.clear()
        self.loading_since_s = self.returncode = None
        self.one_slot = False
        self._output, write_fd = os.pipe()
        # Slurm may tell every process of a step that the time limit is near, and not all runners live through that;
        # a new process has those signals blocked that are so here.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        try:
            self._popen = subprocess.Popen(
                command, env=dict(environment), cwd=cwd, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=write_fd, stderr=write_fd,
            )  # fmt: skip
        except OSError as error:
            self._close_output()
            raise ServerError(f"{command[0]} cannot be started: {error.strerror}.", code="start_failed") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(write_fd)
        self.pid = self._popen.pid
        loop = asyncio.get_running_loop()
        pidfd = os.pidfd_open(self.pid)
        loop.add_reader(pidfd, self._exited, self._popen, pidfd)
        # Read here and not by a transport: uvloop's closes the pipe twice (uvloop issue 763), and by the second time
        # its number may be another thread's file.
        os.set_blocking(self._output, False)
        loop.add_reader(self._output, self._read_output)

    def _read_output(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if data := os.read(self._output, _PIPE_BYTES):
                self.log.data_received(data)
            else:
                self._close_output()

    def _close_output(self) -> None:
        if self._output >= 0:
            asyncio.get_running_loop().remove_reader(self._output)
            os.close(self._output)
            self._output = -1
            self.log.close()

    def _exited(self, popen: subprocess.Popen[bytes], pidfd: int) -> None:
        """The process is a zombie now. Until it is reaped its group id cannot belong to anybody else: the moment to
        kill its runners, which outlive it and hold the memory of the GPU."""
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        _signal_group(popen.pid, signal.SIGKILL)
        returncode = popen.wait()
        if popen is not self._popen:
            return  # it was stuck when it was stopped, and another one may have followed
        self.returncode = returncode
        if self._output >= 0:
            self._read_output()  # its last words, which tell why it ended
        self.ended.set()
        self._listener.process_ended()

    async def stop(self, grace_s: float) -> None:
        """SIGTERM to the group, SIGKILL after ``grace_s``; returns when the whole group is gone. Idempotent."""
        if self.pid is None:
            return
        if not self.ended.is_set():
            self.stopped.append(time.time())
            _signal_group(self.pid, signal.SIGTERM)
            if not await set_within(grace_s, self.ended):
                log.warning("server_killed", server=self._server, pid=self.pid, grace_s=grace_s)
                self.stopped.append(time.time())
                _signal_group(self.pid, signal.SIGKILL)
        await self._await_group()
        self._close_output()
        self.pid = self._popen = None

    async def _await_group(self) -> None:
        """Wait for the process and its runners, but not for ever: one may be stuck in the kernel."""
        assert self.pid is not None
        deadline_s = time.monotonic() + _LEFTOVER_S
        while left := await asyncio.to_thread(_members, self.pid) if self.ended.is_set() else [self.pid]:
            if time.monotonic() > deadline_s:
                log.error("server_stuck", server=self._server, pids=left, remedy="look at dmesg, reboot the host")
                return
            await asyncio.sleep(_POLL_S)

    def line(self, line: str) -> None:
        """Learn from what the server says of its devices and its runner."""
        if "inference compute" in line:
            self._devices.append(line)
            self._device_seen.set()
        elif _NO_PARALLEL in line:
            self.one_slot = True
        elif _RUNNER_STARTS.search(line):
            self.loading_since_s = time.monotonic()
        elif _RUNNER_STARTED.search(line):
            self.loading_since_s = None

    async def sees(self, uuids: Iterable[str], timeout_s: float) -> bool | None:
        """Whether the server said in its log that it computes on these GPUs; call it after the server answers.

        True: it named every UUID beside the CUDA library. False: it found no GPU at all and would silently compute
        on the CPU until it is restarted. None: it used words we do not know.
        """
        await set_within(timeout_s, self._device_seen)
        text = "\n".join(line for line in self._devices if "library=CUDA" in line)
        if text and all(uuid in text for uuid in uuids):
            return True
        return False if self._devices and all("library=cpu" in line for line in self._devices) else None


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _members(group: int) -> list[int]:
    """Living processes of a process group; zombies hold no memory and may wait for a reaper for ever."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getpgid(pid) == group and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found
