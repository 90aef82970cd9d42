"""Reads the configuration again while the daemon runs: on SIGHUP, or when an operator asks for it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Protocol

import attrs

from obatchd import log
from obatchd.daemon import systemd
from obatchd.documents.answers import Reloaded
from obatchd.errors import ConfigError
from obatchd.settings import reading
from obatchd.settings.base import Reload
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

_log = log.get(__name__)


class SettingsListener(Protocol):
    """Tells the parts that do more than to read settings at the moment of use; :class:`obatchd.daemon.life.Daemon`."""

    def settings_changed(self) -> None:
        """Other settings are in force."""


@attrs.define(eq=False)
class Reloader:
    """Puts changed settings in force."""

    _settings: Current[Settings]
    _file: Path | None  # where the settings came from at the start, as the flags
    _flags: dict[str, Any]
    _listener: SettingsListener
    _asked: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _busy: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)

    def ask(self) -> None:
        """A reload is wanted; one that comes before the daemon is ready is done then."""
        self._asked.set()

    async def run(self) -> None:
        """One reload after the other, for as long as the daemon runs."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            systemd.reloading()
            try:
                await self.reload()
            except ConfigError as error:
                _log.error("reload_refused", reason=error.message)
            except Exception:  # noqa: BLE001 - a defect in reloading must not end the reloading of the next
                _log.exception("reload_failed")
            systemd.ready("watching the inbox")

    async def reload(self) -> Reloaded:
        """Read the configuration again; keys that a running daemon can change take effect, the others are named.

        Raises ConfigError where it cannot be used; the old one stays.
        """
        async with self._busy:
            old = self._settings.value
            new = await asyncio.to_thread(reading.load, self._file, environ=os.environ, flags=self._flags)
            changes = reading.changes(old, new)
            self._settings.value = reading.reloaded(old, new)
            self._listener.settings_changed()
        applied = [leaf.key for leaf in changes if leaf.reload is not Reload.RESTART]
        next_job = [leaf.key for leaf in changes if leaf.reload is Reload.NEXT_JOB]
        waiting = [leaf.key for leaf in changes if leaf.reload is Reload.RESTART]
        _log.info(
            "reloaded", changed=",".join(applied) or "nothing", next_job=",".join(next_job) or "nothing",
            needs_restart=",".join(waiting) or "nothing",
        )  # fmt: skip
        return Reloaded(applied, next_job, waiting)
