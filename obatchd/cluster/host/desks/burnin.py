"""The desk ``burnin`` of a host: its part of a run over several hosts, for the head."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence

import attrs

from obatchd.burnin.journal.journal import encoded
from obatchd.burnin.journal.records import Record
from obatchd.burnin.run.manager import Burnin
from obatchd.burnin.run.plan import Asked
from obatchd.cluster.desks import ToldRecords
from obatchd.documents.burnin.plan import Plan

_MOST_BYTES = 256 * 1024  # of records in one answer: requests go over the same connection


@attrs.define(eq=False)
class HostBurninDesk:
    """Implements :class:`obatchd.cluster.desks.BurninDesk`."""

    _runs: Burnin
    _life: str = attrs.field(factory=lambda: secrets.token_hex(8), init=False)

    async def start(self, asked: Asked, whole: Plan) -> None:
        await self._runs.start_part(asked, whole)

    async def stop(self, run: str, why: str) -> None:
        if (active := self._runs.active) is not None and active.plan.run == run:
            active.stop(why)

    async def records(self, run: str, first: int) -> ToldRecords:
        records = await self._runs.records(run)
        lines = await asyncio.to_thread(_lines, records[first:])
        active = self._runs.active
        loads = active.present_loads if active is not None and active.plan.run == run else []
        return ToldRecords(self._life, lines, len(records), time.time(), loads)


def _lines(records: Sequence[Record]) -> list[bytes]:
    """The first of them, one at least, as many as fit."""
    lines: list[bytes] = []
    size = 0
    for record in records:
        line = encoded(record)
        size += len(line)
        if lines and size > _MOST_BYTES:
            break
        lines.append(line)
    return lines
