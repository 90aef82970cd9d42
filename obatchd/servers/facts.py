"""Facts that servers keep across restarts of the daemon: their ports, and the slots that fit."""

from __future__ import annotations

from typing import Protocol


class FactStore(Protocol):
    """A small persistent store of strings; :class:`obatchd.jobs.store.Facts`."""

    def get(self, key: str) -> str | None: ...

    def set(self, key: str, value: str) -> None: ...
