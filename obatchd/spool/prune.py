"""Deleting results and refused drops: old ones where the administrator asked for it, those of a job on demand."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from obatchd import log
from obatchd.spool.layout import Layout

_log = log.get(__name__)
_GONE = ".gone"


def prune(layout: Layout, before_s: float) -> None:
    """Delete results and refused drops that are older than this wall-clock time.

    Each directory is renamed out of sight first, so that nobody reads half of it. Raises OSError where the disk
    refused, once all others are deleted.
    """
    old = [path for path in layout.outbox_dirs() if _changed_s(path / "summary.json", before_s) < before_s]
    _discard_all(layout, [*old, *_refused(layout, before_s)])


def prune_refused(layout: Layout, before_s: float) -> None:
    """Delete drops refused before this wall-clock time, also those that never were a job; raises as :func:`prune`."""
    _discard_all(layout, _refused(layout, before_s))


def _refused(layout: Layout, before_s: float) -> list[Path]:
    owners = [path for path in layout.failed.iterdir() if path.is_dir() and not path.is_symlink()]
    return [
        path for owner in owners for path in owner.iterdir() if path.is_dir() and _changed_s(path, before_s) < before_s
    ]


def _discard_all(layout: Layout, paths: Iterable[Path]) -> None:
    """One that cannot be deleted keeps no other."""
    first: OSError | None = None
    for path in paths:
        try:
            discard(layout, path)
        except OSError as error:
            first = first or error
    if first is not None:
        raise first


def discard(layout: Layout, path: Path) -> None:
    """Delete a directory whole; nothing happens where there is none. Raises OSError where the disk refuses."""
    trash, hidden = _trash(layout), path.with_name(f".{path.name}{_GONE}")
    trash.mkdir(mode=0o700, exist_ok=True)
    with suppress(FileNotFoundError):
        try:
            os.rename(path, trash / f"{path.name}.{time.monotonic_ns()}")
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with suppress(FileNotFoundError):
                delete_tree(hidden)
            os.rename(path, hidden)  # on another mount it goes where it is
    begun = [whole for whole in trash.iterdir() if whole.name.startswith(f"{path.name}.")]
    for whole in [*begun, *([hidden] if hidden.is_dir() else [])]:  # also what the disk did not let go before
        delete_tree(whole)
        _log.info("deleted", job=path.name.rpartition(".")[2])


def empty_trash(layout: Layout) -> None:
    """Delete the rest of a deletion that the end of a daemon cut short."""
    with suppress(OSError):
        delete_tree(_trash(layout))
    for path in list(layout.outbox_dirs()):
        if path.name.startswith(".") and path.name.endswith(_GONE):
            with suppress(OSError):
                delete_tree(path)


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
    except RecursionError:
        _flatten(path)
        shutil.rmtree(path)


def _flatten(path: Path) -> None:
    """Move every folder below ``path`` directly into it; of folders in one another rmtree can delete some 900."""
    places = [path]
    for place in places:
        for inside in place.iterdir():
            if inside.is_dir() and not inside.is_symlink():
                places.append(path / f"{time.monotonic_ns()}{_GONE}")
                inside.rename(places[-1])


def _trash(layout: Layout) -> Path:
    return layout.work / "trash"


def _changed_s(path: Path, otherwise: float) -> float:
    with suppress(OSError):
        return path.lstat().st_mtime
    return otherwise
