"""What the tests of the spool see of the operating system: who asks, and what the disk was made to keep."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from obatchd.spool import flush
from obatchd.spool.layout import Layout

_NOBODY = 65534


@contextlib.contextmanager
def unprivileged() -> Iterator[Path]:
    """Run as a user who may not read everything; yields a directory that this user may come to, unlike root's own."""
    with tempfile.TemporaryDirectory() as directory:
        if os.geteuid() != 0:
            yield Path(directory)
            return
        os.chown(directory, _NOBODY, _NOBODY)
        os.seteuid(_NOBODY)
        try:
            yield Path(directory)
        finally:
            os.seteuid(0)


def two_mounts(layout: Layout) -> Callable[..., None]:
    """os.rename as it is where inbox, outbox and failed are mounts of their own."""
    rename = os.rename

    def place(path: Any) -> Path | None:
        return next((top for top in (layout.inbox, layout.outbox, layout.failed) if top in Path(path).parents), None)

    def refusing(source: Any, target: Any, **named: Any) -> None:
        os.lstat(source)
        if place(source) != place(target):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target, **named)

    return refusing


class Disk:
    """Notes what is flushed: inodes that fsync(2) was called for, and whether syncfs(2) was."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._inodes: set[tuple[int, int]] = set()
        self.order: list[Path] = []
        self.whole = 0
        fsync, syncfs = os.fsync, flush._libc.syncfs

        def note_file(descriptor: int) -> None:
            fsync(descriptor)
            status = os.fstat(descriptor)
            self._inodes.add((status.st_dev, status.st_ino))
            self.order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

        def note_filesystem(descriptor: int) -> int:
            self.whole += 1
            return int(syncfs(descriptor))

        monkeypatch.setattr(os, "fsync", note_file)
        monkeypatch.setattr(flush._libc, "syncfs", note_filesystem)

    def missing(self, *paths: Path) -> list[Path]:
        """Those that a power cut now could take away."""
        stats = [(path, path.lstat()) for path in paths]
        return [] if self.whole else [p for p, s in stats if (s.st_dev, s.st_ino) not in self._inodes]
