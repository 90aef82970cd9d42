"""Nothing of an erased job is left in the spool, and everything of the others is."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from engine_support import street

from obatchd.engine.erasure import erase
from obatchd.jobs.store import Segment
from obatchd.spool import prune


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


async def test_a_job_that_cannot_be_deleted_keeps_no_other_and_can_be_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        layout, store = rig.work.layout, rig.work.store
        rows = [await rig.run(word, name=f"{word}.jsonl") for word in ("apple", "stuck", "pear")]

        def refuse(path: Path) -> None:
            if "stuck" in path.name:
                raise PermissionError(1, "Operation not permitted")  # as of a file with chattr +i
            real(path)

        real = prune.delete_tree
        with monkeypatch.context() as patch:
            patch.setattr(prune, "delete_tree", refuse)
            [(row, error)] = erase(layout, store, rows)
        assert (row.job, str(error)) == (rows[1].job, "[Errno 1] Operation not permitted")
        assert [row.job for row in store.state.find([row.job for row in rows])] == [rows[1].job]
        assert [path.name for path in layout.jobs.iterdir()] == [rows[1].job]
        assert erase(layout, store, [row]) == []
    assert [word for word in ("apple", "stuck", "pear") if traces(tmp_path / "spool", word)] == []


async def test_a_segment_that_cannot_be_rewritten_keeps_no_job_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        store = rig.work.store
        shared, other = await rig.run("a"), await rig.run("b", name="b.jsonl")
        large = await rig.run("x" * 5 * 1024**2)  # with a segment of its own
        assert shared.segment == other.segment != large.segment

        def damaged(segment: Segment, jobs: Sequence[int]) -> None:
            raise sqlite3.DatabaseError("database disk image is malformed")

        monkeypatch.setattr(Segment, "erase", damaged)
        stuck = erase(rig.work.layout, store, [shared, large, other])
        assert {row.job for row, _ in stuck} == {shared.job, other.job}
        assert {row.job for row in store.state.find([shared.job, large.job, other.job])} == {shared.job, other.job}
