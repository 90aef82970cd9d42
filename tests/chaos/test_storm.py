"""A short storm of kills and faults; ``scripts/chaos`` has the long ones."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from storm_plan import Plan, make_plan
from storm_setup import make_storm
from storm_verdict import judge

SEED = int(os.environ.get("OBATCHD_TEST_SEED", "7"))


def test_a_seed_is_a_plan() -> None:
    def shown(plan: Plan) -> str:
        return repr((plan.drops, plan.lives, plan.batches))

    plan = make_plan(3, 1000, 20_000)
    assert shown(plan) == shown(make_plan(3, 1000, 20_000)) != shown(make_plan(4, 1000, 20_000))
    assert plan.kills == 1000
    assert 20_000 <= plan.requests < 20_500
    assert {life.death for life in plan.lives} >= {
        "",
        "start",
        "answers",
        "preempted",
        "claim.after_rename",
        "commit.before",
    }
    assert {strike.what for life in plan.lives for strike in life.strikes} >= {
        "worker",
        "serve",
        "runner",
        "probe",
        "front",
    }
    assert {"files.after_write", "batches.after_accept"} <= {life.death for life in plan.lives}
    assert any(batch.cancelled for batch in plan.batches) and not all(batch.cancelled for batch in plan.batches)
    assert any(drop.slow for drop in plan.drops)


@pytest.mark.timeout(300)
def test_a_storm_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with make_storm(tmp_path / "storm", make_plan(SEED, 60, 1200)) as storm:
        begun_s = time.monotonic()
        try:
            storm.run()
            verdict = judge(storm, time.monotonic() - begun_s)
        finally:
            storm.d.clean()
    print("", *(f"{name}: {value}" for name, value in verdict.rows), sep="\n")
    assert verdict.violations == []
    assert sum(storm.kills.values()) >= 60
