"""Writes the records of a run into its journal, over a disk that refuses for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from obatchd import log
from obatchd.burnin.journal import journal
from obatchd.burnin.journal.records import Record

_log = log.get(__name__)


class RecordWriter:
    """Keeps records that the disk refuses and tries them again with the next.

    Attributes:
        records: all of the run so far, written or not.
    """

    def __init__(self, records: list[Record], file: journal.Journal) -> None:
        self.records = records
        self._file = file
        self._unwritten: list[Record] = []
        self._lock = asyncio.Lock()

    async def write(self, records: Sequence[Record]) -> None:
        """Add these to the run."""
        self.records += records
        self._unwritten += records
        async with self._lock:
            batch, self._unwritten = self._unwritten, []
            try:
                await asyncio.to_thread(self._file.append, batch)
            except OSError as error:
                self._unwritten = [*batch, *self._unwritten]
                _log.error("burnin_not_written", run=journal.begun(self.records).plan.run, reason=str(error))
