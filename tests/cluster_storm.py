"""Carries out the plan of a storm over several hosts, and judges what it left: for the tests and ``scripts/chaos``."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable

import psutil
from cluster_plan import Drop, Plan, Strike
from cluster_support import Fleet, HostProcess
from daemon_support import Document, ask_server, wait_for

from obatchd.errors import DaemonDownError

CONFIG: Document = {
    "log_level": "info",
    "cluster": {"lease_s": 3600},
    "servers": {
        "slots": 4, "health_s": 0.5, "stagger_s": 0, "backoff_max_s": 0.2, "starts_limit": 1_000_000, "stop_grace_s": 3,
    },
    "dispatch": {
        "max_attempts": 1000, "poison_crashes": 1000, "strikes": 1_000_000, "stall_s": 5, "connect_timeout_s": 5,
    },
    "watchdog": {"repeats": 1_000_000, "slow_factor": 0},
}  # fmt: skip
SIMULATOR: Document = {"service_s": {"kind": "uniform", "low": 0.03, "high": 0.3}, "load_s": 0.05}
BACK_S = 10.0  # a host is back so soon after its line healed
_STARTED_S = 30.0  # one that has to start first, on a busy machine
_NOTICED_S = 15.0
_STALL_S = 2.0
_CALM_S = 1.0  # without an answer for so long, the next strike comes all the same
_TARGET_S = 3.0  # the longest wait for a process that may be killed
_AHEAD = 100  # requests handed over before they are due
_END_S = 120.0  # the longest time without an answer at the end


class ClusterStorm:
    """One storm.

    Attributes:
        kills: what was struck, how often.
        back_s: how long hosts took to be back, by what had been done to them; from the healing on.
        violations: promises that were broken.
    """

    def __init__(self, fleet: Fleet, plan: Plan) -> None:
        self.fleet = fleet
        self.plan = plan
        self.kills: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self.back_s: dict[str, list[float]] = defaultdict(list)
        self.violations: list[str] = []
        self.loads: Counter[tuple[str, int]] = Counter()  # of a server's process, as it told last
        self._runners_killed: Counter[tuple[str, int]] = Counter()
        self._waiting: deque[Drop] = deque(plan.drops)
        self._handed_over: list[Drop] = []

    def run(self) -> None:
        """All of it, until every request is answered and judged."""
        for strike in self.plan.strikes:
            self._hand_over()
            self._wait_for_answers(strike.gap)
            self._strike(strike)
        while self._waiting:
            self._drop()
        self._until_done()
        self._look()
        self._judge()

    # --- strikes ----------------------------------------------------------------------------------------------------

    def _strike(self, strike: Strike) -> None:
        number = int(strike.host * len(self.fleet.hosts))
        host, line = self.fleet.hosts[number], self.fleet.lines[number]
        self._look()
        match strike.what:
            case "head":
                self.fleet.head.kill()
                self.fleet.head.start()
                self._time_until_back("head", self.fleet.hosts)
            case "host":
                host.kill()
                host.launch()
                self._time_until_back("host", [host], _STARTED_S)
            case "break":
                line.break_()
                self._wait(lambda: host.state() != "here", _NOTICED_S, f"{host.name} is away")
                line.heal()
                self._time_until_back("break", [host])
            case "stall":
                line.cut()
                self._work_for(_STALL_S)
                line.heal()
            case "cut":
                line.cut()
                self._wait(lambda: host.state() != "here", _NOTICED_S, f"{host.name} is away")
                self._work_for(_STALL_S)
                line.heal()
                self._time_until_back("cut", [host])
            case "freeze":
                host.freeze()
                self._wait(lambda: host.state() != "here", _NOTICED_S, f"{host.name} is away")
                host.thaw()
                self._time_until_back("freeze", [host])
            case _:
                if not self._kill_part(strike, host):
                    self.missed[strike.what] += 1
                    return
        self.kills[strike.what] += 1

    def _kill_part(self, strike: Strike, host: HostProcess) -> bool:
        """Kill a worker, server or runner of a host; False where it has none for a while."""
        deadline_s = time.monotonic() + _TARGET_S
        while time.monotonic() < deadline_s:
            servers = self._servers(host)
            place = int(strike.server * len(servers))
            for server in [*servers[place:], *servers[:place]]:
                if self._killed(strike.what, server):
                    return True
            if not self._waiting and not self._busy():
                break
            time.sleep(0.05)
        return False

    def _killed(self, what: str, server: Document) -> bool:
        pid = server["worker_pid"] if what == "worker" else server["pid"]
        with contextlib.suppress(psutil.Error):
            if not pid:
                return False
            if what != "runner":
                psutil.Process(pid).kill()
                return True
            for runner in psutil.Process(pid).children():
                self._runners_killed[server["id"], pid] += 1
                runner.kill()
                return True
        return False

    def _time_until_back(self, what: str, hosts: list[HostProcess], limit_s: float = BACK_S) -> None:
        begun_s = time.monotonic()
        back = self._wait(lambda: all(host.state() == "here" for host in hosts), 60, f"back after {what}")
        took_s = time.monotonic() - begun_s
        self.back_s[what].append(took_s)
        if back and took_s > limit_s:
            names = ", ".join(host.name for host in hosts)
            self.violations.append(f"{names} came back {took_s:.1f} s after {what}, and not within {limit_s:g} s")

    # --- looking ----------------------------------------------------------------------------------------------------

    def _status(self) -> Document | None:
        with contextlib.suppress(DaemonDownError, OSError):
            return self.fleet.head.status()
        return None

    def _servers(self, host: HostProcess) -> list[Document]:
        status = self._status()
        return [s for s in status["servers"] if s["id"].startswith(f"{host.name}.")] if status else []

    def _busy(self) -> bool:
        status = self._status()
        return status is None or bool(status["jobs"])

    def _wait(self, look: Callable[[], bool], timeout_s: float, what: str) -> bool:
        try:
            wait_for(look, timeout_s, what)
        except AssertionError as error:
            self.violations.append(str(error))
            return False
        return True

    def _work_for(self, seconds: float) -> None:
        """Let time pass while the rest of the fleet works."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self._hand_over()
            time.sleep(0.1)

    def _wait_for_answers(self, gap: int) -> None:
        """Wait for so many more answers, or until none came for a while."""
        first = last = -1
        moved_s = time.monotonic()
        while (status := self._status()) is not None:
            answers = sum(server["requests_done"] for server in status["servers"])
            if answers != last:
                last, moved_s = answers, time.monotonic()
            first = answers if first < 0 else first
            if answers - first >= gap or time.monotonic() - moved_s > _CALM_S:
                return
            time.sleep(0.02)

    def _look(self) -> None:
        """How often each process of a server has loaded a model so far."""
        for server in (self._status() or {"servers": []})["servers"]:
            if server["pid"]:
                with contextlib.suppress(OSError):
                    loads = ask_server(server["url"], "/simulator/state")["loads"]
                    self.loads[server["id"], server["pid"]] = len(loads)

    # --- drops ------------------------------------------------------------------------------------------------------

    def _hand_over(self) -> None:
        """Hand over what is due: drops come as the strikes do, some ahead."""
        done = (sum(self.kills.values()) + sum(self.missed.values())) / max(1, len(self.plan.strikes))
        due = self.plan.requests * done + _AHEAD
        while self._waiting and sum(len(drop.asked) for drop in self._handed_over) < due:
            self._drop()

    def _drop(self) -> None:
        drop = self._waiting.popleft()
        self.fleet.head.drop(f"{drop.name}.jsonl", drop.asked)
        self._handed_over.append(drop)

    def _until_done(self) -> None:
        last, moved_s = "", time.monotonic()
        while time.monotonic() - moved_s < _END_S:
            status = self._status()
            if status and not status["jobs"] and not any(self.fleet.head.inbox.glob("d*.jsonl")):
                return
            if status and (now := str((status["queue"], status["jobs"]))) != last:
                last, moved_s = now, time.monotonic()
            time.sleep(0.1)
        self.violations.append(f"nothing was answered for {_END_S:g} s at the end: {last[:500]}")

    # --- verdict ----------------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        for drop in self.plan.drops:
            try:
                self.fleet.head.done(f"{drop.name}.jsonl", 5).check(drop.asked)
            except (AssertionError, KeyError, OSError) as error:
                self.violations.append(f"{drop.name}: {type(error).__name__}: {str(error)[:300]}")
        for (server, pid), loads in self.loads.items():
            reasons = 1 + self._runners_killed[server, pid]
            if loads > reasons:
                self.violations.append(f"{server} (pid {pid}) loaded a model {loads} times, with {reasons} reasons")

    def rows(self) -> list[tuple[str, str]]:
        """What happened, as a table."""
        found = [(f"strikes: {what}", str(count)) for what, count in sorted(self.kills.items())]
        found += [(f"could not be struck: {what}", str(count)) for what, count in sorted(self.missed.items())]
        for what, times in sorted(self.back_s.items()):
            middle = sorted(times)[len(times) // 2]
            found.append((f"back after {what}", f"median {middle:.1f} s, at most {max(times):.1f} s"))
        found.append(("loads of models", f"{sum(self.loads.values())} in {len(self.loads)} processes of servers"))
        found.append(("runners killed", str(sum(self._runners_killed.values()))))
        return [*found, ("requests", f"{self.plan.requests} in {len(self.plan.drops)} drops")]
