"""The process in front of a daemon that is the first of its container. Here it adopts as a subreaper (prctl(2))."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest
from daemon_support import wait_for

_FRONT = """
import ctypes, os, signal, sys, time
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
from obatchd.cli import first_process
first_process.stand_before()
"""
_ORPHANS = """
for _ in range(10):
    if os.fork() == 0:
        if os.fork():
            os._exit(0)  # the parent of the next goes first
        os._exit(5)
    os.wait()
print("left", flush=True)
sys.stdin.read()
sys.exit(7)
"""


def front(body: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", _FRONT + body], stdin=pipe, stdout=pipe, text=True)


def test_adopted_processes_are_reaped_and_the_exit_code_is_the_daemons() -> None:
    with front(_ORPHANS) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "left\n"
        adopter = psutil.Process(process.pid)
        wait_for(lambda: len(adopter.children()) == 1, 10, "only the daemon is left")
        process.stdin.close()
        assert process.wait(10) == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_passed_on(number: signal.Signals) -> None:
    body = (
        "signal.signal(int(sys.stdin.readline()), lambda number, frame: os._exit(number))\n"
        "print('ready', flush=True)\n"
        "for _ in range(600): time.sleep(0.1)\n"  # a signal that comes just before a sleep does not end it
    )
    with front(body) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdin.write(f"{number:d}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(10) == number


def test_a_daemon_that_is_killed_is_said_as_a_shell_says_it() -> None:
    with front("os.kill(os.getpid(), signal.SIGKILL)\n") as process:
        assert process.wait(10) == 128 + signal.SIGKILL
