"""Deleting results and refused drops: old ones where the administrator asked for it, those of a job on demand."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from obatchd import log
from obatchd.spool.layout import Layout

_log = log.get(__name__)


def prune(layout: Layout, before_s: float) -> None:
    """Delete results and refused drops that are older than this wall-clock time.

    Each directory is renamed out of sight first, so that nobody reads half of it. Raises OSError where the disk
    refuses.
    """
    for path in list(layout.outbox_dirs()):
        if _changed_s(path / "summary.json", before_s) < before_s:
            discard(layout, path)
    prune_refused(layout, before_s)


def prune_refused(layout: Layout, before_s: float) -> None:
    """Delete drops refused before this wall-clock time, also those that never were a job.

    Raises OSError where the disk refuses.
    """
    for owner in list(layout.failed.iterdir()):
        if owner.is_symlink() or not owner.is_dir():
            continue
        for path in list(owner.iterdir()):
            if path.is_dir() and _changed_s(path, before_s) < before_s:
                discard(layout, path)


def discard(layout: Layout, path: Path) -> None:
    """Delete a directory whole; nothing happens where there is none. Raises OSError where the disk refuses."""
    trash = _trash(layout)
    trash.mkdir(mode=0o700, exist_ok=True)
    with suppress(FileNotFoundError):
        os.rename(path, trash / f"{path.name}.{time.monotonic_ns()}")
    for whole in list(trash.iterdir()):
        if whole.name.startswith(f"{path.name}."):  # also one that the disk did not let go when it was asked before
            delete_tree(whole)
            _log.info("deleted", job=path.name.rpartition(".")[2])


def empty_trash(layout: Layout) -> None:
    """Delete the rest of a deletion that the end of a daemon cut short."""
    with suppress(OSError):
        delete_tree(_trash(layout))


def delete_tree(path: Path) -> None:
    """Delete a directory whole, with folders in it that their owner has closed. Raises OSError where it cannot be."""
    try:
        shutil.rmtree(path)
    except PermissionError:
        for folder, folders, _ in os.walk(path):
            for inside in (os.path.join(folder, name) for name in folders):
                if not os.path.islink(inside):
                    os.chmod(inside, 0o700)
        shutil.rmtree(path)


def _trash(layout: Layout) -> Path:
    return layout.work / "trash"


def _changed_s(path: Path, otherwise: float) -> float:
    with suppress(OSError):
        return path.lstat().st_mtime
    return otherwise
