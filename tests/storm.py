"""Carries out the plan of a storm on a daemon, for the tests and for ``scripts/chaos``."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import time
from collections import Counter, deque
from pathlib import Path
from typing import NamedTuple

import psutil
from daemon_support import Daemon, Document, wait_for
from storm_means import FrontedServer, SlowWriter, preempt
from storm_plan import Drop, Life, Plan, Strike
from storm_programs import Programs

from obatchd.errors import ControlError, DaemonDownError

_CALM_S = 1.0  # without an answer for so long, the next kill comes all the same
_PROBES_OF_A_LIFE = 3  # with more the daemon gives the probe up, as it should: a worker is killed instead
_TARGET_S = 5.0  # longest wait for a process that may be killed
_PREEMPTED_S = 20.0  # from SIGTERM to all processes to SIGKILL; Slurm waits 30 s
_INSTANT_S = 15.0  # longest wait for the daemon to come by the instant at which it dies
_END_S = 180.0  # longest time without an answer at the end
_OF_PROGRAMS = ("files.after_write", "batches.after_accept")  # where the daemon dies while a program calls it
_AHEAD = 150  # requests handed over before they are due, so that there is always something to do


class Sample(NamedTuple):
    """The daemon's main process at one moment of its last life; the segments of waiting jobs are not counted."""

    descriptors: int
    threads: int
    rss_bytes: int


