"""Runs ``obatchd host`` on a node of an engine: the body of Ray's actor there, which itself needs no Ray.

The actor holds the node's GPUs in Ray; the host is a process of its own. It gets SIGUSR1 when the actor dies, whatever
the cause: the GPUs may be somebody else's then, so it lets its work end and goes. A host that ends well has been sent
away, or its head is gone for good; the actor ends with it, which gives the GPUs back to Ray.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from obatchd.cluster.launching import State

_PR_SET_PDEATHSIG = 1  # prctl(2)
_PAUSES_S = (1.0, 2.0, 5.0, 10.0)  # between two starts of a host that ends again and again
_LONG_LIFE_S = 60.0  # after so long the pauses begin anew
_LOG_BYTES = 10 * 2**20
_LOOK_S = 1.0
_WELL_S = 10.0  # a host that lives so long has no trouble
_HURRY_S = 0.2
_DRAIN_S, _END_S = 20.0, 30.0  # then it is told to hurry; then it is killed
_LAST_BYTES = 2000  # of the log, in which the reason of an end stands
# Of the engine, not of the host: its secrets, and the one thread that Ray allows its actors.
_NOT_PASSED_ON = ("RAY_", "OMP_NUM_THREADS")
_PROGRAM = "from obatchd.cli.obatchd import main; main()"  # as its script has it
_libc = ctypes.CDLL(None)


def directory_of(head: str, name: str, environment: dict[str, str] | None = None) -> Path:
    """The directory of the host ``name`` on this node, the same whenever it is started again.

    ``OBATCH_HOSTS_DIR`` in the environment of the raylet names its parent, else it is in the user's state directory.
    """
    variables = os.environ if environment is None else environment
    if base := variables.get("OBATCH_HOSTS_DIR"):
        return Path(base) / name
    state = variables.get("XDG_STATE_HOME") or Path(variables.get("HOME", "/")) / ".local" / "state"
    return Path(state) / "obatch-hosts" / head[:8] / name


def program() -> list[str]:
    """``obatchd`` of the Python that Ray uses here."""
    script = Path(sys.executable).with_name("obatchd")
    return [str(script)] if script.exists() else [sys.executable, "-c", _PROGRAM]


class NodeAgent:
    """Keeps one host running, from the first code that it is given on. Its methods are called by the launcher."""

    def __init__(self, head: str, name: str, command: Sequence[str] = ()) -> None:
        self._name = name
        self._command = list(command) or program()
        self._directory = directory_of(head, name)
        self._credential = self._directory / "credential"
        self._process: subprocess.Popen[bytes] | None = None
        self._reason = ""  # of the latest end
        self._link = ""  # with a code that is not used yet
        self._leaving = False
        self._woken = threading.Event()
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # The kernel sends the signal of a parent's death when the thread ends that started the child: this one never
        # does, while Ray may have any thread carry out a call.
        threading.Thread(target=self._keep, name="host", daemon=True).start()

    def look(self) -> tuple[State, str, bool]:
        """State of the host, why it is not well, and whether it needs a code."""
        if self._leaving:
            return ("leaving" if self._runs else "none"), "Ray is about to take its node away", False
        needs = not self._runs and not self._link and not self._credential.exists()
        return ("running" if self._runs else "starting"), self._reason, needs

    def enrol(self, link: str) -> None:
        """Take a link with a one-use code, and start the host anew with it; it reaches that one through a pipe, and is
        written nowhere."""
        self._link = link
        self._signal(signal.SIGTERM)
        self._woken.set()

    def leave(self) -> None:
        """Have the host give back its work and end; it is not started again."""
        if not self._leaving:
            self._leaving = True
            self._woken.set()
            self._signal(signal.SIGUSR1)

    def stop(self) -> None:
        """End the host, with all its servers; returns when it has ended."""
        self._leaving = True
        self._woken.set()
        began_s, hurried = time.monotonic(), False
        self._signal(signal.SIGTERM)
        while self._runs:
            lasted_s = time.monotonic() - began_s
            if lasted_s > _END_S:
                self._signal(signal.SIGKILL)
                return
            if lasted_s > _DRAIN_S and not hurried:
                hurried = True
                self._signal(signal.SIGTERM)
            time.sleep(0.05)

    @property
    def _runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    # The thread.

    def _keep(self) -> None:
        ends = 0
        while not self._leaving:
            if not self._link and not self._credential.exists():
                self._woken.wait()
                self._woken.clear()
                continue
            hurry_predecessor(self._directory / ".lock")
            began_s = time.monotonic()
            try:
                code = self._run()
            except OSError as error:
                code, self._reason = -1, f"obatchd host cannot be started: {error}"
            lived_s = time.monotonic() - began_s
            if code == 0 and not self._link and (self._leaving or lived_s > _WELL_S):
                os._exit(0)
            ends = 0 if lived_s > _LONG_LIFE_S else ends + 1
            self._woken.wait(0 if self._link else _PAUSES_S[min(ends, len(_PAUSES_S)) - 1])
            self._woken.clear()

    def _run(self) -> int:
        """One life of the host; its exit code."""
        link, self._link = self._link, ""
        log = self._directory / "log"
        process = self._process = self._start(link, log)
        if self._leaving:  # that was said while it was started
            self._signal(signal.SIGUSR1)
        began_s = time.monotonic()
        while (code := _waited(process)) is None:
            if time.monotonic() - began_s > _WELL_S:
                self._reason = ""
            _cut(log)
        self._reason = f"obatchd host {_ended(code)}: {_last_words(log)}"
        return code

    def _start(self, link: str, log: Path) -> subprocess.Popen[bytes]:
        command = [*self._command, "host", "--dir", str(self._directory), "--name", self._name]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(_NOT_PASSED_ON)}
        environment["OBATCH_HOST_ALLOCATION"] = f"Ray's node {self._name}"
        reading = -1
        if link:
            reading, writing = os.pipe()
            os.write(writing, link.encode())
            os.close(writing)
            command += ["--enrol", f"fd:{reading}"]
        actor = os.getpid()
        try:
            with open(log, "ab") as output:
                return subprocess.Popen(
                    command, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    start_new_session=True, pass_fds=[reading] if link else (),
                    preexec_fn=lambda: _end_with(actor),
                )  # fmt: skip
        finally:
            if link:
                os.close(reading)


def hurry_predecessor(lock: Path) -> None:
    """Have the host of an actor that died end at once, where it is still there: its GPUs are this actor's now."""
    with contextlib.suppress(OSError, ValueError), open(lock, "rb") as file:
        holder = int(file.read(32))
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            for _ in range(2):  # the first one asks it to end, a second one not to wait for running answers
                os.kill(holder, signal.SIGUSR1)
                time.sleep(_HURRY_S)


def _waited(process: subprocess.Popen[bytes]) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(_LOOK_S)
    return None


def _end_with(parent: int) -> None:
    """In the child: have the kernel tell of the parent's death, which may have happened already."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
    if os.getppid() != parent:
        os._exit(1)


def _ended(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _last_words(log: Path) -> str:
    """The last line of a log."""
    with contextlib.suppress(OSError), open(log, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")
    return "it said nothing"


def _cut(log: Path) -> None:
    """Keep a log short. The host goes on writing to the same file, at its end."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > _LOG_BYTES:
            shutil.copyfile(log, log.with_suffix(".1"))
            os.truncate(log, 0)
