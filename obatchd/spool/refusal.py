"""Moves a drop that cannot become a job to ``failed/``, with the reason beside it."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from obatchd.errors import ObatchError
from obatchd.spool.copying import move
from obatchd.spool.drop import Drop
from obatchd.spool.flush import sync_paths
from obatchd.spool.layout import Layout, safe_name


def refuse_drop(drop: Drop, layout: Layout, error: ObatchError) -> OSError | None:
    """Move a drop from the inbox to ``failed/``, its error file written first; returns why it could not be moved."""
    directory = _explain(f"refused-{time.time_ns():x}", drop.name, drop.owner, layout, error)
    try:
        move(drop.path, directory / _failed_name(drop.name))
    except OSError as problem:
        shutil.rmtree(directory, ignore_errors=True)
        return None if isinstance(problem, FileNotFoundError) else problem
    sync_paths([directory, layout.inbox])
    return None


def refuse_claimed(job: str, name: bytes, owner: int, layout: Layout, error: ObatchError) -> None:
    """Move a claimed drop to ``failed/``, its error file written first. Does nothing the second time."""
    source = layout.job_dir(job) / "input"
    directory = layout.failed_dir(job, name, owner)
    if os.path.lexists(source) or not directory.exists():  # else it lies there with its reason already
        _explain(job, name, owner, layout, error)
    with contextlib.suppress(FileNotFoundError):
        move(source, directory / _failed_name(name))
    sync_paths([directory])
    shutil.rmtree(layout.job_dir(job), ignore_errors=True)


def _failed_name(name: bytes) -> str:
    return safe_name(name.decode("utf-8", "replace"))[0]


def _explain(job: str, name: bytes, owner: int, layout: Layout, error: ObatchError) -> Path:
    directory = layout.failed_dir(job, name, owner)
    layout.make_owner(owner)
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = directory / f"{_failed_name(name)}.error.txt"
    label = name.decode("utf-8", "backslashreplace")
    text = f"{label} could not become a job.\n\nReason ({error.code}): {error.message}\n\nMend it and drop it again.\n"
    if not path.exists():  # the second time, the first reason stands
        temporary = path.with_name(".error.tmp")
        temporary.write_text(text, "utf-8")
        sync_paths([temporary])
        temporary.replace(path)
    sync_paths([directory, directory.parent, layout.failed])
    return directory
