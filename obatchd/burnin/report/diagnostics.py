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

from obatchd.documents.burnin.report import ToolOutcome

_KILLED_S = 5.0
_FIRST_USER = 1000  # uids of people begin here
_PROCESS_NAME = re.compile(r"<process_name>([^<]*)</process_name>")
_HOME = re.compile(r"/home/[^/\s\"'<>]+")
_OF_THE_DRIVER = re.compile(
    r"NVRM|nvidia|nouveau|pcieport|AER:|PCIe Bus Error|EDAC|mce:|Hardware Error|thermal|Linux version", re.IGNORECASE
)
_MOST_OUTPUT_BYTES = 64 * 1024**2


class Ran(ToolOutcome):
    """The outcome of one tool, and its output."""

    output: bytes = b""
    overdue: bool = False


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
    program, line = shutil.which(command[0]), " ".join(command)
    if program is None:
        return Ran(name, line, f"not installed: there is no {command[0]} on PATH")
    if as_root and os.geteuid() != 0:
        return Ran(name, line, f"needs root: run  sudo {line}  and send its output too")
    began_s = time.monotonic()
    try:
        process = subprocess.Popen(
            [program, *command[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, cwd=cwd, env={**os.environ, **(environment or {})},
        )  # fmt: skip
    except OSError as error:
        return Ran(name, line, f"cannot be started: {error.strerror}")
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output, outcome = b"", "cannot be killed: the driver hangs"
        with contextlib.suppress(subprocess.TimeoutExpired):
            output, _ = process.communicate(timeout=_KILLED_S)
            outcome = "was killed"
        outcome = f"did not end within {limit_s:g} s and {outcome}"
        return Ran(name, line, outcome, output[:_MOST_OUTPUT_BYTES], overdue=True)
    took_s = time.monotonic() - began_s
    return Ran(name, line, f"exit code {process.returncode} after {took_s:.0f} s", output[:_MOST_OUTPUT_BYTES])


def kernel_log(since_s: float, until_s: float) -> Ran:
    """Lines of the kernel about the driver, the PCIe bus and the hardware in a time; nothing about other programs."""
    since, until = (time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s)) for at_s in (since_s, until_s))
    command = ["journalctl", "-k", "-o", "short-iso", "--no-pager", "--since", since, "--until", until]
    ran = run("kernel log", command, 60)
    if not ran.outcome.startswith("exit code 0") or not ran.output.strip() or b"No entries" in ran.output:
        ran = run("kernel log", ["dmesg", "--time-format", "iso"], 30)
        ran.outcome += " (ring buffer, all times)"
    lines = ran.output.decode("utf-8", "replace").splitlines()
    ran.output = "".join(f"{line}\n" for line in lines if _OF_THE_DRIVER.search(line)).encode()
    return ran


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
