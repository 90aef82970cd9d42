"""Gives the metrics out: to a scrape, to ``obatchctl metrics``, and into a file for node_exporter."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import define, field

from obatchd import log
from obatchd.metrics.sources import Sources
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.tasks import TaskOwner, TaskSet

if TYPE_CHECKING:
    from obatchd.metrics.collector import Registry

_log = log.get(__name__)
_MODE = 0o644  # node_exporter runs as a user of its own
_LOOK_S = 5.0  # longest time until a reload takes effect


@define(eq=False)
class Exposition:
    """Implements :class:`obatchd.control.operations.Metrics`. The library is imported when somebody asks."""

    _sources: Sources
    _registry: Registry | None = field(default=None, init=False)

    def text(self, *, process: bool = True) -> bytes:
        if self._registry is None:
            from obatchd.metrics.collector import Registry

            self._registry = Registry(self._sources)
        return self._registry.text(process=process)


class TextFile(TaskOwner):
    """Writes the file while it is wanted, and takes it away at the end: nobody is to be told of a daemon that is gone.

    Metrics of the process are left out, because node_exporter has some of the same names, and refuses both then.
    """

    def __init__(self, exposition: Exposition, settings: Current[Settings]) -> None:
        self._exposition = exposition
        self._settings = settings
        self._tasks = TaskSet(self)
        self._written: Path | None = None  # or about to be
        self._writing: asyncio.Future[None] | None = None
        self._problem = ""

    def start(self) -> None:
        self._tasks.start(self._run(), "metrics-file")

    async def stop(self) -> None:
        await self._tasks.stop()
        if self._writing is not None:  # a thread goes on
            await asyncio.wait({self._writing})
        await asyncio.to_thread(self._remove)

    def task_failed(self, name: str, error: BaseException) -> None:
        """A defect here costs the file alone, whose age tells of it; it is in the log."""

    async def _run(self) -> None:
        written_s = 0.0
        while True:
            settings = self._settings.value.metrics
            path = Path(settings.textfile) if settings.textfile else None
            if path != self._written:
                await asyncio.to_thread(self._remove)
            now_s = time.monotonic()
            if path is not None and (path != self._written or now_s - written_s >= settings.textfile_s):
                written_s = now_s
                await self._write(path)
            await asyncio.sleep(min(settings.textfile_s, _LOOK_S))

    async def _write(self, path: Path) -> None:
        text = self._exposition.text(process=False)
        self._written = path
        self._writing = asyncio.get_running_loop().run_in_executor(None, _replace, path, text)
        try:
            await asyncio.shield(self._writing)
        except OSError as error:
            if (problem := log.reason(error)) != self._problem:
                self._problem = problem
                _log.error("metrics_file_not_written", path=path, reason=problem)
            return
        if self._problem:
            self._problem = ""
            _log.info("metrics_file_written_again", path=path)

    def _remove(self) -> None:
        if self._written is not None:
            with contextlib.suppress(OSError):
                self._written.unlink(missing_ok=True)
        self._written = None


def _replace(path: Path, text: bytes) -> None:
    """A reader sees the old file or the new one; raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # node_exporter reads *.prom alone
    try:
        temporary.unlink(missing_ok=True)
        # Others may write in the directory: nothing of theirs is followed or opened.
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE), "wb") as file:
            os.fchmod(file.fileno(), _MODE)  # whatever the umask
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
