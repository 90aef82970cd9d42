"""A head whose hosts a Ray on this machine starts: what tests look at there, and how they count the loads of models."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
from cluster_support import Head
from daemon_support import Document, wait_for
from ray_here import RayHere

GPUS = 2  # of each node
START_S = 180.0  # a first start; a machine that is shared takes its time
BACK_S = 30.0  # hosts are back so soon after their raylets are
_LOADED = re.compile(rb" started in [0-9.]+ seconds")  # as Ollama tells of a runner with its model
_TOLD = re.compile(r" event=profile_loaded .*?\bserver=(\S+)")
_SECRET = 43  # letters of a code and of a credential
_LIKE_SECRETS = re.compile(rb"[A-Za-z0-9_-]{%d,}" % _SECRET)


def ray_head(make_head: Callable[..., Head], ray: RayHere, simulator: Document) -> Head:
    """A head that is not started yet, with ``engine = "ray"``."""
    return make_head({"cluster": {"engine": "ray", "address": ray.address}, "servers": {"slots": 4}}, simulator)


def let_go(head: Head) -> None:
    """Start the head without an engine, until no actor of it is left."""
    if head.process is not None and head.process.poll() is None:
        head.stop()
    config = head.config_file.read_text().replace('engine = "ray"', 'engine = "none"')
    head.config_file.write_text(config)
    head.start()
    wait_for(lambda: not (head.spool / "work" / "cluster" / "ray.json").exists(), 60, "no actor is left")
    head.stop()


def launchers(head: Head) -> list[psutil.Process]:
    found = []
    for part in head.parts():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "obatchd.cluster.launch_ray" in part.cmdline():
                found.append(part)
    return found


def engine(head: Head) -> Document:
    found: Document = head.status()["engine"]
    return found


def host_pids(ray: RayHere) -> list[int | None]:
    hosts = [ray.host(number) for number in ray.numbers]
    return [host.pid if host is not None else None for host in hosts]


@contextlib.contextmanager
def frozen(*processes: psutil.Process | None) -> Iterator[None]:
    """These stand still, as seen from elsewhere: neither is anything heard of them, nor are they gone."""
    stopped = [process for process in processes if process is not None]
    assert len(stopped) == len(processes)
    try:
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        yield
    finally:
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


def back_s(head: Head, ray: RayHere) -> float:
    """Wait until every server is READY: how many seconds after the latest ``ray start`` that was."""
    head.has_ready(len(ray.numbers) * GPUS, 4 * BACK_S)
    return time.monotonic() - ray.started_s


# Loads of models.


def servers_of(ray: RayHere, *numbers: int) -> list[str]:
    """Ids of the servers of these nodes; of all, where none is named."""
    return [f"{ray.name(number)}.gpu{gpu}" for number in numbers or ray.numbers for gpu in range(GPUS)]


class Loads:
    """Loads of models by a Ray's hosts since this was made: before the head of those hosts is started."""

    def __init__(self, head: Head, ray: RayHere) -> None:
        self._head = head
        self._ray = ray
        self._before = _loads(ray)
        self._due = Counter[str]()

    @property
    def count(self) -> int:
        return self._due.total()

    def are(self, *servers: str) -> None:
        """Each of these has loaded its model once more than at the last look, and no other server has; waits for it.

        The servers' own logs say so, and that of the head.
        """
        self._due.update(servers)
        with contextlib.suppress(AssertionError):
            wait_for(lambda: self._now() == (self._due, self._due), 60)
        loaded, told = self._now()
        assert loaded == self._due
        assert told == self._due

    def _now(self) -> tuple[Counter[str], Counter[str]]:
        told = (server for line in self._head.events("profile_loaded") for server in _TOLD.findall(line))
        return _loads(self._ray) - self._before, Counter(told)


def _loads(ray: RayHere) -> Counter[str]:
    """Of each server in all its lives."""
    found = Counter[str]()
    for number in ray.numbers:
        for log in ray.directory(number).rglob("logs/*.log*"):
            found[f"{ray.name(number)}.{log.name.partition('.log')[0]}"] += len(_LOADED.findall(log.read_bytes()))
    return found


# Secrets.


def secret_hashes(head: Head) -> set[str]:
    """SHA-256 of every code that there was and of every credential that there is, as the head keeps them for a day."""
    kept = json.loads((head.spool / "work" / "cluster" / "hosts.json").read_bytes())
    return {one["sha256"] for one in [*kept["codes"], *kept["enrolments"], *kept["hosts"].values()]}


def has_secret(content: bytes, hashes: set[str]) -> bool:
    """Whether a secret with one of these hashes stands there, whatever is around it."""
    for run in _LIKE_SECRETS.findall(content):
        for start in range(len(run) - _SECRET + 1):
            if hashlib.sha256(run[start : start + _SECRET]).hexdigest() in hashes:
                return True
    return False


def places_with_secrets(hashes: set[str], directories: Iterable[Path], *, but: Iterable[Path]) -> set[str]:
    """Where one can be read: arguments and environment of every process, and files of these directories but some."""
    found, spared = set(), set(but)
    for process in psutil.process_iter():
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):  # it has ended
                if has_secret(Path(f"/proc/{process.pid}/{name}").read_bytes(), hashes):
                    found.add(f"{name} of {process.pid}")
    for directory in directories:
        for file in directory.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # Ray turns its logs
                if file.is_file() and file not in spared and has_secret(file.read_bytes(), hashes):
                    found.add(str(file))
    return found
