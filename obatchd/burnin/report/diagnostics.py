"""Runs the vendor's tools for the bundle. Any of them may hang in the driver, so none is waited for without a limit."""

from __future__ import annotations

import contextlib
import gzip
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from obatchd.documents.burnin import ToolOutcome

_KILLED_S = 5.0
_FIRST_USER = 1000  # uids of people begin here
_PROCESS_NAME = re.compile(r"<process_name>([^<]*)</process_name>")
_HOME = re.compile(r"/home/[^/\s\"'<>]+")
_OF_THE_DRIVER = re.compile(
    r"NVRM|nvidia|nouveau|pcieport|AER:|PCIe Bus Error|EDAC|mce:|Hardware Error|thermal|Linux version", re.IGNORECASE
)
_MOST_OUTPUT_BYTES = 64 * 1024**2


class Ran(NamedTuple):
    """The outcome of one tool."""

    name: str
    command: Sequence[str]
    outcome: str  # in words
    output: bytes
    overdue: bool = False

    def document(self) -> ToolOutcome:
        return ToolOutcome(self.name, " ".join(self.command), self.outcome)


def run(
    name: str,
    command: Sequence[str],
    limit_s: float,
    *,
    as_root: bool = False,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ran:
    """Run a tool if it is here and we may, for ``limit_s`` at most; a process that cannot be killed is left behind."""
    program = shutil.which(command[0])
    if program is None:
        return Ran(name, command, f"not installed: there is no {command[0]} on PATH", b"")
    if as_root and os.geteuid() != 0:
        return Ran(name, command, f"needs root: run  sudo {' '.join(command)}  and send its output too", b"")
    began_s = time.monotonic()
    try:
        process = subprocess.Popen(
            [program, *command[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, cwd=cwd, env={**os.environ, **(environment or {})},
        )  # fmt: skip
    except OSError as error:
        return Ran(name, command, f"cannot be started: {error.strerror}", b"")
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            output, _ = process.communicate(timeout=_KILLED_S)
            output = output[:_MOST_OUTPUT_BYTES]
            return Ran(name, command, f"did not end within {limit_s:g} s and was killed", output, overdue=True)
        outcome = f"did not end within {limit_s:g} s and cannot be killed: the driver hangs"
        return Ran(name, command, outcome, b"", overdue=True)
    took_s = time.monotonic() - began_s
    return Ran(name, command, f"exit code {process.returncode} after {took_s:.0f} s", output[:_MOST_OUTPUT_BYTES])


def kernel_log(since_s: float, until_s: float) -> Ran:
    """Lines of the kernel about the driver, the PCIe bus and the hardware in a time; nothing about other programs."""

    def moment(at_s: float) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))

    ran = run(
        "kernel log",
        ["journalctl", "-k", "-o", "short-iso", "--no-pager", "--since", moment(since_s), "--until", moment(until_s)],
        60,
    )
    if ran.outcome.startswith("exit code 0") and ran.output.strip() and b"No entries" not in ran.output:
        return ran._replace(output=_about_the_driver(ran.output))
    ring = run("kernel log", ["dmesg", "--time-format", "iso"], 30)
    return ring._replace(output=_about_the_driver(ring.output), outcome=f"{ring.outcome} (ring buffer, all times)")


def _about_the_driver(text: bytes) -> bytes:
    lines = text.decode("utf-8", "replace").splitlines()
    return "".join(f"{line}\n" for line in lines if _OF_THE_DRIVER.search(line)).encode()


class Scrubber:
    """Takes the names of people out of the output of tools: user names, home directories, paths of programs."""

    def __init__(self, names: Sequence[str] | None = None) -> None:
        people = names if names is not None else [u.pw_name for u in pwd.getpwall() if u.pw_uid >= _FIRST_USER]
        known = sorted(
            {re.escape(name) for name in people if len(name) > 1 and name != "nobody"}, key=len, reverse=True
        )
        self._people = re.compile(rf"(?<![\w-])(?:{'|'.join(known)})(?![\w-])") if known else None

    def text(self, text: str) -> str:
        text = _PROCESS_NAME.sub(lambda found: f"<process_name>{found[1].rpartition('/')[2]}</process_name>", text)
        text = _HOME.sub("/home/user", text)
        return self._people.sub("user", text) if self._people else text

    def data(self, data: bytes) -> bytes:
        """The same for bytes, which may be packed by gzip."""
        if data[:2] == b"\x1f\x8b":
            with contextlib.suppress(OSError, EOFError):
                return gzip.compress(self.data(gzip.decompress(data)))
            return b""  # a report that was cut short cannot be looked through, so it is not passed on
        return self.text(data.decode("utf-8", "replace")).encode()
