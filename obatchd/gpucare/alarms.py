"""Tells somebody: runs ``[alarms] command`` with one JSON document on its standard input for each alarm.

One after the other, each for a bounded time, without a shell. The queue is bounded too; finished jobs give way first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections import deque
from typing import Any

import attrs
import msgspec

from obatchd import log
from obatchd.documents import SCHEMA
from obatchd.documents.alarms import Alarm
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.settings.tables.people import AlarmSettings
from obatchd.tasks import TaskSet
from obatchd.times import instant

_log = log.get(__name__)
_MOST_WAITING = 100
_LAST_S = 5.0  # for the alarms that wait when the daemon ends


@attrs.define(eq=False)
class Alarms:
    """Collects alarms and runs the command."""

    _current: Current[Settings] = attrs.field(alias="settings")
    _tasks: TaskSet = attrs.field(alias="owner", converter=TaskSet)  # one, without which no alarm is passed on
    _waiting: deque[dict[str, Any]] = attrs.field(factory=deque, init=False)
    _wake: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _idle: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)

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

    def announce(self, alarm: Alarm) -> None:
        """Raise an alarm, if somebody wants to hear of its kind."""
        if not self._settings.command or alarm.kind not in self._settings.on:
            return
        if len(self._waiting) >= _MOST_WAITING:
            victim = next((waiting for waiting in self._waiting if waiting["kind"] == "job_done"), self._waiting[0])
            self._waiting.remove(victim)
            _log.warning("alarm_dropped", kind=victim["kind"], reason="too many wait for the command")
        head = {"schema": SCHEMA, "kind": alarm.kind, "at": instant(time.time()), "host": socket.gethostname()}
        self._waiting.append(head | msgspec.structs.asdict(alarm))
        self._idle.clear()
        self._wake.set()

    async def _run(self) -> None:
        while True:
            while self._waiting:
                await self._tell(self._waiting.popleft())
            self._idle.set()
            self._wake.clear()
            await self._wake.wait()

    async def _tell(self, alarm: dict[str, Any]) -> None:
        command, kind = self._settings.command, alarm["kind"]
        if not command:  # since a reload
            return
        try:
            process = await self._begin(msgspec.json.encode(alarm) + b"\n")
        except (OSError, ValueError) as error:
            _log.error("alarm_failed", kind=kind, command=command[0], reason=str(error))
            return
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await process.wait()
        except TimeoutError:
            _log.error(
                "alarm_failed", kind=kind, command=command[0], reason=f"not done in {self._settings.timeout_s:g} s"
            )
        else:
            write = _log.error if process.returncode else _log.info
            write("alarm_told", kind=kind, command=command[0], exit_code=process.returncode)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also processes that it left behind in its own group
            await process.wait()

    async def _begin(self, document: bytes) -> asyncio.subprocess.Process:
        ours = ("OBATCH", "PYTHONSAFEPATH")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        # A file in memory, not a pipe: a command that ends without reading it breaks nothing here.
        with open(os.memfd_create("alarm"), "w+b") as standard_input:
            standard_input.write(document)
            standard_input.seek(0)
            return await asyncio.create_subprocess_exec(
                *self._settings.command, stdin=standard_input, stdout=asyncio.subprocess.DEVNULL, env=environment,
                start_new_session=True,
            )  # fmt: skip
