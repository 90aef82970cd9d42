"""Events of stand-in GPUs and their times: heat, throttling, ECC errors, XIDs, a GPU that is lost, a driver that hangs;
and faults that only a load shows: wrong results, bits that are stuck, slow links.

The timeline is ``gpus.json`` in the directory of the stand-ins: GPU index to a list of events. Its own modification
time is its zero, so it goes on over restarts, and whoever writes the file again begins anew. At first it is what
``"gpus"`` in ``OBATCHD_SIMULATOR`` says.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Literal

import msgspec

EventKind = Literal[
    "heat",  # goes to `temp_c` within `ramp_s`
    "throttle",  # has the clock reasons `reasons`; the driver's counters of hardware slowdown grow with them
    "set",  # readings have `values`, by the names of Reading, SlowReading and Identity
    "waste",  # takes `watts` more than its load does, for no more work
    "grow",  # counters grow by `per_s`, by the names of SlowReading
    "xid",  # the driver reports `xid`
    "lost",  # the GPU is not found any more
    "hang",  # no call into the driver returns
    "no_data_centre",  # a GeForce: no ECC, remapping, throttle counters, memory temperature
    "old_driver",  # the newer calls do not exist
    "no_driver",  # the driver is not loaded (yet)
    "mismatch",  # the driver was updated under the running kernel module
    "foreign",  # process `pid` holds `memory_bytes`
    "power_cap",  # takes no more than `watts`, whatever its limit is; clocks and speeds fall
    # Of the stress process (:mod:`obatchd.simulator.cards.device`):
    "wrong_tile",  # one product in `every` has a wrong element
    "stuck_bit",  # bit `bit` of the word that lies at `place_percent` of the memory is always 1
    "slow_link",  # to the host, or to GPU `peer` alone, it exchanges data `factor` times as slowly
    "hang_kernel",  # no call into the driver returns, and SIGTERM does nothing
    "killed",  # the driver kills the process
    "eats_memory",  # the process takes more and more of the host's memory, up to `memory_bytes`
]


class GpuEvent(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One event of one GPU. It lasts ``for_s``, or for ever; an XID is one moment."""

    kind: EventKind
    at_s: float = 0.0
    for_s: float | None = None
    temp_c: int = 90
    ramp_s: float = 0.0
    watts: float = 100.0
    reasons: int = 0x48  # hardware slowdown for heat
    values: dict[str, Any] = {}
    per_s: dict[str, float] = {}
    xid: int = 79
    line: str = ""  # of the kernel log, behind the address
    pid: int = 0
    memory_bytes: int | None = 4 * 1024**3  # None: the driver does not tell
    every: int = 20
    bit: int = 5
    place_percent: float = 50.0
    peer: int | None = None
    factor: float = 4.0

    def lasted_s(self, now_s: float) -> float:
        """For how long it has been so, up to ``now_s`` on the timeline."""
        end_s = now_s if self.for_s is None else min(now_s, self.at_s + self.for_s)
        return max(0.0, end_s - self.at_s)

    def holds(self, now_s: float) -> bool:
        return self.at_s <= now_s and (self.for_s is None or now_s < self.at_s + self.for_s)


Script = dict[str, list[GpuEvent]]  # by GPU index


class Timeline:
    """The events of all stand-in GPUs, read again when the file changes."""

    def __init__(self, directory: Path, script: Script) -> None:
        self._path = directory / "gpus.json"
        self._stamp: tuple[int, int] | None = None
        self._script: Script = {}
        self._fired: set[tuple[str, int]] = set()
        if script and not self._path.exists():
            write_script(directory, script)

    @property
    def now_s(self) -> float:
        """Seconds since the timeline's zero."""
        return time.time() - self._stamp[0] / 1e9 if self._stamp else 0.0

    def events(self, index: int) -> list[GpuEvent]:
        """All events of one GPU."""
        self._read()
        return self._script.get(str(index), [])

    def active(self, index: int, kind: EventKind) -> list[GpuEvent]:
        """The events of a kind that hold now."""
        return [event for event in self.events(index) if event.kind == kind and event.holds(self.now_s)]

    def due_xids(self, index: int) -> list[GpuEvent]:
        """XIDs whose moment came since the last call."""
        due = []
        for place, event in enumerate(self.events(index)):
            if event.kind == "xid" and event.at_s <= self.now_s and (str(index), place) not in self._fired:
                self._fired.add((str(index), place))
                due.append(event)
        return due

    def _read(self) -> None:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            self._script, self._stamp = {}, None
            return
        if (status.st_mtime_ns, status.st_ino) != self._stamp:
            self._stamp = (status.st_mtime_ns, status.st_ino)
            self._script = msgspec.json.decode(self._path.read_bytes(), type=Script)
            # The process before this one has told the events that were due before.
            self._fired = {
                (index, place)
                for index, events in self._script.items()
                for place, event in enumerate(events)
                if event.kind == "xid" and event.at_s < self.now_s - _JUST_S
            }


_JUST_S = 2.0


def pace(timeline: Timeline, index: int) -> float:
    """The share of its speed that a power cap leaves to a GPU."""
    return 0.6 if timeline.active(index, "power_cap") else 1.0


def write_script(directory: Path, script: Script) -> None:
    """Make this the timeline, beginning now."""
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f"gpus.{os.getpid()}.tmp"
    temporary.write_bytes(msgspec.json.encode(script))
    temporary.replace(directory / "gpus.json")
