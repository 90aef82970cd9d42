"""The loop that keeps a server alive: states, starts, backoff, giving up, health checks, drain, quarantine."""

from __future__ import annotations

import abc
import asyncio
import time
from collections import deque
from collections.abc import Collection
from typing import NamedTuple

import obatchd.log
from obatchd.errors import ObatchError, ServerError
from obatchd.servers import states
from obatchd.servers.states import ServerState
from obatchd.servers.tries import Tries, count
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.settings.tables.servers import ServerSettings
from obatchd.tasks import TaskSet, set_within
from obatchd.times import clock
from obatchd.words import counted, server_state

log = obatchd.log.get(__name__)

_MISSES = 3  # failed health checks in a row, without progress, that restart a server
_UP = frozenset({ServerState.READY, ServerState.DRAINING})
_DOWN = frozenset({ServerState.BACKOFF, ServerState.FAILED, ServerState.QUARANTINED})
_RUNS = _UP | {ServerState.STARTING}


class Ending(NamedTuple):
    """Why a run of a server ended. A planned end is followed by a start at once and counts for nothing."""

    reason: str
    planned: bool


class Life(abc.ABC):
    """The life of every server, whatever it computes."""

    ours = True  # whether we start it; else it can only be reached or not

    def __init__(self, server_id: str, settings: Current[Settings]) -> None:
        self.id = server_id  # ``gpu0``, ``gpu0.mig1``, ``group0``, ``cpu0``, ``remote-<host>-<port>``
        self.gpu_label = ""  # GPU UUID (comma-separated for a group), ``cpu``, or empty when unknown
        self.state = ServerState.STOPPED
        self.reason = "not started yet"  # of the latest change of state
        self.idle = asyncio.Event()  # set when nothing is in flight
        self.idle.set()
        self.restarts = 0  # runs that ended unasked; where others start it, only those in which it answered
        self._current = settings
        self.holds: dict[str, str] = {}  # holders that keep work away, and their reasons; outlives a restart
        self._quarantine: str | None = None  # why its GPU is out of use
        self._tries = Tries()
        self._strikes: deque[float] = deque()
        self._misses = 0
        self._reached = False  # whether the latest run came to READY and did not end because nobody answered any more
        self._came_up = False  # whether the latest run came to READY
        self._told = (self.state, "")  # the latest failure that the log has, with the state that came of it
        self.failure = ""  # why the latest run ended unasked, until the server answers again
        self._ending: asyncio.Future[Ending] | None = None
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._tasks = TaskSet(self)

    @property
    def _settings(self) -> ServerSettings:
        return self._current.value.servers

    @property
    def up(self) -> bool:
        """Whether it answers, though it may be given nothing new."""
        return self.state in _UP

    @property
    def ready(self) -> bool:
        return self.state is ServerState.READY

    @property
    def out_of_use(self) -> bool:
        """Whether nobody should wait for it: it is tried again after minutes, or not before somebody acts."""
        return self.state in (ServerState.FAILED, ServerState.QUARANTINED)

    @property
    def down(self) -> str:
        """Why it can have no work, also while it is tried again; empty while it works, starts or is drained."""
        return self.failure if self.state is ServerState.STARTING else self.reason if self.state in _DOWN else ""

    @property
    def in_words(self) -> str:
        """Its state in a sentence for people, with the reason; one that is tried again is down until it answers."""
        state = ServerState.BACKOFF if self.state is ServerState.STARTING and self.failure else self.state
        return f"{self.id} is {server_state(state)}: {self.down or self.reason}"

    # --- what it is that lives --------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def _open(self) -> None:
        """Bring the server to where it answers; raises ServerError."""

    @abc.abstractmethod
    async def _close(self) -> None:
        """Undo ``_open``. Idempotent."""

    @abc.abstractmethod
    async def _check_health(self) -> None:
        """Look whether it answers; raises ServerError."""

    @abc.abstractmethod
    async def _when_healthy(self) -> None:
        """It has answered: do the regular checks; raises ServerError."""

    @abc.abstractmethod
    def _forget(self) -> None:
        """The process is gone, and its loaded model with it."""

    @abc.abstractmethod
    def _tell(self, old: ServerState, new: ServerState, reason: str) -> None:
        """The state has changed."""

    # --- life -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start to keep the server alive, in the background."""
        if not self._tasks:
            self._tasks.start(self._live(), f"server-{self.id}")

    def task_failed(self, name: str, error: BaseException) -> None:
        """Nobody looks after the server any more: it is out of use until its life begins again."""
        self.state, self.reason = ServerState.FAILED, _defect_words(error)
        self._wake_waiting()
        self._wake.clear()
        self._tasks.start(self._live_again(), name)

    async def _live_again(self) -> None:
        await set_within(self._settings.slow_retry_s, self._wake)
        await self._live()

    async def stop(self) -> None:
        """End the server and stop looking after it."""
        await self._tasks.stop()
        if self.state in _RUNS:
            self._set(ServerState.STOPPING, "asked to stop")
        await self._close()
        self._forget()
        if self.state is not ServerState.STOPPED:
            self._set(ServerState.STOPPED, "asked to stop")

    async def _live(self) -> None:
        reason = "started"
        while True:
            if self._quarantine is not None:
                await self._stay_quarantined()
                self.failure = ""
                reason = "released from quarantine"
            try:
                ending = await self._run(reason)
            except Exception as error:
                log.exception("server_defect", server=self.id, gpu=self.gpu_label)
                ending = await self._end_defective(error)
            self._forget()
            if ending.planned:
                reason, self.failure = ending.reason, ""
                continue
            self.restarts += self.ours or self._came_up
            pause_s = self._after_failure(ending.reason)
            self._wake.clear()
            await set_within(pause_s, self._wake)
            self.failure = ending.reason
            reason = f"another try; the last one ended: {ending.reason}"

    async def _stay_quarantined(self) -> None:
        if self.state is not ServerState.STOPPED:
            self._set(ServerState.STOPPED, "its GPU is put into quarantine")
        self._set(ServerState.QUARANTINED, self._quarantine or "")
        while self._quarantine is not None:
            self._wake.clear()
            await self._wake.wait()
        self._tries.useful()
        self._set(ServerState.STOPPED, "released from quarantine")

    async def _run(self, reason: str) -> Ending:
        """One run: from STARTING until the server has ended, its group is gone and the state says so."""
        self._ending = asyncio.get_running_loop().create_future()
        self._misses = 0
        self._reached = self._came_up = False
        self._strikes.clear()
        self._set(ServerState.STARTING, reason)
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                await self._open()
        except TimeoutError:
            self._end(f"not ready within {self._settings.start_timeout_s:g} s", planned=False)
        except ObatchError as error:
            self._end(error.message, planned=False)
        except OSError as error:  # no descriptors, no space, a directory that cannot be made
            self._end(f"it cannot be started: {error}", planned=False)
        ready_s = time.monotonic()
        if not self._ending.done():
            self._reached = self._came_up = True
            self.failure = ""
            self._set(ServerState.READY, "answers")
            if self.holds:
                self._set(ServerState.DRAINING, self._hold_words)
            await self._watch(self._ending)
            if time.monotonic() - ready_s >= self._settings.backoff_reset_s:
                self._tries.steady()
        ending = self._ending.result()
        if ending.planned:
            self._set(ServerState.STOPPING, ending.reason)
        await self._close()
        if ending.planned:
            self._set(ServerState.STOPPED, ending.reason)
        return ending

    async def _end_defective(self, error: Exception) -> Ending:
        """A run that a defect of ours broke off: end its process, so that it can be tried again."""
        self._end(_defect_words(error), planned=False)  # for a load in progress
        if self.state is ServerState.STOPPING:
            self._set(ServerState.STOPPED, _defect_words(error))
        try:
            await self._close()
        except Exception:
            log.exception("server_not_closed", server=self.id, gpu=self.gpu_label)
        return Ending(_defect_words(error), planned=False)

    async def _watch(self, ending: asyncio.Future[Ending]) -> None:
        """Check health until something has ended the run."""
        while True:
            await asyncio.wait([ending], timeout=self._settings.health_s)
            if ending.done():
                return
            try:
                await self._check_health()
                self._misses = 0
                await self._when_healthy()
            except ServerError as error:
                self._misses += 1
                log.warning("health_missed", server=self.id, misses=self._misses, reason=error.message)
                if self._misses >= _MISSES:
                    self._reached = False
                    self._end(f"{_MISSES} health checks missed: {error.message}", planned=False)

    def _after_failure(self, reason: str) -> float:
        """Go to BACKOFF, or to FAILED; the pause in seconds."""
        pause_s, given_up = self._tries.failed(self._settings, ours=self.ours, reached=self._reached)
        later = f"next try at {clock(time.time() + pause_s)}"
        if given_up:
            at_once = f"obatchctl servers resume {self.id}"
            self._set(ServerState.FAILED, f"{reason} ({given_up}; {later}, at once with: {at_once})", reason)
        else:
            self._set(ServerState.BACKOFF, f"{reason} ({later})", reason)
        return pause_s

    def _end(self, reason: str, *, planned: bool) -> None:
        if self._ending is not None and not self._ending.done():
            self._ending.set_result(Ending(reason, planned))

    def _set(self, new: ServerState, reason: str, failure: str = "") -> None:
        old = self.state
        states.check(old, new)
        self.state, self.reason = new, reason
        # A server of others may be down for days: that another try ended as the one before is no news.
        news = self.ours or not self.failure or (new is not ServerState.STARTING and self._told != (new, failure))
        self._told = (new, failure) if failure else self._told
        bad = new in (ServerState.BACKOFF, ServerState.FAILED)
        held = {"held": self._hold_words} if new is ServerState.READY and self.holds else {}
        if news:
            (log.warning if bad else log.info)(
                "server_state", server=self.id, gpu=self.gpu_label, old=old, new=new, reason=reason, **held
            )
        else:
            log.debug("server_state_again", server=self.id, new=new, reason=reason)
        self._wake_waiting()
        self._tell(old, new, reason)

    def _wake_waiting(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def until(self, wanted: Collection[ServerState]) -> None:
        """Wait until the state is one of ``wanted``."""
        while self.state not in wanted:
            await self._changed.wait()

    # --- commands ---------------------------------------------------------------------------------------------------

    async def restart(self, reason: str) -> None:
        """End the server and start it again at once; ends a pause too. Returns when the old process is gone."""
        if self.state in _RUNS:
            changed = self._changed
            self._end(reason, planned=True)
            await changed.wait()
            await self.until(set(ServerState) - {ServerState.STOPPING})
        else:
            await self.try_again()

    async def try_again(self) -> None:
        """End the pause of a server in BACKOFF or FAILED, and begin to count anew."""
        if self.state in (ServerState.BACKOFF, ServerState.FAILED):
            self._tries = Tries()
            self._wake.set()
            await self.until(set(ServerState) - {ServerState.BACKOFF, ServerState.FAILED})

    async def drain(self, reason: str) -> bool:
        """Give the server no new requests; whether those in flight have ended within ``drain_s``."""
        self.hold("operator", reason)
        return await set_within(self._settings.drain_s, self.idle)

    def hold(self, by: str, reason: str) -> None:
        """Give the server no new requests until ``resume`` of the same name."""
        self.holds[by] = reason
        if self.state is ServerState.READY:
            self._set(ServerState.DRAINING, self._hold_words)
        elif self.state is ServerState.DRAINING:
            self.reason = self._hold_words

    def resume(self, by: str = "operator") -> None:
        """End a drain; the server works again when nobody else keeps work away."""
        self.holds.pop(by, None)
        if self.state is ServerState.DRAINING:
            self.reason = self._hold_words
            if not self.holds:
                self._set(ServerState.READY, "resumed")

    @property
    def _hold_words(self) -> str:
        return "; ".join(self.holds.values())

    def quarantine_at_start(self, reason: str) -> None:
        """Let the server begin in quarantine; before ``begin``."""
        self._quarantine = reason

    async def quarantine(self, reason: str) -> None:
        """End the server and keep it ended, whatever it does now, until ``release``. Nothing is waited for."""
        self._quarantine = reason
        if self.state in _RUNS:
            self._end(reason, planned=True)
        self._wake.set()
        if self._tasks:
            await self.until({ServerState.QUARANTINED})

    def release(self) -> None:
        self._quarantine = None
        self._wake.set()

    # --- what the dispatcher tells ----------------------------------------------------------------------------------

    def progress(self) -> None:
        """A request was completed, or tokens came: the server is alive and of use."""
        self._misses = 0
        self._tries.useful()

    def fault(self, reason: str) -> None:
        """A strike: a failure that was the server's fault. Enough of them restart it."""
        limits = self._current.value.dispatch
        strikes = count(self._strikes, limits.strike_window_s)
        log.warning("server_strike", server=self.id, gpu=self.gpu_label, strikes=strikes, reason=reason)
        if strikes >= limits.strikes:
            self.broken(f"{counted(strikes, 'fault')}, the latest: {reason}")

    def broken(self, reason: str) -> None:
        """It does not do its work: end it, and start it again after a pause."""
        if self.up:
            self._end(reason, planned=False)


def _defect_words(error: BaseException) -> str:
    return f"obatchd itself failed in looking after it ({type(error).__name__}: {error}); its log says where"
