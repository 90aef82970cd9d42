"""A short storm of kills and cuts over a head and its hosts; ``scripts/chaos --hosts 3`` has the long ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cluster_plan import WEIGHTS, make_plan
from cluster_storm import CONFIG, SIMULATOR, ClusterStorm
from cluster_support import make_fleet

SEED = int(os.environ.get("OBATCHD_TEST_SEED", "7"))


def test_a_seed_is_a_plan() -> None:
    plan = make_plan(3, 1000, 20_000)
    assert plan == make_plan(3, 1000, 20_000) != make_plan(4, 1000, 20_000)
    assert len(plan.strikes) == 1000 and plan.requests == 20_000
    assert {strike.what for strike in plan.strikes} == set(WEIGHTS)


@pytest.mark.timeout(300)
def test_a_storm_over_hosts_loses_and_doubles_nothing(tmp_path: Path) -> None:
    plan = make_plan(SEED, 18, 360)
    with make_fleet(tmp_path, 2, config=CONFIG, simulator=SIMULATOR) as fleet:
        storm = ClusterStorm(fleet, plan)
        storm.run()
        print("", *(f"{name}: {value}" for name, value in storm.rows()), sep="\n")
        assert storm.struck.violations == []
