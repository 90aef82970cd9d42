"""Making files and renames durable: one by one with fsync, many at once with syncfs(2)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def sync_filesystem(path: Path) -> None:
    """Flush everything written to the file system of ``path``; Python has no syncfs.

    Raises OSError where the disk refused, now or since the last call (Linux 5.8 reports it once per open file).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


def sync_paths(paths: Iterable[Path]) -> None:
    """fsync each file or directory, in the order given."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def tree(path: Path) -> list[Path]:
    """A file, or a directory with all it contains, deepest first; links are left out."""
    if path.is_symlink():
        return []
    if not path.is_dir():
        return [path]
    found = []
    for child in path.iterdir():
        found += tree(child)
    return [*found, path]
