"""The storm of tests/chaos, short, on a real Ollama: its servers and runners are killed, too."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from storm_plan import make_plan
from storm_setup import make_storm
from storm_verdict import judge

SEED = int(os.environ.get("OBATCHD_TEST_SEED", "7"))


@pytest.mark.real_ollama
@pytest.mark.timeout(300)
def test_a_storm_on_a_real_ollama_loses_and_doubles_nothing(tmp_path: Path) -> None:
    if not os.environ.get("OBATCHD_TEST_OLLAMA") or not os.environ.get("OBATCHD_TEST_MODELS"):
        pytest.skip("no real Ollama here: scripts/real-ollama says what is missing")
    with make_storm(tmp_path / "storm", make_plan(SEED, 30, 400, real=True), real=True) as storm:
        begun_s = time.monotonic()
        try:
            storm.run()
            verdict = judge(storm, time.monotonic() - begun_s, real=True)
        finally:
            storm.d.clean()
    print("", *(f"{name}: {value}" for name, value in verdict.rows), sep="\n")
    assert verdict.violations == []