class Storm:
    """One storm.

    Attributes:
        kills: what was killed, how often; ``daemon at INSTANT`` among them.
        missed: kills of the plan that could not be done.
        answered: drops whose submission was answered; the fate of the others is known by what is in the outbox.
        samples: of the daemon in its last life.
        seen: every process that belonged to it at some time.
        ports: every port that one of its servers listened on.
    """

    def __init__(self, d: Daemon, plan: Plan, front: FrontedServer | None = None) -> None:
        self.d = d
        self.plan = plan
        self.kills: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self.handed_over: list[Drop] = []
        self.unanswered: list[Drop] = []
        self.samples: list[Sample] = []
        self.seen: set[psutil.Process] = set()
        self.ports: set[int] = set()
        self.exit_code: int | None = None
        self._waiting = deque(plan.drops)
        self.programs = Programs(d, plan.batches)
        self._released = 0
        self._carried: list[Strike] = []
        self._probes = 0  # killed in this life
        self._front = front
        self._writer = SlowWriter()
        self._staging = d.root / "staged"
        self._staging.mkdir()

    def run(self) -> None:
        """The whole storm, until everything is answered and the daemon has ended."""
        for life in self.plan.lives:
            self._live(life)
        self._until_done()
        self._remember()
        self.samples.append(self._sample())
        self.exit_code = self.d.stop(timeout_s=60)

    # Lives.

    def _live(self, life: Life) -> None:
        self._probes = 0
        instant = "." in life.death
        process = self.d.launch(f"{life.death}:{life.count}" if instant else "")
        if life.death == "start":
            self._die_at_start(process, life.count)
            return
        if not self._wait_until_it_answers(process):
            self._carried += life.strikes
            self._count_death(life)
            return
        strikes, self._carried = [*self._carried, *life.strikes], []
        for number, strike in enumerate(strikes):
            self._hand_over(life)
            if not (self._wait_for_answers(strike.gap) and self._strike(strike)):
                self._carried = strikes[number:]  # it died at its instant before all of them were done
                break
            if not life.death:
                self.samples.append(self._sample())
        if life.death in ("answers", "preempted"):
            self._wait_for_answers(life.count)
        if instant:
            self._hand_over(life, at_least_one=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_INSTANT_S)
        if life.death:
            self._count_death(life)

    def _die_at_start(self, process: subprocess.Popen[bytes], lines: int) -> None:
        """Kill the daemon when it has logged so many lines: while it recovers, sweeps, starts servers …"""
        begin = self.d.log_file.stat().st_size
        self._wait(lambda: self._logged(begin) >= lines or process.poll() is not None, 5)
        self._kill_daemon()
        self.kills["daemon at its start"] += 1

    def _logged(self, begin: int) -> int:
        with open(self.d.log_file, "rb") as log:
            log.seek(begin)
            return log.read().count(b"\n")

    def _count_death(self, life: Life) -> None:
        process = self.d.process
        assert process is not None
        if life.death == "preempted":
            parts = self.d.parts()
            self.seen.update(parts)
            code = preempt(process, parts, _PREEMPTED_S)
            assert code == 0, f"told to stop with all of its processes, the daemon ended: {code}"
            self.kills["daemon and all of its processes by SIGTERM"] += 1
        elif "." not in life.death:
            self._kill_daemon()
            self.kills["daemon"] += 1
        elif process.poll() is None:
            self._kill_daemon()
            self.kills[f"daemon, never at {life.death}"] += 1
        else:
            assert process.returncode == -signal.SIGKILL, f"the daemon ended by itself: {process.returncode}"
            self.kills[f"daemon at {life.death}"] += 1

    def _kill_daemon(self) -> None:
        assert self.d.process is not None
        if self.d.process.poll() is None:
            self.seen.update(self.d.parts())
            self.d.process.kill()
        self.d.process.wait(10)
        assert self.d.process.returncode == -signal.SIGKILL, f"the daemon ended: {self.d.process.returncode}"

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> bool:
        """False if it died at its instant before."""
        answers = self._wait(lambda: process.poll() is not None or self._status() is not None, 60)
        assert answers, "the daemon does not answer"
        return process.poll() is None

    # Kills of parts.

    def _strike(self, strike: Strike) -> bool:
        """Kill a part, a server where there is none of that kind; False if the daemon is dead."""
        if strike.what == "front" and self._front is not None:
            self._front.turn()
            self.kills[strike.what] += 1
            return self._status() is not None
        deadline_s = time.monotonic() + _TARGET_S
        helped = False
        if strike.what == "probe":
            self._probes += 1
            if self._probes > _PROBES_OF_A_LIFE:
                strike = Strike("worker", strike.where, strike.gap)
        while (status := self._status()) is not None:
            pids = self._targets(strike, status)
            if pids and _kill(pids):
                self.kills[strike.what] += 1
                return True
            if not status["jobs"] and not helped:  # a server that has nothing to do since its last kill has no runner
                self._hand_over(Life([], ""), at_least_one=True)
                helped = True
            if time.monotonic() > deadline_s:
                if strike.what == "serve":
                    self.missed[strike.what] += 1
                    return True
                strike, deadline_s = Strike("serve", strike.where, 0), time.monotonic() + _TARGET_S
            time.sleep(0.02)
        return False

    def _targets(self, strike: Strike, status: Document) -> list[int]:
        parts = self.d.parts()
        self.seen.update(parts)
        servers = status["servers"]
        self.ports.update(int(server["url"].rpartition(":")[2]) for server in servers if server["pid"])
        place = int(strike.where * len(servers))
        chosen = [*servers[place:], *servers[:place]]  # the planned one, or the next that has such a process
        if strike.what == "worker":
            return [server["worker_pid"] for server in chosen if server["worker_pid"]][:1]
        serves = [server["pid"] for server in chosen if server["pid"]]
        if strike.what == "serve":
            return serves[:1]
        if strike.what in ("runner", "group"):
            found = [(serve, _children(serve)) for serve in serves]
            serve, runners = next(((serve, runners) for serve, runners in found if runners), (0, []))
            return runners if strike.what == "runner" else [serve, *runners] if serve else []
        if strike.what == "probe":
            return [status["gpus"]["pid"]] if status["gpus"]["pid"] else []
        [forkserver] = [p.pid for p in parts if _is_forkserver(p, self.d.pid)] or [0]
        if strike.what == "forkserver":
            return [forkserver] if forkserver else []
        others = {status["gpus"]["pid"], *(server["worker_pid"] for server in servers)}
        return [pid for pid in _children(forkserver) if pid not in others][:1] if forkserver else []

    # Drops.

    def _hand_over(self, life: Life, *, at_least_one: bool = False) -> None:
        """Hand over what is due: drops come as the kills do, some ahead."""
        done = sum(self.kills.values()) / max(1, self.plan.kills)
        due = self.plan.requests * done + _AHEAD
        share = len(self.plan.batches) * done
        self.programs.hand_over(len(self.programs.made) + 1 if life.death in _OF_PROGRAMS else math.ceil(share))
        submit = life.death.startswith("submit")
        while self._waiting and (at_least_one or self._released < due):
            at_least_one = False
            drop = self._waiting.popleft()
            self._released += len(drop.asked)
            self._drop(drop, submit=drop.submitted or submit)

    def _drop(self, drop: Drop, *, submit: bool) -> None:
        path = self._staging / drop.name
        if drop.slow and not submit and isinstance(drop.content, bytes):
            self._writer.write(self.d.inbox / drop.name, drop.content)
            self.handed_over.append(drop)
            return
        if isinstance(drop.content, bytes):
            path.write_bytes(drop.content)
        else:
            path.mkdir()
            for name, data in drop.content.items():
                (path / name).write_bytes(data)
        if not submit or drop.refused:
            os.rename(path, self.d.inbox / drop.name)
            self.handed_over.append(drop)
            return
        try:
            self.d.client.submit(path, {})
            self.handed_over.append(drop)
        except (ControlError, DaemonDownError):
            # Nobody was told that it is accepted: it may be or not, and is handed over again under another name.
            self.unanswered.append(drop)
            again = Drop(f"again-{drop.name}", drop.content, drop.asked)
            os.rename(path, self.d.inbox / again.name)
            self.handed_over.append(again)

    # Looking.

    def _status(self) -> Document | None:
        with contextlib.suppress(DaemonDownError, OSError):
            return self.d.status()
        return None

    def _wait(self, look: object, timeout_s: float) -> bool:
        assert callable(look)
        with contextlib.suppress(AssertionError):
            return bool(wait_for(look, timeout_s))
        return False

    def _wait_for_answers(self, gap: int) -> bool:
        """Wait for so many more answers, or until none came for a while; False if the daemon died."""
        first = last = -1
        moved_s = time.monotonic()
        while (status := self._status()) is not None:
            answers = sum(server["requests_done"] for server in status["servers"])
            if first < 0:
                first = answers
            if answers != last:
                last, moved_s = answers, time.monotonic()
            if answers - first >= gap or time.monotonic() - moved_s > _CALM_S:
                return True
            time.sleep(0.01)
        return False

    def _sample(self) -> Sample:
        process = psutil.Process(self.d.pid)
        descriptors = 0
        for path in Path(f"/proc/{self.d.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                descriptors += "/work/segments/" not in os.readlink(path)
        return Sample(descriptors, process.num_threads(), process.memory_info().rss)

    def _until_done(self) -> None:
        """Hand over the rest and wait until nothing is left to do."""
        while self._waiting:
            self._hand_over(Life([], ""), at_least_one=True)
        wait_for(self._has_made_all_batches, _END_S, "every batch is made")
        self._writer.join()
        if self._front is not None:
            self._front.clear()
        last, moved_s = "", time.monotonic()
        while time.monotonic() - moved_s < _END_S:
            status = self._status()
            assert status is not None, "the daemon ended by itself in the end"
            if not status["jobs"] and not any(path.name != "again" for path in self.d.inbox.iterdir()):
                return
            if (now := str((status["queue"], status["jobs"]))) != last:
                last, moved_s = now, time.monotonic()
            time.sleep(0.1)

    def _has_made_all_batches(self) -> bool:
        self.programs.hand_over(len(self.plan.batches))
        return not self.programs.left()

    def _remember(self) -> None:
        status = self.d.status()
        self._targets(Strike("worker", 0.0, 0), status)
        wait_for(lambda: all(s["state"] == "ready" for s in self.d.servers()), 60, "every server is ready again")


def _kill(pids: list[int]) -> bool:
    killed = False
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed = True
    return killed


def _children(pid: int) -> list[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children()]
    return []


def _is_forkserver(process: psutil.Process, daemon: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.ppid() == daemon and any("forkserver" in word for word in process.cmdline())
    return False
