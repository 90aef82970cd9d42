"""Files on their way in: within the limits of their owners and of the disk, and gone without a trace when cut off."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, BinaryIO

from attrs import define, field

from obatchd import log
from obatchd.control.programs import FileTerms
from obatchd.documents.programs import FileObject
from obatchd.errors import ApiError
from obatchd.jobs.model import JobIds
from obatchd.jobs.store import FileRow
from obatchd.live.work import Work
from obatchd.operations.jobs import disk_faults_told
from obatchd.operations.outputs import FILE, INPUT_PURPOSE
from obatchd.spool.uploads import UploadDirectories
from obatchd.tasks import to_its_end
from obatchd.words import binary_size, counted

_log = log.get(__name__)
_DAY_S = 86400.0
# Uploads leave so many times min_free_bytes free: batch work is held up after them.
_SPARE = 2


@define(eq=False)
class Uploading:
    """Begins uploads, and counts those under way. Called from the main loop."""

    _work: Work
    directories: UploadDirectories
    _ids: JobIds = field(init=False)
    _files: Counter[int] = field(factory=Counter, init=False)  # under way, by owner
    _bytes: Counter[int] = field(factory=Counter, init=False)

    def __attrs_post_init__(self) -> None:
        self._ids = JobIds(self._work.store.state.programs.last_file().removeprefix(FILE))

    @disk_faults_told()
    async def begin(self, owner: int, name: str) -> IncomingFile:
        """As :meth:`obatchd.control.programs.FileOperations.begin`."""
        limit = self._work.settings.value.limits.files
        kept, _ = self._work.store.state.programs.kept_by(owner)
        if limit and kept + self._files[owner] >= limit:
            reason = f"you have {counted(kept, 'file')} and may keep {limit:,} (files in [limits]); delete some"
            raise ApiError(reason, status=429, code="file_limit_exceeded")
        self._check_space(0)
        file = FILE + self._ids.new()
        beginning = asyncio.ensure_future(asyncio.to_thread(self.directories.begin, file))
        try:
            content = await asyncio.shield(beginning)
        except asyncio.CancelledError:  # the client has gone in this moment
            await asyncio.wait([beginning])
            if beginning.exception() is None:
                beginning.result().close()
            await asyncio.to_thread(self.directories.abandon, file)
            raise
        self._files[owner] += 1
        return IncomingFile(self, FileRow(file, owner, name, 0, 0.0, None), content)

    def grow(self, row: FileRow, more_bytes: int) -> None:
        """An upload is to get larger; raises ApiError where it may not."""
        settings = self._work.settings.value
        most = settings.http.max_file_bytes or settings.inbox.max_unpacked_bytes
        if row.size + more_bytes > most:
            reason = f"the file has more than {binary_size(most)}, the most that is taken (max_file_bytes in [http])"
            raise ApiError(reason, status=413, code="file_too_large", param="file")
        if limit := settings.limits.files_bytes:
            _, kept = self._work.store.state.programs.kept_by(row.owner)
            if kept + self._bytes[row.owner] + more_bytes > limit:
                most_words = f"{binary_size(limit)} (files_bytes in [limits])"
                reason = f"your files have {binary_size(kept)} and may have {most_words}; delete some"
                raise ApiError(reason, status=429, code="file_limit_exceeded")
        self._check_space(more_bytes)
        self._bytes[row.owner] += more_bytes
        row.size += more_bytes

    def _check_space(self, more_bytes: int) -> None:
        """Raises ApiError where the disk has no room for an upload: batch work needs what is left."""
        least = _SPARE * self._work.settings.value.disk.min_free_bytes
        free = self._work.layout.free()
        if free.read_only or free.bytes - more_bytes < least:
            left = f"{binary_size(free.bytes)} are left, {binary_size(least)} must stay free"
            reason = f"the disk of the daemon has no room for files: {left}"
            raise ApiError(reason, status=507, code="insufficient_storage")

    @disk_faults_told()
    async def finish(self, row: FileRow, content: BinaryIO, terms: FileTerms) -> None:
        """Make an upload a file; raises ApiError where its terms are none that a file can have."""
        if terms.purpose != INPUT_PURPOSE:
            reason = f"purpose must be {INPUT_PURPOSE!r}: obatchd takes files for batches alone"
            raise ApiError(reason, param="purpose")
        keep_s = terms.expires_after_s
        if keep_s is None:
            keep_s = round(self._work.settings.value.http.file_days * _DAY_S) or None
        row.created_s = time.time()
        row.expires_s = row.created_s + keep_s if keep_s is not None else None
        await asyncio.to_thread(self.directories.finish, row, content)
        await asyncio.to_thread(self._work.store.state.programs.add_files, [row])
        _log.info("file_uploaded", file=row.id, owner=row.owner, size=row.size)

    def over(self, row: FileRow) -> None:
        """An upload is over, whatever became of it."""
        self._files[row.owner] -= 1
        self._bytes[row.owner] -= row.size


class IncomingFile:
    """Implements :class:`obatchd.control.programs.Upload`; threads write it."""

    def __init__(self, uploading: Uploading, row: FileRow, content: BinaryIO) -> None:
        self._uploading = uploading
        self._row = row
        self._content = content
        self._over = False

    @disk_faults_told()
    async def write(self, block: bytes) -> None:
        self._uploading.grow(self._row, len(block))
        await _in_thread(self._content.write, block)

    async def finish(self, terms: FileTerms) -> FileObject:
        # To its end, also where the client is gone: it may be whole already.
        await to_its_end(self._uploading.finish(self._row, self._content, terms))
        self._end()
        return file_object(self._row)

    async def abandon(self) -> None:
        if not self._over:
            self._end()
            await _in_thread(self._abandon)

    def _end(self) -> None:
        self._over = True
        self._uploading.over(self._row)

    def _abandon(self) -> None:
        with contextlib.suppress(OSError):  # the disk did not take the last bytes, which are deleted anyway
            self._content.close()
        self._uploading.directories.abandon(self._row.id)


async def _in_thread(work: Callable[..., Any], *given: bytes) -> None:
    await to_its_end(asyncio.to_thread(work, *given))


def file_object(row: FileRow) -> FileObject:
    """An uploaded file as programs see it."""
    return FileObject(
        id=row.id,
        bytes=row.size,
        created_at=int(row.created_s),
        expires_at=None if row.expires_s is None else int(row.expires_s),
        filename=row.name,
        purpose=INPUT_PURPOSE,
    )
