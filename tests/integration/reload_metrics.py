"""Effects of the settings of metrics: the file for node_exporter, and the metrics of owners."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from engine_support import until
from operations_support import desk
from settings_support import in_force, reload

from obatchd.metrics import exposition
from obatchd.metrics.exposition import TextFile


class Said:
    """In place of the metrics: counts how often they were asked for."""

    def __init__(self) -> None:
        self.times = 0

    def text(self, *, process: bool = True) -> bytes:
        self.times += 1
        return b"obatch_requests_queued 7.0\n"


@contextlib.asynccontextmanager
async def writing(patch: pytest.MonkeyPatch, **table: Any) -> AsyncIterator[tuple[Any, Said]]:
    """The settings of a writer of the file, and what it asks."""
    patch.setattr(exposition, "_LOOK_S", 0.01)
    settings, said = in_force(metrics=table), Said()
    file = TextFile(said, settings)  # type: ignore[arg-type]
    file.start()
    try:
        yield settings, said
    finally:
        await file.stop()


async def where(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
    async with writing(patch, textfile=old) as (settings, said):
        await asyncio.sleep(0.05)
        assert said.times == 0
        reload(settings, key, str(directory / new))
        await until((directory / new).exists)


async def how_often(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
    async with writing(patch, textfile=str(directory / "obatch.prom"), textfile_s=old) as (settings, said):
        await until((directory / "obatch.prom").exists)
        await asyncio.sleep(0.05)
        assert said.times == 1
        reload(settings, key, new)
        await until(lambda: said.times > 3)


async def of_owners(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
    async with desk(patch, directory, metrics={"owners": old}) as there:
        await there.take("one")
        assert b"obatch_owner_jobs" not in there.metrics.text()
        reload(there.work.settings, key, new)
        assert b'\nobatch_owner_jobs{uid="1000"} 1.0\n' in there.metrics.text()


METRICS = {
    "metrics.textfile": ("", "obatch.prom", where),
    "metrics.textfile_s": (1000.0, 0.01, how_often),
    "metrics.owners": (False, True, of_owners),
}
