"""Files of programs: those that they upload, and those of their batches."""

from __future__ import annotations

import asyncio
import heapq
import re
import time
from collections.abc import Iterator
from pathlib import Path

from attrs import define, field

from obatchd import log
from obatchd.control.auth import Caller
from obatchd.control.programs import Content, Selection
from obatchd.documents.audit import FILE_REMOVED
from obatchd.documents.programs import DeletedFile, FileObject, Page
from obatchd.errors import ApiError
from obatchd.jobs.store import DISK_ERRORS, FileRow
from obatchd.live.work import Part
from obatchd.operations.audit import of_another, recorded
from obatchd.operations.jobs import disk_faults_told
from obatchd.operations.outputs import FILE, INPUT_PURPOSE, JOB_ID, OF_JOB, OUTPUT_PURPOSE, Outputs, file_not_found
from obatchd.operations.uploading import IncomingFile, Uploading, file_object
from obatchd.spool.uploads import UploadDirectories

_log = log.get(__name__)
_UPLOADED = re.compile(rf"file-{JOB_ID}")
_PAGE = 1000  # rows of the index at a time
_SWEEP_S = 60.0
_LAST = "~"  # behind every character of an id


@define(eq=False)
class Files(Part):
    """Implements :class:`obatchd.control.programs.FileOperations`, which says what each method does."""

    outputs: Outputs = field(init=False)
    _directories: UploadDirectories = field(init=False)
    _uploading: Uploading = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.outputs = Outputs(self._work)
        self._directories = UploadDirectories(self._work.layout)

    async def start(self) -> None:
        """Bring index and directories together after a crash, then look for what has expired now and then."""
        await asyncio.to_thread(self._agree)
        self._uploading = Uploading(self._work, self._directories)
        self._tasks.start(self._sweep(), "files")

    def _agree(self) -> None:
        """The directories are the files: rows without one go, one without a row gets it."""
        programs = self._work.store.state.programs
        try:
            self._directories.prepare()
            there, known = self._directories.there(), programs.all_files()
            if lost := known - there:
                programs.remove_files(sorted(lost))
            if found := [*self._directories.rows(there - known)]:
                programs.add_files(found)
        except DISK_ERRORS as error:  # the next start does it
            _log.error("files_not_read", reason=log.reason(error))

    async def begin(self, caller: Caller, name: str) -> IncomingFile:
        return await self._uploading.begin(caller.uid, name)

    # Looking.

    def one(self, caller: Caller, file: str) -> FileObject:
        if _UPLOADED.fullmatch(file):
            return file_object(self.uploaded(caller, file))
        return self.outputs.one(*self.outputs.of_job(caller, file)).document

    def uploaded(self, caller: Caller, file: str) -> FileRow:
        """The row of an uploaded file; raises ApiError where there is none."""
        row = self._work.store.state.programs.file(file)
        if row is None or not caller.may_see(row.owner) or (row.expires_s is not None and row.expires_s <= time.time()):
            raise file_not_found(file)
        return row

    def path_of(self, row: FileRow) -> Path:
        """The content of an uploaded file."""
        return self._directories.content(row.id)

    def content(self, caller: Caller, file: str) -> Content:
        if _UPLOADED.fullmatch(file):
            row = self.uploaded(caller, file)
            return Content(self.path_of(row), row.name)
        output = self.outputs.one(*self.outputs.of_job(caller, file))
        return Content(output.path, output.document.filename)

    async def all(self, caller: Caller, selection: Selection) -> Page[FileObject]:
        return await asyncio.to_thread(self._page, caller, selection)

    def _page(self, caller: Caller, selection: Selection) -> Page[FileObject]:
        owner = None if caller.is_administrator else caller.uid
        sources: list[Iterator[FileObject]] = []
        if selection.purpose in (None, INPUT_PURPOSE):
            sources.append(self._uploaded_from(owner, selection))
        if selection.purpose in (None, OUTPUT_PURPOSE):
            sources.append(self._outputs_from(owner, selection))
        found, more = list[FileObject](), False
        for file in heapq.merge(*sources, key=lambda file: file.id, reverse=selection.descending):
            if more := len(found) == selection.limit:
                break
            found.append(file)
        first, last = (found[0].id, found[-1].id) if found else (None, None)
        return Page(data=found, first_id=first, last_id=last, has_more=more)

    def _uploaded_from(self, owner: int | None, selection: Selection) -> Iterator[FileObject]:
        after, now_s = selection.after or "", time.time()
        while rows := self._work.store.state.programs.files(owner, after, _PAGE, descending=selection.descending):
            yield from (file_object(row) for row in rows if row.expires_s is None or row.expires_s > now_s)
            after = rows[-1].id

    def _outputs_from(self, owner: int | None, selection: Selection) -> Iterator[FileObject]:
        """From the job of ``after`` on, itself included: where one of its files was the last, the other may follow."""
        after, down = selection.after or "", selection.descending
        of_job = OF_JOB.fullmatch(after)
        job = of_job[1] if of_job else after.removeprefix(FILE)
        reached = job + _LAST if down and job else job[:-1]
        while rows := self._work.store.state.programs.batch_jobs(owner, reached, _PAGE, descending=down):
            for row in rows:
                files = sorted(self.outputs.all(row), key=lambda file: file.id, reverse=down)
                yield from (f.document for f in files if not after or (f.id < after if down else f.id > after))
            reached = rows[-1].job

    # Deleting.

    @disk_faults_told()
    async def remove(self, caller: Caller, file: str) -> DeletedFile:
        if _UPLOADED.fullmatch(file):
            row = self.uploaded(caller, file)
            async with recorded(self._work.audit, *of_another(caller, FILE_REMOVED, file, row.owner)):
                await asyncio.to_thread(self._remove_uploaded, row)
            _log.info("file_removed", file=file, owner=row.owner)
            return DeletedFile(file)
        job, part = self.outputs.of_job(caller, file)
        self.outputs.one(job, part)
        if part == "input":
            reason = f"it was dropped into the inbox and goes with its job: obatchctl rm {job.job}"
            raise ApiError(reason, status=409, code="file_of_a_drop", param="id")
        async with recorded(self._work.audit, *of_another(caller, FILE_REMOVED, file, job.owner)):
            await asyncio.to_thread(self.outputs.remove, job, part)
        return DeletedFile(file)

    def _remove_uploaded(self, row: FileRow) -> None:
        """The directory first: a crash leaves a row without one, which the next start deletes."""
        self._directories.remove(row.id)
        self._work.store.state.programs.remove_files([row.id])

    async def _sweep(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._remove_expired)
            except DISK_ERRORS as error:  # tried again a minute later
                _log.error("files_not_removed", reason=log.reason(error))
            await asyncio.sleep(_SWEEP_S)

    def _remove_expired(self) -> None:
        for row in self._work.store.state.programs.expired_files(time.time()):
            self._remove_uploaded(row)
            _log.info("file_expired", file=row.id, owner=row.owner)
        self.outputs.remove_expired()
