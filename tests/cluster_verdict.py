"""What has to be true after a storm over several hosts: every request once and rightly, no load without a reason."""

from __future__ import annotations

import contextlib
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import attrs
from cluster_plan import Plan
from cluster_support import Fleet
from daemon_support import Job, wait_for

_STARTED = re.compile(r"simulated Ollama: no model runs here")
_LOADS = re.compile(r'cmd="simulated runner --model')
_NEXT = re.compile(f'({_LOADS.pattern}|{_STARTED.pattern}|msg="loaded runners")')
_GONE = "| 499 |"  # the one that asked closed its connection
CONTROL = 'old=ready new=backoff reason="after a crash it does not answer one token'
_END_S = 10.0  # a process that lost its parent may take that long to be gone
# Ollama gives up a load when the one that wanted it has gone, and these end it or its connection.
_CUT_SHORT = ("head", "worker", "break", "cut", "freeze")
# What is struck, by the word that the last line has for it.
_VICTIMS = {
    "head": "heads", "host": "hosts", "worker": "workers", "serve": "servers", "runner": "runners",
    "break": "lines broken", "stall": "lines cut for 2 s", "cut": "lines cut until noticed", "freeze": "hosts frozen",
}  # fmt: skip


@attrs.define(eq=False)
class Struck:
    """What a storm did, and how the fleet bore it. Several threads write.

    Attributes:
        kills: what was struck, how often.
        restarts: reasons for another process of a server, by its id.
        reloads: reasons for another load in the same process, by its server's id.
        back_s: how long hosts took to be back, by what had been done to them; from the healing on.
        violations: promises that were broken.
        answered: requests with one right answer.
    """

    kills: Counter[str] = attrs.field(factory=Counter, init=False)
    restarts: Counter[str] = attrs.field(factory=Counter, init=False)
    reloads: Counter[str] = attrs.field(factory=Counter, init=False)
    back_s: dict[str, list[float]] = attrs.field(factory=dict, init=False)
    violations: list[str] = attrs.field(factory=list, init=False)
    answered: int = attrs.field(default=0, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def hit(self, what: str) -> None:
        with self._lock:
            self.kills[what] += 1

    def was_back(self, what: str, took_s: float) -> None:
        with self._lock:
            self.back_s.setdefault(what, []).append(took_s)

    def broken(self, promise: str) -> None:
        """Told at once: a long storm may be looked at before it ends."""
        self.violations.append(promise)
        print(f"VIOLATION: {promise}", flush=True)


def judge(fleet: Fleet, plan: Plan, struck: Struck) -> Iterator[str]:
    """Every promise that was broken, once the head and its hosts have ended."""
    yield from _requests(fleet, plan, struck)
    yield from _loads(fleet, struck)
    for host in fleet.hosts:
        with contextlib.suppress(AssertionError):
            wait_for(lambda host=host: not host.left(), _END_S)
        yield from (f"process {left.pid} of {host.name} is left" for left in host.left())


def _requests(fleet: Fleet, plan: Plan, struck: Struck) -> Iterator[str]:
    """Each drop is one job, and nothing else is in the spool."""
    head = fleet.head
    jobs: dict[str, list[Path]] = defaultdict(list)
    for path in head.outbox.iterdir():
        jobs[path.name.partition(".")[0]].append(path)
    for drop in plan.drops:
        found = jobs.pop(drop.name, [])
        if len(found) != 1:
            yield f"{drop.name} has {len(found)} jobs in the outbox"
            continue
        try:
            Job(found[0]).check(drop.asked)
        except (AssertionError, KeyError, OSError, ValueError) as error:
            yield f"{drop.name}: {type(error).__name__}: {str(error)[:300]}"
        else:
            struck.answered += len(drop.asked)
    refused = (path for path in (head.spool / "failed").rglob("*") if path.is_file())
    yield from (f"{path} is nobody's" for path in chain(*jobs.values(), head.inbox.iterdir(), refused))


class Counted(NamedTuple):
    """How often a stand-in server was started and began to load a model, as it wrote down itself.

    ``given_up``: loads that did not end since the one that had asked was gone; ``controls``: how often its host ended
    it because its runner was killed once more while it was asked for one token after a crash.
    """

    server: str
    starts: int
    loads: int
    given_up: int
    controls: int

    def most_starts(self, struck: Struck) -> int:
        return 1 + struck.restarts[self.server] + min(self.controls, struck.reloads[self.server])

    def most_loads(self, struck: Struck) -> int:
        """A load that was given up begins anew: no model that was loaded is loaded again."""
        given_up = min(self.given_up, sum(struck.kills[what] for what in _CUT_SHORT))
        return self.starts + struck.reloads[self.server] + given_up


def _loads(fleet: Fleet, struck: Struck) -> Iterator[str]:
    """A server has one process, and one more for each kill of it or its host; a process loads its model once, and once
    more for each of its runners that was killed. Nothing else is a reason, such as a cut or another head, but while
    the model is being loaded."""
    for counted in _counted(fleet):
        if counted.starts > (most := counted.most_starts(struck)):
            yield f"{counted.server} was started {counted.starts} times, with {most} reasons"
        if counted.loads > (most := counted.most_loads(struck)):
            yield f"{counted.server} loaded a model {counted.loads} times, with {most} reasons"


def _counted(fleet: Fleet) -> Iterator[Counted]:
    for host in fleet.hosts:
        ended = [line for line in host.events("server_state") if CONTROL in line]
        for number in range(host.gpus):
            text = "".join(path.read_text() for path in (host.directory / "logs").glob(f"gpu{number}.log*"))
            controls = sum(f" server=gpu{number} " in line for line in ended)
            server = f"{host.name}.gpu{number}"
            yield Counted(server, len(_STARTED.findall(text)), len(_LOADS.findall(text)), _given_up(text), controls)


def _given_up(text: str) -> int:
    """Loads after whose beginning somebody was gone, and after which the next thing was the same load once more."""
    parts = _NEXT.split(text)
    return sum(
        _LOADS.match(begun) is not None and _GONE in meanwhile and _LOADS.match(then) is not None
        for begun, meanwhile, then in zip(parts[1::2], parts[2::2], parts[3::2], strict=False)
    )


def rows(fleet: Fleet, plan: Plan, struck: Struck) -> Iterator[tuple[str, str]]:
    """What happened, as a table."""
    for what, times in sorted(struck.back_s.items()):
        middle = sorted(times)[len(times) // 2]
        yield f"back after {what}", f"{len(times)} times, median {middle:.1f} s, at most {max(times):.1f} s"
    for counted in _counted(fleet):
        yield (
            counted.server,
            (
                f"{counted.starts} starts for {counted.most_starts(struck)} reasons, "
                f"{counted.loads} loads for {counted.most_loads(struck)}"
            ),
        )
    listed = ", ".join(f"{struck.kills[what]} {words}" for what, words in _VICTIMS.items())
    yield "kills and cuts", f"{struck.kills.total()} of {len(plan.strikes)}: {listed}"
    yield "requests", f"{struck.answered} of {plan.requests} answered once and rightly, in {len(plan.drops)} drops"
