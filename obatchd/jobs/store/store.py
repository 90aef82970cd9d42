"""The store as the engine sees it: ``state.db`` plus the segments, each job found in its own."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from obatchd.errors import StoreError
from obatchd.jobs.model import Entry, Intent, Outcome
from obatchd.jobs.store.integrity import Session, delete_database, delete_set_aside, is_damaged, set_aside, size_bytes
from obatchd.jobs.store.job_row import JobRow
from obatchd.jobs.store.rows import AttemptRow, CostRow, IndexedChunk, ResultRow
from obatchd.jobs.store.schema import BACKUP_MARK
from obatchd.jobs.store.segment import Segment
from obatchd.jobs.store.state import StateStore
from obatchd.settings.current import Current
from obatchd.settings.job import FrozenSettings
from obatchd.settings.settings import Settings

# A drop above this size gets a segment of its own, so that its store goes away with it.
_OWN_SEGMENT_BYTES = 4 * 1024**2
_SEGMENT_JOBS = 10_000
_SEGMENT_BYTES = 64 * 1024**2
_OPEN_SEGMENTS = 64
_Opened = TypeVar("_Opened")


class IndexBatch(msgspec.Struct):
    """Entries of one job to be indexed; ``final`` when the drop is read to its end."""

    job: JobRow
    entries: list[Entry]
    final: bool


class Store:
    """Synchronous and safe to use from several threads; the engine calls it from its own store threads.

    A damaged file is set aside and begun anew: the jobs of a segment are indexed again from their inputs, the index of
    jobs is rebuilt (``state.is_complete``). Raises StoreError where a file cannot be opened.
    """

    def __init__(self, work: Path, settings: Current[Settings]) -> None:
        self._session = Session(work / "session")
        self._looked_at: set[Path] = set()
        self._damaged = False
        self._directory = work / "segments"
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._segments: dict[str, Segment] = {}
        self._lock = threading.Lock()
        self._shared_name = ""
        self._shared_jobs = 0
        try:
            self.state = self._sound(work / "state.db", lambda path: StateStore(path, self._choose_segment, settings))
        except StoreError as error:
            if error.code == "store_newer":
                self._session.undo()
            raise

    def distrust(self) -> None:
        """Damage was met: the next start reads every file before it trusts it."""
        self._damaged = True

    def close(self) -> None:
        with self._lock:
            for segment in self._segments.values():
                segment.close()
            self._segments.clear()
        self.state.close()
        self._session.end(damaged=self._damaged)

    def _sound(self, path: Path, open_it: Callable[[Path], _Opened]) -> _Opened:
        """The file at ``path`` as ``open_it`` opens it, or an empty one in its place where it is damaged."""
        if self._session.suspicious and path not in self._looked_at:
            if is_damaged(path):
                set_aside(path)
            self._looked_at.add(path)
        try:
            return open_it(path)
        except StoreError as error:
            if error.code != "store_corrupt":
                raise
            set_aside(path)
            return open_it(path)

    def _choose_segment(self, intent: Intent) -> str:
        if intent.size > _OWN_SEGMENT_BYTES:
            return intent.job
        shared = self._segments.get(self._shared_name)
        full = self._shared_jobs >= _SEGMENT_JOBS or (shared is not None and size_bytes(shared.path) > _SEGMENT_BYTES)
        if not self._shared_name or full:
            self._shared_name, self._shared_jobs = f"shared-{intent.job}", 0
        self._shared_jobs += 1
        return self._shared_name

    def segment(self, name: str) -> Segment:
        """The open segment ``name``; created where it is new."""
        with self._lock:
            segment = self._segments.get(name)
            if segment is None:
                segment = self._segments[name] = self._sound(self._directory / f"{name}.db", Segment)
            return segment

    def jobs_in_segments(self) -> dict[str, tuple[int, str, FrozenSettings | None]]:
        """Key, segment and defaults (where they are known) of every job that any segment knows, by job id."""
        found: dict[str, tuple[int, str, FrozenSettings | None]] = {}
        for path in sorted(self._directory.glob("*.db")):
            jobs = self.segment(path.stem).jobs()
            found.update({job: (key, path.stem, defaults) for key, job, defaults in jobs})
            self._close_but_few({path.stem})
        return found

    def keeps(self, job: JobRow) -> bool:
        """Whether the file is there that has the requests of a job."""
        return job.segment in self._segments or (self._directory / f"{job.segment}.db").exists()

    def of(self, job: JobRow) -> Segment:
        return self.segment(job.segment)

    def write_index(self, batches: Sequence[IndexBatch]) -> list[IndexedChunk]:
        """Index entries of several jobs with one commit per segment; the answer is in the order given."""
        by_segment: dict[str, list[int]] = defaultdict(list)
        for position, batch in enumerate(batches):
            by_segment[batch.job.segment].append(position)
        chunks: dict[int, IndexedChunk] = {}
        for name, positions in by_segment.items():
            rows = [(b.job.key, b.job.job, b.job.defaults, b.entries, b.final) for p in positions if (b := batches[p])]
            chunks.update(zip(positions, self.segment(name).write_index(rows), strict=True))
        return [chunks[position] for position in range(len(batches))]

    def write_results(
        self,
        results: Sequence[tuple[str, ResultRow]],
        attempts: Sequence[tuple[str, AttemptRow]],
        costs: Sequence[tuple[str, CostRow]] = (),
    ) -> set[tuple[int, int]]:
        """As :meth:`Segment.write_results`, given with the name of their segment; one commit per segment."""
        grouped: dict[str, tuple[list[ResultRow], list[AttemptRow], list[CostRow]]]
        grouped = defaultdict(lambda: ([], [], []))
        for name, result in results:
            grouped[name][0].append(result)
        for name, attempt in attempts:
            grouped[name][1].append(attempt)
        for name, sums in costs:
            grouped[name][2].append(sums)
        other: set[tuple[int, int]] = set()
        for name, rows in grouped.items():
            other |= self.segment(name).write_results(*rows)
        return other

    def results(self, job: JobRow) -> Generator[tuple[int, Outcome, bytes], None, None]:
        """(line, outcome, record) of every finished request of ``job``, in input order."""
        return self.of(job).results(job.key)

    def settle(self, job: JobRow) -> None:
        """A published job is read seldom: the segment it had for itself gives back its memory."""
        if job.segment == job.job:
            self.of(job).rest()

    def release(self, job: JobRow) -> None:
        """Give up a finished job's requests; its segment goes when no other job needs it."""
        self.state.update(job.key, released=1)
        if job.segment != self._shared_name and self.state.unreleased_in(job.segment) == 0:
            self._delete_segment(job.segment)

    def erase(self, jobs: Sequence[JobRow]) -> None:
        """Delete all that the store knows of jobs that are over, copies made before upgrades included.

        Files set aside as damaged go too: their jobs cannot be told apart.

        Raises:
            sqlite3.OperationalError: the disk refuses, or a result is being read; may be asked again.
        """
        by_segment: dict[str, list[int]] = defaultdict(list)
        for job in jobs:
            self.state.update(job.key, released=1)
            by_segment[job.segment].append(job.key)
        for name, keys in by_segment.items():
            if name != self._shared_name and self.state.unreleased_in(name) == 0:
                self._delete_segment(name)
            elif (self._directory / f"{name}.db").exists():
                self.segment(name).erase(keys)
        self.state.erase([job.key for job in jobs])
        delete_set_aside(self._directory.parent, float("inf"))
        delete_set_aside(self._directory.parent, float("inf"), BACKUP_MARK)

    def erase_results(self, job: JobRow, *, succeeded: bool) -> None:
        """As :meth:`Segment.erase_results`; nothing where the segment is given up already."""
        if (self._directory / f"{job.segment}.db").exists():
            self.of(job).erase_results(job.key, succeeded=succeeded)

    def _delete_segment(self, name: str) -> None:
        """Only after everything in it is published and flushed."""
        segment = self.segment(name)
        segment.close()
        delete_database(segment.path)
        with self._lock:
            self._segments.pop(name, None)

    def remove_unused(self) -> None:
        """Delete segments that no job needs any more: a crash came between giving up a job and deleting its file."""
        for path in self._directory.glob("*.db"):
            name = path.stem
            if name not in self._segments and name != self._shared_name and not self.state.unreleased_in(name):
                delete_database(path)

    def trim(self, in_use: set[str]) -> None:
        """Close segments that no live job uses, so that open files stay few; those that stay open rest."""
        for segment in self._close_but_few(in_use):
            segment.rest()

    def _close_but_few(self, in_use: set[str]) -> list[Segment]:
        """Close the oldest segments beside ``in_use``; those that stay open beside these."""
        with self._lock:
            idle = [n for n in self._segments if n not in in_use and n != self._shared_name]
            most = max(0, len(self._segments) - _OPEN_SEGMENTS)
            for name in idle[:most]:
                self._segments.pop(name).close()
            return [self._segments[name] for name in idle[most:]]
