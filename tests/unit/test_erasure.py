"""Nothing of an erased job is left in the spool, and everything of the others is."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_support import street

from obatchd.engine.erasure import erase


def traces(spool: Path, word: str) -> list[str]:
    """Files below the spool whose name or content has a word."""
    return [
        str(path.relative_to(spool))
        for path in sorted(spool.rglob("*"))
        if word in path.name or (path.is_file() and word.encode() in path.read_bytes())
    ]


async def test_no_file_of_the_spool_speaks_of_an_erased_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        layout = rig.work.layout
        gone = await rig.run({"id": "secret1", "prompt": "zebra?"}, name="gone.jsonl", owner=1000)
        kept = await rig.run({"id": "public1", "prompt": "horse?"}, name="kept.jsonl", owner=1001)
        for owner in (1000, 1001):
            (layout.sources / str(owner)).mkdir(parents=True)
        refusal = layout.failed_dir(gone.job, gone.name, gone.owner)
        refusal.mkdir(parents=True)
        erase(layout, rig.work.store, [gone])
        assert not rig.work.store.state.find([gone.job]) and rig.work.store.state.find([kept.job])
        assert not (layout.sources / "1000").exists() and (layout.sources / "1001").exists()
        assert not refusal.exists() and not layout.job_dir(gone.job).exists()
        erase(layout, rig.work.store, [gone])  # asked again after a disk that refused in the middle
    assert traces(tmp_path / "spool", "zebra") == traces(tmp_path / "spool", "secret1") == []
    assert traces(tmp_path / "spool/outbox", "horse") != []
