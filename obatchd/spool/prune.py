"""Deleting old results and refused drops, where the administrator asked for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from obatchd import log
from obatchd.spool.layout import Layout

_log = log.get(__name__)


def prune(layout: Layout, before_s: float) -> None:
    """Delete what was complete in the outbox, or refused, before this wall-clock time.

    Each directory is renamed out of sight first, so that nobody reads half of it.

    Raises:
        OSError: the disk refuses.
    """
    trash = layout.work / "trash"
    shutil.rmtree(trash, ignore_errors=True)  # of a run that was cut short
    for path in _old(layout, before_s):
        trash.mkdir(mode=0o700, exist_ok=True)
        os.rename(path, trash / path.name)
        shutil.rmtree(trash / path.name, ignore_errors=True)
        _log.info("pruned", path=path)


def _old(layout: Layout, before_s: float) -> Iterator[Path]:
    for path in list(layout.outbox_dirs()):
        if _changed_s(path / "summary.json", before_s) < before_s:
            yield path
    for owner in list(layout.failed.iterdir()):
        if owner.is_symlink() or not owner.is_dir():
            continue
        for path in list(owner.iterdir()):
            if path.is_dir() and _changed_s(path, before_s) < before_s:
                yield path


def _changed_s(path: Path, otherwise: float) -> float:
    with suppress(OSError):
        return path.lstat().st_mtime
    return otherwise
