"""Uploaded files in the spool: ``work/files/<id>`` has the content and, beside it, what its row in the index says.

A file is written in ``work/uploads`` and renamed when all of it is durable. The directory in ``work/files`` is the
file; its row is found again from it. So a crash leaves a whole file or nothing that anybody sees.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from obatchd import crash_points
from obatchd.jobs.store import FileRow
from obatchd.spool.flush import sync_paths
from obatchd.spool.layout import Layout

_CONTENT, _ABOUT = "content", "file.json"


class UploadDirectories:
    """Where the files of a spool are, and those on their way. Raises OSError where the disk refuses."""

    def __init__(self, layout: Layout) -> None:
        self.files = layout.work / "files"
        self._uploads = layout.work / "uploads"

    def prepare(self) -> None:
        """Make the directories; uploads that an earlier run did not finish go."""
        for path in (self.files, self._uploads):
            path.mkdir(mode=0o700, exist_ok=True)
        for path in self._uploads.iterdir():
            shutil.rmtree(path)

    def content(self, file: str) -> Path:
        """The bytes of a file."""
        return self.files / file / _CONTENT

    def begin(self, file: str) -> BinaryIO:
        """The content of a new file, to be written."""
        (self._uploads / file).mkdir(mode=0o700)
        return open(self._uploads / file / _CONTENT, "xb", opener=_private)

    def finish(self, row: FileRow, content: BinaryIO) -> None:
        """Make a file durable and put it into its place."""
        directory = self._uploads / row.id
        content.flush()
        os.fsync(content.fileno())
        content.close()
        with open(directory / _ABOUT, "xb", opener=_private) as about:
            about.write(msgspec.json.encode(row))
        sync_paths([directory / _ABOUT, directory])
        crash_points.reach("files.after_write")
        directory.rename(self.files / row.id)
        sync_paths([self.files])

    def abandon(self, file: str) -> None:
        """Forget a file that was not finished."""
        shutil.rmtree(self._uploads / file, ignore_errors=True)

    def remove(self, file: str) -> None:
        """Delete a file: at one instant, by a rename."""
        gone = self._uploads / f"{file}.{time.monotonic_ns()}"
        with suppress(FileNotFoundError):
            (self.files / file).rename(gone)
            sync_paths([self.files])
            shutil.rmtree(gone)

    def there(self) -> set[str]:
        """The ids of all files."""
        return set(os.listdir(self.files))

    def rows(self, files: Iterable[str]) -> Iterator[FileRow]:
        """What these files say of themselves; one that says nothing of use is none."""
        for file in files:
            with suppress(OSError, msgspec.DecodeError):
                row = msgspec.json.decode((self.files / file / _ABOUT).read_bytes(), type=FileRow)
                if row.id == file and row.size == self.content(file).stat().st_size:
                    yield row


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
