"""Fetched texts, kept for their owner alone: nobody must learn from it which pages another user read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

import msgspec

_TRIM_EVERY = 100  # stored entries between two looks at the size of all


class Entry(msgspec.Struct):
    """One text with the server's validators. ``checked_s`` is when that was last true (epoch)."""

    url: str
    title: str
    text: str
    checked_s: float
    fresh_s: float  # how long after checked_s it need not be asked for
    etag: str = ""
    last_modified: str = ""


class SourceCache:
    """Files ``<directory>/<owner>/<hash of the URL>``; the longest unused go first when there are too many bytes."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._directory = directory
        self._stored = 0

    def get(self, owner: int, url: str) -> Entry | None:
        """The entry of ``url``; a damaged one counts as none."""
        path = self._path(owner, url)
        try:
            entry = msgspec.msgpack.decode(path.read_bytes(), type=Entry)
            os.utime(path)  # its last use
        except (OSError, msgspec.DecodeError):
            return None
        return entry if entry.url == url else None

    def put(self, owner: int, entry: Entry) -> None:
        """Keep ``entry``; on a disk that refuses nothing is kept."""
        path = self._path(owner, entry.url)
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_bytes(msgspec.msgpack.encode(entry))
            temporary.replace(path)
            self._stored += 1
            if self._stored % _TRIM_EVERY == 1:
                self.trim()

    def trim(self) -> None:
        """Delete the longest unused entries until all together are within the limit."""
        found: list[tuple[float, int, Path]] = []
        for path in self._directory.glob("*/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        excess = sum(size for _, size, _ in found) - self.limit_bytes
        for _, size, path in sorted(found):
            if excess <= 0:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                excess -= size

    def _path(self, owner: int, url: str) -> Path:
        return self._directory / str(owner) / hashlib.sha256(url.encode()).hexdigest()


def is_fresh(entry: Entry) -> bool:
    """Whether an entry may be used without asking its server."""
    return 0 <= time.time() - entry.checked_s < entry.fresh_s
