"""What befalls one host in a storm over several: kills of its parts and cuts of its line, one after the other.

Each host has a lane of its own, and a thread, so that several are struck at a time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable

import psutil
from cluster_plan import Strike
from cluster_support import Fleet, Head, HostProcess
from cluster_verdict import Struck
from daemon_support import Document, wait_for

from obatchd.errors import DaemonDownError

BACK_S = 10.0  # a host is back so soon after its line healed
_STARTED_S = 30.0  # one that has to start first, on a busy machine
_NOTICED_S = 15.0
_STALL_S = 2.0
_CALM_S = 1.0  # without an answer for so long, the next strike comes all the same
_TARGET_S = 10.0  # the longest wait for a process that may be killed


class Lane:
    """One host and its line."""

    def __init__(self, fleet: Fleet, number: int, struck: Struck) -> None:
        self._head: Head = fleet.head
        self._host = fleet.hosts[number]
        self._line = fleet.lines[number]
        self._struck = struck

    def strike_all(self, strikes: Iterable[Strike]) -> None:
        """Each after as many more answers of the fleet as it says."""
        for strike in strikes:
            self._wait_for_answers(strike.gap)
            self._strike(strike)

    def _strike(self, strike: Strike) -> None:
        host, line = self._host, self._line
        match strike.what:
            case "host":
                host.kill()
                self._struck.restarts.update(f"{host.name}.gpu{number}" for number in range(host.gpus))
                host.launch()
                time_until_back("host", [host], self._struck, _STARTED_S)
            case "break":
                line.break_()
                self._noticed()
                line.heal()
                time_until_back("break", [host], self._struck)
            case "stall":
                line.cut()
                time.sleep(_STALL_S)
                line.heal()
                if host.state() != "here":
                    self._struck.broken(f"{host.name} was away after a cut of {_STALL_S:g} s")
            case "cut":
                line.cut()
                self._noticed()
                time.sleep(_STALL_S)
                line.heal()
                time_until_back("cut", [host], self._struck)
            case "freeze":
                host.freeze()
                self._noticed()
                host.thaw()
                time_until_back("freeze", [host], self._struck)
            case _:
                if not self._kill_part(strike):
                    self._struck.broken(f"a {strike.what} of {host.name} could not be killed: there was none")
                    return
        self._struck.hit(strike.what)

    def _noticed(self) -> None:
        _waited(lambda: self._host.state() != "here", _NOTICED_S, f"{self._host.name} is away", self._struck)

    def _kill_part(self, strike: Strike) -> bool:
        """Kill a worker, server or runner; False where there is none for a while."""
        deadline_s = time.monotonic() + _TARGET_S
        while time.monotonic() < deadline_s:
            servers = self._host.servers()
            place = int(strike.server * len(servers))
            for server in [*servers[place:], *servers[:place]]:
                if self._killed(strike.what, server):
                    return True
            time.sleep(0.05)
        return False

    def _killed(self, what: str, server: Document) -> bool:
        pid = server["worker_pid"] if what == "worker" else server["pid"]
        with contextlib.suppress(psutil.Error):
            if not pid:
                return False
            if what != "runner":
                psutil.Process(pid).kill()
                self._struck.restarts[server["id"]] += what == "serve"
                return True
            for runner in psutil.Process(pid).children():
                runner.kill()
                self._struck.reloads[server["id"]] += 1
                return True
        return False

    def _wait_for_answers(self, gap: int) -> None:
        """Wait for so many more answers, or until none came for a while."""
        first = last = -1
        moved_s = time.monotonic()
        while True:
            answers = sum(server["requests_done"] for server in self._head.servers())
            if answers != last:
                last, moved_s = answers, time.monotonic()
            first = answers if first < 0 else first
            if answers - first >= gap or time.monotonic() - moved_s > _CALM_S:
                return
            time.sleep(0.05)


def time_until_back(what: str, hosts: list[HostProcess], struck: Struck, limit_s: float = BACK_S) -> None:
    """Note how long these hosts take to be back; later than ``limit_s`` is a broken promise."""
    begun_s = time.monotonic()
    back = _waited(lambda: all(_is_back(host) for host in hosts), 60, f"back after {what}", struck)
    took_s = time.monotonic() - begun_s
    struck.was_back(what, took_s)
    if back and took_s > limit_s:
        names = ", ".join(host.name for host in hosts)
        struck.broken(f"{names} came back {took_s:.1f} s after {what}, and not within {limit_s:g} s")


def _is_back(host: HostProcess) -> bool:
    """Whether it is here, and every server of it can be given work."""
    with contextlib.suppress(DaemonDownError):
        ready = sum(server["state"] == "ready" for server in host.servers())
        return ready == host.gpus and host.state() == "here"
    return False


def _waited(look: Callable[[], bool], timeout_s: float, what: str, struck: Struck) -> bool:
    try:
        wait_for(look, timeout_s, what)
    except AssertionError as error:
        struck.broken(str(error))
        return False
    return True
