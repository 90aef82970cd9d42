"""Limits of one owner's open work: a drop beyond them waits in the inbox, a submission is refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from obatchd.live.job import LiveJob
from obatchd.settings.tables.spool import LimitSettings
from obatchd.words import counted


class _Open(msgspec.Struct):
    jobs: int = 0
    size_bytes: int = 0
    requests: int = 0


class OwnerLimits:
    """The open work of every owner now; a drop that gets room is counted.

    A drop that is larger than ``open_bytes`` by itself gets room when its owner has nothing else open: it would wait
    for ever otherwise.
    """

    def __init__(self, settings: LimitSettings, live_jobs: Iterable[LiveJob]) -> None:
        self._settings = settings
        self._open: dict[int, _Open] = defaultdict(_Open)
        if not (settings.open_jobs or settings.open_bytes or settings.open_requests):
            return
        for live in live_jobs:
            count = self._open[live.row.owner]
            count.jobs += 1
            count.size_bytes += live.row.size
            count.requests += live.requests - live.finished

    def room(self, owner: int, size_bytes: int) -> str:
        """Make room for one more drop; why there is none, else empty."""
        limits, count = self._settings, self._open[owner]
        if limits.open_jobs and count.jobs >= limits.open_jobs:
            return _text(counted(count.jobs, "job"), "open_jobs", limits.open_jobs)
        if limits.open_bytes and count.jobs and count.size_bytes + size_bytes > limits.open_bytes:
            return _text(f"{counted(count.size_bytes, 'byte')} of drops", "open_bytes", limits.open_bytes)
        if limits.open_requests and count.requests >= limits.open_requests:
            return _text(counted(count.requests, "request"), "open_requests", limits.open_requests)
        count.jobs += 1
        count.size_bytes += size_bytes
        return ""


def _text(what: str, setting: str, limit: int) -> str:
    return f"its owner has {what} open and may have {limit} ({setting} in [limits]); it is taken when some are done"
