"""Looks at every server each second, and acts on the findings of the watchdog.

=================  ==============================================================================
``stalled``        requests in flight are given up; one token is asked for; a restart if none comes
``gpu_idle``       one token is asked for; a restart if none comes
``slots_leaking``  the server is emptied, then restarted
``slow``           the model is unloaded and loaded again; then a restart; then it is taken as it is
``cpu_fallback``   a restart
=================  ==============================================================================

A server that was restarted ``repeats`` times for one of the reasons that may be its GPU's fault gets no more work,
but only while another one does the same work well: a prompt or a model that hangs everywhere condemns no hardware.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, Protocol

import attrs

from obatchd import log
from obatchd.dispatch.dispatcher import Dispatcher
from obatchd.dispatch.link import Link
from obatchd.dispatch.watchdog import Observation, Symptom
from obatchd.errors import ObatchError, ServerError
from obatchd.ollama import faults
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.settings.tables.dispatch import WatchdogSettings
from obatchd.tasks import TaskSet
from obatchd.words import counted

_log = log.get(__name__)
_PERIOD_S = 1.0
_MARGIN_S = 5.0
_NO_ANSWER = frozenset({"timeout", "server_unreachable", "server_error", "not_ollama"})
_OF_SLOW = {1: "obatchd loads the model again", 2: "obatchd restarts it when it is idle"}
_NO_REMEDY = "obatchd leaves it: loading again and a restart did not help"
_HARDWARE = frozenset({Symptom.STALLED, Symptom.GPU_IDLE, Symptom.CPU_FALLBACK})


class GpuLoad(Protocol):
    """Knows how busy GPUs are; :class:`obatchd.gpucare.watch.GpuWatch`."""

    def utilisation(self, server_id: str) -> int | None:
        """Of the GPUs of a server in percent; None where nobody knows it."""


@attrs.define(eq=False)
class Watchdog:
    """The watch over all servers of a dispatcher."""

    _dispatcher: Dispatcher
    _current: Current[Settings] = attrs.field(alias="settings")
    _load: GpuLoad
    # The owner is told when the watch ends by an exception: hung servers would go unnoticed.
    _tasks: TaskSet = attrs.field(alias="owner", converter=TaskSet)
    _remedies: dict[str, asyncio.Task[None]] = attrs.field(factory=dict, init=False)
    _restarts: dict[str, deque[tuple[float, Symptom]]] = attrs.field(factory=dict, init=False)
    _looked_s: dict[str, float] = attrs.field(factory=dict, init=False)  # at the VRAM

    @property
    def _settings(self) -> WatchdogSettings:
        return self._current.value.watchdog

    def start(self) -> None:
        self._tasks.start(self._run(), "watchdog")

    async def stop(self) -> None:
        """Stop looking, and give up remedies in progress."""
        await self._tasks.stop()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD_S)
            for link in self._dispatcher.links.values():
                if link.server.id not in self._remedies:
                    self._look(link)

    def _look(self, link: Link) -> None:
        server, now_s = link.server, time.monotonic()
        computes = server.loaded is not None and not (server.loading or link.loading or server.starting_runner)
        seen = Observation(now_s, computes, link.started, link.token_s, self._load.utilisation(server.id))
        if (symptom := link.watch.look(seen)) is not None:
            self._begin(link, self._remedy(link, symptom))
        elif not computes:
            self._looked_s[server.id] = now_s
        elif now_s - self._looked_s.setdefault(server.id, now_s) >= self._settings.vram_s:
            self._looked_s[server.id] = now_s
            self._begin(link, self._look_at_vram(link))

    def _begin(self, link: Link, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await work
            except ObatchError as error:
                _log.warning("watchdog_hindered", server=link.server.id, code=error.code, reason=error.message)
            except Exception:  # noqa: BLE001 - logged; a defect in one remedy must not end the watch over the others
                _log.exception("watchdog_failed", server=link.server.id)
            finally:
                del self._remedies[link.server.id]

        self._remedies[link.server.id] = self._tasks.start(run(), f"watchdog-{link.server.id}")

    def _found(self, link: Link, symptom: Symptom, reason: str, remedy: str) -> None:
        link.watchdog[symptom] += 1
        _log.warning(
            f"watchdog_{symptom}", server=link.server.id, gpu=link.server.gpu_label, in_flight=link.started,
            model=link.server.loaded.model if link.server.loaded else None, reason=reason, remedy=remedy,
        )  # fmt: skip

    # Remedies.

    async def _remedy(self, link: Link, symptom: Symptom) -> None:
        match symptom:
            case Symptom.STALLED:
                reason = f"no token from any of its slots for {self._current.value.dispatch.stall_s:g} s or more"
                self._found(link, symptom, reason, "obatchd gives up its requests and asks it for one token")
                self._dispatcher.give_up(link, faults.hung(reason), self._settings.probe_s + _MARGIN_S)
                await self._restart_unless_it_answers(link, symptom, reason)
            case Symptom.GPU_IDLE:
                reason = f"it has requests, but no token and an idle GPU for {self._settings.idle_gpu_s:g} s"
                self._found(link, symptom, reason, "obatchd asks it for one token")
                await self._restart_unless_it_answers(link, symptom, reason)
            case Symptom.SLOTS_LEAKING:
                slots = link.server.slots
                reason = f"answers wait for a slot although it has {slots} for them: some do not become free"
                self._found(link, symptom, reason, "obatchd restarts it when it is idle")
                await self._restart_when_idle(link, reason)
            case Symptom.SLOW:
                await self._speed_up(link)

    async def _restart_unless_it_answers(self, link: Link, symptom: Symptom, reason: str) -> None:
        try:
            await link.server.one_token(self._settings.probe_s)
        except ServerError as error:
            if error.code in _NO_ANSWER:
                await self._restart(link, symptom, f"{reason}, and one token does not come: {error.message}")
                return
        _log.info("watchdog_passed", server=link.server.id, finding=symptom)
        self._dispatcher.release(link)

    async def _restart(self, link: Link, symptom: Symptom, reason: str) -> None:
        link.watchdog["restart"] += 1
        repeated = self._repeated(link, symptom)
        _log.warning("watchdog_restart", server=link.server.id, finding=symptom, repeated=repeated, reason=reason)
        condemn = repeated and self._others_do_well(link)
        self._dispatcher.give_up(link, faults.hung(reason), _MARGIN_S)
        link.server.broken(reason)
        link.watch.begin_again()
        if condemn:
            link.watchdog["drained"] += 1
            words = self._drained_words(link, reason)
            _log.error("watchdog_drained", server=link.server.id, finding=symptom, reason=words)
            await link.server.drain(words)
        await asyncio.sleep(_PERIOD_S)  # by now its state keeps work away until it is READY again
        self._dispatcher.release(link)

    def _drained_words(self, link: Link, reason: str) -> str:
        often, server = counted(self._settings.repeats, "time"), link.server.id
        return (
            f"obatchd restarted it {often} because it did not do its work, most recently: {reason}. "
            f"Look at  obatchctl servers logs {server},  then  obatchctl servers resume {server}"
        )

    def _repeated(self, link: Link, symptom: Symptom) -> bool:
        now_s = time.monotonic()
        restarts = self._restarts.setdefault(link.server.id, deque())
        restarts.append((now_s, symptom))
        while restarts[0][0] < now_s - self._settings.window_s:
            restarts.popleft()
        return sum(kind in _HARDWARE for _, kind in restarts) >= self._settings.repeats

    def _others_do_well(self, link: Link) -> bool:
        """Whether a server that needed no restart lately has the same profile."""
        since_s = time.monotonic() - self._settings.window_s
        return any(
            other.server.ready
            and other.server.loaded == link.server.loaded
            and all(at_s < since_s for at_s, _ in self._restarts.get(other.server.id, ()))
            for other in self._dispatcher.links.values()
            if other is not link
        )

    async def _restart_when_idle(self, link: Link, reason: str) -> None:
        try:
            await self._dispatcher.empty(link, self._current.value.servers.drain_s)
            await self._dispatcher.vacate(link, 0.0, "its server is restarted")
            link.watchdog["restart"] += 1
            await link.server.restart(reason)
            link.watch.begin_again()
        finally:
            self._dispatcher.release(link)

    async def _speed_up(self, link: Link) -> None:
        watch, server = link.watch, link.server
        watch.slow_remedies += 1
        limits = self._settings
        reason = f"below {limits.slow_factor:g} of its own best tokens per second for {limits.slow_s:g} s"
        self._found(link, Symptom.SLOW, reason, _OF_SLOW.get(watch.slow_remedies, _NO_REMEDY))
        if watch.slow_remedies == 1:
            try:
                profile = server.loaded
                if profile is not None and await self._dispatcher.empty(link, self._current.value.servers.drain_s):
                    await server.unload()
                    await link.load(profile)
                watch.begin_again()
            finally:
                self._dispatcher.release(link)
        elif watch.slow_remedies == 2:
            await self._restart_when_idle(link, reason)
        else:
            watch.slow_remedies = 0
            watch.begin_again(forget_speed=True)

    async def _look_at_vram(self, link: Link) -> None:
        if reason := await link.server.fallen_back():
            self._found(link, Symptom.CPU_FALLBACK, reason, "obatchd restarts it")
            await self._restart(link, Symptom.CPU_FALLBACK, reason)
