"""The file of a burn-in run: one record a line, appended and flushed, so that a run survives whatever ends the daemon.

It stands for itself: report, verdict and bundle are worked out from it, here or on another host.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs
import msgspec

from obatchd import log
from obatchd.burnin.journal.records import Begun, Ended, Loading, Prepared, Record, Tracks
from obatchd.errors import NotFoundError, StoreError
from obatchd.gpus.track import Track

_log = log.get(__name__)
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)
_SUFFIX = ".jsonl"
_LAST_BYTES = 65_536  # the end of a run is within them; a day of eight GPUs has ten million


class Journal:
    """Appends to one run's file.

    A thread may still be writing when the run is left and the file is closed: the lock keeps its number from becoming
    another file's meanwhile.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._lock = threading.Lock()
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":  # a torn line
            os.write(self._file, b"\n")

    def append(self, records: Iterable[Record]) -> None:
        """Write records so that they survive a power cut.

        Raises OSError where the disk refuses, or the file is closed; nothing was added, so the same records may be
        given again.
        """
        data = b"".join(encoded(record) + b"\n" for record in records)
        if not data:
            return
        with self._lock:
            size = os.fstat(self._file).st_size
            try:
                if os.write(self._file, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, size)
                raise

    def close(self) -> None:
        """Close the file after the records being written; blocks."""
        with self._lock, contextlib.suppress(OSError):
            file, self._file = self._file, -1
            os.close(file)


@attrs.define(eq=False)
class RecordWriter:
    """Keeps records that the disk refuses and tries them again with the next."""

    records: list[Record]  # all of the run so far, written or not
    _file: Journal
    _unwritten: list[Record] = attrs.field(factory=list, init=False)
    _lock: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)

    async def write(self, *records: Record) -> None:
        """Add these to the run."""
        self.records += records
        self._unwritten += records
        async with self._lock:
            batch, self._unwritten = self._unwritten, []
            try:
                await asyncio.to_thread(self._file.append, batch)
            except OSError as error:
                self._unwritten = [*batch, *self._unwritten]
                _log.error("burnin_not_written", run=begun(self.records).plan.run, reason=str(error))


def encoded(record: Record) -> bytes:
    """A record as a line of a journal, without its end."""
    return _encoder.encode(record)


def decoded(lines: Iterable[bytes]) -> list[Record]:
    """The records in lines; torn ones, and those of another version that are not known here, are passed over."""
    records: list[Record] = []
    for line in lines:
        with contextlib.suppress(msgspec.DecodeError):
            records.append(_decoder.decode(line))
    return records


def read(path: Path) -> list[Record]:
    """Every whole record of a run; torn lines of a crash are passed over.

    Raises StoreError where the file does not begin as a run does.
    """
    records = decoded(path.read_bytes().splitlines())
    if not records or not isinstance(records[0], Begun):
        raise StoreError(f"{path} is not the journal of a burn-in run.")
    return records


def begun(records: Sequence[Record]) -> Begun:
    first = records[0]
    assert isinstance(first, Begun)  # read() has made sure
    return first


def ended(records: Sequence[Record]) -> Ended | None:
    return next((record for record in reversed(records) if isinstance(record, Ended)), None)


def prepared(records: Sequence[Record]) -> dict[str, Prepared]:
    """The latest preparation of each server."""
    return {record.server: record for record in records if isinstance(record, Prepared)}


def loading_s(records: Sequence[Record]) -> float | None:
    """When the load began."""
    return next((record.at_s for record in records if isinstance(record, Loading)), None)


def tracks(records: Iterable[Record]) -> dict[str, Track]:
    """The latest track of each GPU."""
    known: dict[str, Track] = {}
    for record in records:
        if isinstance(record, Tracks):
            known.update(record.tracks)
    return known


@attrs.define(eq=False)
class Shelf:
    """The runs of a spool: ``<directory>/<run>.jsonl``."""

    _directory: Path

    def path(self, run: str) -> Path:
        return self._directory / f"{run}{_SUFFIX}"

    def runs(self) -> list[str]:
        """Ids, oldest first."""
        return sorted(path.name.removesuffix(_SUFFIX) for path in self._directory.glob(f"*{_SUFFIX}"))

    def prune(self, keep_runs: int, before_s: float, spare: str) -> list[str]:
        """Delete all but the newest runs, and those last written before ``before_s``; never ``spare``.

        Returns the ids of those deleted. Raises OSError where the disk refuses.
        """
        runs = self.runs()
        old = [run for run in runs if run in runs[:-keep_runs] or self.path(run).stat().st_mtime < before_s]
        deleted = [run for run in old if run != spare]
        for run in deleted:
            self.path(run).unlink()
        return deleted

    def ends(self, run: str) -> tuple[Begun, Ended | None]:
        """First record of a run, and the last one if the run is over. Raises StoreError where its file is damaged."""
        last: Record | None = None
        with open(self.path(run), "rb") as file, contextlib.suppress(msgspec.DecodeError):
            first = _decoder.decode(file.readline())
            file.seek(-min(_LAST_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
            if isinstance(first, Begun):
                with contextlib.suppress(msgspec.DecodeError):  # torn, or too long for the last record of a run
                    last = _decoder.decode(file.read().splitlines()[-1])
                return first, last if isinstance(last, Ended) else None
        raise StoreError(f"{self.path(run)} is not the journal of a burn-in run.")

    def read(self, run: str) -> list[Record]:
        """The records of a run, by its id, the beginning of it, or ``latest``.

        Raises NotFoundError where there is no such run, or several, StoreError where its file is damaged.
        """
        runs = self.runs()
        if not runs:
            raise NotFoundError("no burn-in has been run here; obatchctl burnin start begins one")
        found = runs[-1:] if run == "latest" else [name for name in runs if name.startswith(run)]
        if len(found) != 1:
            known = f"several burn-ins begin with {run}" if found else f"no burn-in {run}"
            raise NotFoundError(f"{known}; obatchctl burnin list shows them")
        return read(self.path(found[0]))
