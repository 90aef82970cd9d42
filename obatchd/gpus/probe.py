"""The daemon's side of the probe: readings of every GPU, and the certainty that asking for them never blocks."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Literal

import attrs

import obatchd.log
from obatchd.child import Child, End, Keeper
from obatchd.gpus import probe_child
from obatchd.gpus.model import Gpu, Identity, Reading, SlowReading, XidEvent
from obatchd.gpus.source import OpenSource
from obatchd.settings.tables.servers import GpuSettings
from obatchd.tasks import TaskSet
from obatchd.words import counted

log = obatchd.log.get(__name__)

START_TIMEOUT_S = 60.0  # without persistence mode the driver wakes each GPU first, for seconds
REPLACEMENTS = 3
RETRY_S = 60.0  # at most, after a probe that ended because the driver cannot be used now; 2, 4, 8 … s at first

State = Literal["ok", "absent", "unknown"]


class Listener:
    """Hears the messages of the probe, in the event loop; does nothing by itself."""

    def identities(self, identities: list[Identity]) -> None:
        """The identities of the cards."""

    def readings(self, readings: list[Reading]) -> None:
        """Fast readings."""

    def slow_readings(self, readings: list[SlowReading]) -> None:
        """Slow readings."""

    def xids(self, events: list[XidEvent]) -> None:
        """Errors that NVML reported."""


@attrs.define(eq=False)
class Probe:
    """Runs the probe process, whose parent it is, and keeps its messages."""

    _settings: GpuSettings
    _open_source: OpenSource  # called in the probe's process
    # Its owner hears when nobody keeps the process any more: the last readings would seem to be the present ones.
    _tasks: TaskSet = attrs.field(alias="owner", converter=TaskSet)
    _start_timeout_s: float = attrs.field(default=START_TIMEOUT_S, kw_only=True)
    gpus: list[Gpu] = attrs.field(factory=list, init=False)  # of the latest listing
    present: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)  # there was a listing with GPUs
    readings: dict[str, Reading] = attrs.field(factory=dict, init=False)  # latest by UUID; empty once the probe is gone
    host_trouble: tuple[str, str] = attrs.field(default=("", ""), init=False)  # see GpuSource; readings go on
    state: State = attrs.field(default="unknown", init=False)
    message: str = attrs.field(default="The GPUs have not been listed yet.", init=False)  # with what to do
    code: str = attrs.field(default="starting", init=False)  # slug of a state that is not ok: no_driver, probe_silent …
    replacements: int = attrs.field(default=0, init=False)
    pid: int | None = attrs.field(default=None, init=False)
    _keeper: Keeper[probe_child.Message] = attrs.field(init=False)
    _warn_s: float = attrs.field(init=False)
    _listener: Listener = attrs.field(factory=Listener, init=False)
    _identities: list[Identity] = attrs.field(factory=list, init=False)
    _unusable: int = attrs.field(default=0, init=False)  # processes in a row that said why they cannot read, and ended
    _said: probe_child.Message | None = attrs.field(default=None, init=False)  # latest of the present process
    _warning: asyncio.TimerHandle | None = attrs.field(default=None, init=False)
    _late: tuple[State, str, str] | None = attrs.field(default=None, init=False)
    _listed: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        poll_s, slow_poll_s, silent_s = self._settings.poll_s, self._settings.slow_poll_s, self._settings.silent_s
        self._warn_s = min(self._settings.silent_warn_s, silent_s)
        work = partial(probe_child.main, open_source=self._open_source, poll_s=poll_s, slow_poll_s=slow_poll_s)
        # It may hang in the driver for ever: its end is not waited for.
        self._keeper = Keeper("probe", work, probe_child.decoder, self, silent_s=silent_s, exit_s=0.0)

    def listen(self, listener: Listener) -> None:
        """Let ``listener`` hear what is read from now on, and who the cards are as far as that was told already."""
        self._listener = listener
        if self._identities:
            listener.identities(self._identities)

    async def start(self) -> None:
        """Returns after the first listing, the news that there is no driver, or ``start_timeout_s``.

        Cancelled, it leaves no process.
        """
        self._tasks.start(self._keeper.run(), self._keeper.name)
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await self._listed.wait()
        except TimeoutError:
            self._set("unknown", "probe_silent", f"The GPU driver did not answer within {self._start_timeout_s:.0f} s.")
        except asyncio.CancelledError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Close the channel; the process ends by itself. It is never waited for: it may hang in the driver."""
        await self._tasks.stop()
        self.pid = None
        self._expect_nothing()

    # Messages of the process.

    def started(self, child: Child) -> None:
        self.pid = child.pid
        self._expect()

    def heard(self, message: probe_child.Message) -> None:
        if self._late is not None:
            self._set(*self._late)
        self._said = message
        self._expect()
        match message:
            case probe_child.Listing(gpus, problems):
                self._list(gpus, problems)
            case probe_child.Absent(code, words):
                self._unusable += 1
                self._set("unknown" if self.gpus else "absent", code, words)  # a driver that goes away is no absence
                self._listed.set()
            case probe_child.Readings(readings, xids):
                self.readings = {reading.uuid: reading for reading in readings}
                self._listener.readings(readings)
                self._listener.xids(xids)
            case probe_child.Identities(identities):
                self._identities = identities
                self._listener.identities(identities)
            case probe_child.SlowReadings(slow, code, words):
                if (code, words) != self.host_trouble:
                    log.warning("gpu_host_trouble", code=code, message=words or "none any more")
                self.host_trouble = (code, words)
                self._listener.slow_readings(slow)

    def ended(self, end: End) -> float | None:
        self.pid = None
        self._expect_nothing()
        self.readings.clear()
        said, self._said = self._said, None
        if isinstance(said, probe_child.Absent):  # nothing hangs: asked for ever, because at boot a driver may be late
            return min(RETRY_S, 2.0 ** min(self._unusable, 10))
        self._unusable = 0
        given_up = self.replacements >= (REPLACEMENTS if said or self.gpus else 1)
        advice = f"Look at nvidia-smi and dmesg; replacement {self.replacements + 1} of {REPLACEMENTS} starts."
        if not said:
            advice = "It could not ask the driver at all: see the log for its error, or install obatchd again."
        elif given_up:
            advice = (
                "obatchd replaced it too often and does not start it again. Look at nvidia-smi and dmesg, then restart "
            )
            advice += "obatchd."
        self._set(
            "unknown",
            "probe_silent",
            f"The process that asks the driver {end.words}, so the health of the GPUs is unknown. {advice}",
        )
        if given_up:
            self._listed.set()
            return None
        self.replacements += 1
        return 0.0

    def _expect(self) -> None:
        """Something has to be said within ``silent_warn_s``."""
        self._expect_nothing()
        self._warning = asyncio.get_running_loop().call_later(self._warn_s, self._is_late)

    def _expect_nothing(self) -> None:
        self._late = None
        if self._warning is not None:
            self._warning.cancel()

    def _is_late(self) -> None:
        self._late = (self.state, self.code, self.message)
        words = f"The GPU driver has said nothing for {self._warn_s:g} s: the health of the GPUs is unknown."
        self._set("unknown", "probe_late", words)

    def _list(self, gpus: list[Gpu], problems: list[str]) -> None:
        self.gpus, self._unusable = gpus, 0
        for problem in problems:
            log.warning("gpu_unusable", problem=problem)
        self._set("ok", "ok", " ".join([f"{counted(len(gpus), 'GPU')}.", *problems]))
        self.present.set()
        self._listed.set()

    def _set(self, state: State, code: str, message: str) -> None:
        if (state, code, message) != (self.state, self.code, self.message):
            (log.warning if state == "unknown" else log.info)("probe_state", state=state, code=code, message=message)
        self.state, self.code, self.message = state, code, message
