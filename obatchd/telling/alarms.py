"""Tells administrators: each alarm goes to ``[alarms] command`` and ``[alarms] webhook``.

One alarm after the other, each way for a bounded time. The queue is bounded too; finished jobs give way first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Coroutine
from functools import partial
from typing import Protocol

import attrs
from yarl import URL

from obatchd import log
from obatchd.documents.alarms import Alarm, AlarmTest, message
from obatchd.documents.answers import WayTried
from obatchd.errors import NotToldError
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.settings.tables.people import AlarmSettings
from obatchd.tasks import TaskSet
from obatchd.telling.ways import Message, post, run_command
from obatchd.times import instant

_log = log.get(__name__)
_MOST_WAITING = 100
_LAST_S = 5.0  # for the alarms that wait when the daemon ends
_POST_AGAIN_S = (2.0, 10.0)  # a webhook that fails is tried again; a command may have done half of its work
_TEST_TIMEOUT_S = 45.0  # less than obatchctl waits


class _Way(Protocol):
    """One way of sending, with all but the message given."""

    def __call__(self, message: Message, /, *, timeout_s: float) -> Coroutine[None, None, None]: ...


@attrs.define(eq=False)
class Alarms:
    """Collects alarms and sends them. Implements :class:`obatchd.documents.alarms.Announcer`."""

    _current: Current[Settings] = attrs.field(alias="settings")
    _tasks: TaskSet = attrs.field(alias="owner", converter=TaskSet)  # one, without which no alarm is passed on
    _waiting: deque[Message] = attrs.field(factory=deque, init=False)
    _wake: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _idle: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _failures: dict[str, str] = attrs.field(factory=dict, init=False)  # of ways whose last alarm did not arrive

    def __attrs_post_init__(self) -> None:
        self._idle.set()

    @property
    def _settings(self) -> AlarmSettings:
        return self._current.value.alarms

    def start(self) -> None:
        self._tasks.start(self._run(), "alarms")

    async def stop(self) -> None:
        """Give waiting alarms a moment, then end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_S):
                await self._idle.wait()
        await self._tasks.stop()

    def announce(self, alarm: Alarm, host: str = "") -> None:
        """Raise an alarm, if somebody wants to hear of its kind; ``host`` is the joined host that it comes from."""
        if alarm.kind not in self._settings.on or not self._ways():
            return
        if len(self._waiting) >= _MOST_WAITING:
            victim = next((waiting for waiting in self._waiting if waiting["kind"] == "job_done"), self._waiting[0])
            self._waiting.remove(victim)
            _log.warning("alarm_dropped", kind=victim["kind"], reason="too many wait to be told")
        self._waiting.append(message(alarm, host))
        self._idle.clear()
        self._wake.set()

    async def test(self) -> list[WayTried]:
        """Send an alarm of the kind ``test`` through every way at once; what came of each."""
        alarm = message(AlarmTest())
        ways, timeout_s = self._ways(), min(self._settings.timeout_s, _TEST_TIMEOUT_S)
        reasons = await asyncio.gather(*(self._try(name, way, alarm, timeout_s) for name, way in ways.items()))
        return [WayTried(name, not reason, reason) for name, reason in zip(ways, reasons, strict=True)]

    def troubles(self) -> list[str]:
        """What to tell administrators of ways whose last alarm did not arrive."""
        return [
            f"alarms do not arrive: the {name} failed at {words}. Try it: obatchctl alarms test"
            for name, words in self._failures.items()
            if name in self._ways()
        ]

    def _ways(self) -> dict[str, _Way]:
        """By the name that people and logs see: without arguments, and of a URL the host alone."""
        ways: dict[str, _Way] = {}
        if command := self._settings.command:
            ways[f"command {os.path.basename(command[0])}"] = partial(run_command, command)
        if webhook := self._settings.webhook:
            ways[f"webhook at {URL(webhook).raw_host}"] = partial(post, webhook)
        return ways

    async def _run(self) -> None:
        while True:
            while self._waiting:
                alarm = self._waiting.popleft()
                await asyncio.gather(*(self._tell(name, way, alarm) for name, way in self._ways().items()))
            self._idle.set()
            self._wake.clear()
            await self._wake.wait()

    async def _tell(self, name: str, way: _Way, alarm: Message) -> None:
        pauses = _POST_AGAIN_S if name.startswith("webhook") else ()
        for pause_s in (*pauses, None):
            if not await self._try(name, way, alarm, self._settings.timeout_s) or pause_s is None:
                return
            await asyncio.sleep(pause_s)

    async def _try(self, name: str, way: _Way, alarm: Message, timeout_s: float) -> str:
        """Send it once; why it did not arrive, or nothing."""
        try:
            await way(alarm, timeout_s=timeout_s)
        except NotToldError as error:
            self._failures[name] = f"{instant(time.time())}: {error.message}"
            _log.error("alarm_failed", kind=alarm["kind"], way=name, reason=error.message)
            return error.message
        self._failures.pop(name, None)
        _log.info("alarm_told", kind=alarm["kind"], way=name)
        return ""
