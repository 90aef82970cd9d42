"""``status.json`` of jobs in work, and what is looked at with it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from engine_support import Street, street, until
from settings_support import reload

from obatchd.engine import statuses
from obatchd.live.job import LiveJob


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Street]:
    monkeypatch.setattr(statuses, "_PERIOD_S", 0.005)
    async with street(monkeypatch, tmp_path) as made:
        yield made


def status_of(live: LiveJob) -> dict[str, Any]:
    path = live.outbox / "status.json"
    return json.loads(path.read_bytes()) if path.exists() else {}


async def test_the_status_of_a_job_follows_it(rig: Street) -> None:
    live = await rig.take("a", "b")
    await until(lambda: status_of(live).get("requests") == 2)
    await rig.begun(live, 1)
    await until(lambda: status_of(live)["in_flight"] == 1)
    await rig.answer(live, 1)
    await until(lambda: (status_of(live)["succeeded"], status_of(live)["in_flight"]) == (1, 0))
    await rig.engine.admission.pause(live, True)
    await until(lambda: status_of(live)["paused"])


async def test_a_status_that_says_the_same_is_not_written_again(rig: Street) -> None:
    live, other = await rig.take("a"), await rig.take("b")
    await until(lambda: status_of(live) and status_of(other))
    (live.outbox / "status.json").unlink()
    await rig.begun(other)
    await until(lambda: status_of(other)["in_flight"] == 1)
    assert not (live.outbox / "status.json").exists()


async def test_jobs_that_wait_are_told_their_turn(rig: Street) -> None:
    first = await rig.take(*"abcdefgh")
    await rig.begun(first, 1)
    second, third = await rig.take("x"), await rig.take("y")
    await until(lambda: status_of(third).get("position") == 2)
    assert status_of(second)["position"] == 1
    assert status_of(first)["position"] is None


async def test_of_very_many_jobs_no_turn_is_counted(rig: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statuses, "_FORECAST_JOBS", 0)
    live = await rig.take("x")
    await until(lambda: status_of(live))
    assert (status_of(live)["position"], status_of(live)["in_flight"]) == (None, 0)
    await rig.begun(live)
    await until(lambda: status_of(live)["in_flight"] == 1)


async def test_a_deadline_that_passes_ends_the_job(rig: Street) -> None:
    live = await rig.take("a", "b", "c", deadline=0.3)
    await rig.answer(live, 2)
    assert live.expires_s is not None and live.expires_s > time.time() - 0.3
    summary = await rig.published(live)
    assert (summary["succeeded"], summary["expired"]) == (1, 2)
    assert "deadline" in summary["failures"]["expired"]["example"]


async def test_the_disk_is_looked_at_at_the_start_and_again(rig: Street) -> None:
    free = rig.work.conditions.free
    assert free.bytes > 0
    reload(rig.work.settings, "disk.min_free_bytes", 2**62)
    await until(lambda: "disk" in rig.work.conditions.of_all)
    assert "disk_low" in [alarm.kind for alarm in rig.alarms]
    reload(rig.work.settings, "disk.min_free_bytes", 0)
    await until(lambda: not rig.work.conditions.of_all)
