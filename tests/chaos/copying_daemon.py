"""obatchd that copies its spool before and after each flush of files, as a power cut at that instant might leave it.

Usage: copying_daemon.py COPIES ARGUMENTS-OF-OBATCHD…
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from obatchd.cli.obatchd import main
from obatchd.delivery import publisher
from obatchd.spool import claim
from obatchd.spool.layout import Layout
from obatchd.spool.outbox import JobOutbox

_numbers = itertools.count()
_lock = threading.Lock()


def _copy(spool: Path, copies: Path, what: str) -> Path:
    with _lock:
        target = copies / f"{next(_numbers):03d}-{what}"
        subprocess.run(["cp", "-a", spool, target], check=True)
        return target


def watch(copies: Path) -> None:
    """From now on each flush leaves copies behind."""
    flush_claim, flush_outboxes = claim._flush, publisher.flush_outboxes

    def claimed(intents: Sequence[Any], layout: Layout) -> None:
        _copy(layout.root, copies, "claim-names-kept")
        lost = _copy(layout.root, copies, "claim-names-lost")
        for intent in intents:
            directory = lost / "work" / "jobs" / intent.job
            os.rename(directory / "input", lost / "inbox" / os.fsdecode(intent.name))
            shutil.rmtree(directory)
        flush_claim(intents, layout)
        _copy(layout.root, copies, "claim-flushed")

    def published(boxes: Sequence[JobOutbox]) -> None:
        for what, spoil in (("data-lost", _empty), ("names-lost", _remove)):
            copy = _copy(_spool(boxes), copies, f"outbox-{what}")
            for box in boxes:
                spoil(copy / "outbox" / box.directory.name)
        flush_outboxes(boxes)
        _copy(_spool(boxes), copies, "outbox-flushed")

    set_attribute: Callable[..., None] = setattr
    set_attribute(claim, "_flush", claimed)
    set_attribute(publisher, "flush_outboxes", published)


def _spool(boxes: Sequence[JobOutbox]) -> Path:
    return boxes[0].directory.parent.parent


def _unflushed(directory: Path) -> list[Path]:
    """Once the summary is there, the flush before it has made all else durable."""
    summary = directory / "summary.json"
    return [summary] if summary.exists() else [path for path in directory.rglob("*") if path.is_file()]


def _empty(directory: Path) -> None:
    for path in _unflushed(directory):
        os.truncate(path, 0)


def _remove(directory: Path) -> None:
    for path in _unflushed(directory):
        path.unlink()


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
    sys.argv = ["obatchd", *sys.argv[2:]]
    main()
