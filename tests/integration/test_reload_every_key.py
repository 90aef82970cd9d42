"""Each live setting is reloaded and its effect is seen from outside; each of the next job on the next job only.

The tables say of each key what is changed and where the effect shows. A key without a place in them fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from daemon_support import Daemon
from reload_attempts import ATTEMPTS
from reload_burnin import RUNS, see_run
from reload_drops import DROPS, SERVING
from reload_gpus import LIMITS, see_limit
from reload_next_job import JOBS, NEXT_JOB, see_next_job
from reload_parts import PARTS
from reload_programs import PROGRAMS
from reload_sources import SOURCES
from reload_stage import Scene, Stage, nested

from obatchd.settings.base import Reload
from obatchd.settings.reading import leaves

Start = Callable[..., Daemon]
SCENES = {"attempts": ATTEMPTS, "drops": DROPS, "serving": SERVING, "sources": SOURCES, "programs": PROGRAMS}


def test_every_key_that_a_reload_applies_is_in_a_table() -> None:
    live = {key for scene in SCENES.values() for key in scene.effects} | PARTS.keys() | LIMITS.keys() | RUNS.keys()
    marks = {leaf.key: leaf.reload for leaf in leaves()}
    assert live == {key for key, mark in marks.items() if mark is Reload.LIVE}
    assert NEXT_JOB.keys() == {key for key, mark in marks.items() if mark is Reload.NEXT_JOB}


@pytest.fixture
def stage(daemon: Start, request: pytest.FixtureRequest) -> Iterator[tuple[Stage, Scene]]:
    """A daemon with the settings of the scene that the test is about."""
    scene: Scene = request.param
    settings = {"gpus.use": "simulated:1", **scene.settings}
    with ExitStack() as around:
        stage = Stage(daemon(nested(settings), simulator=scene.simulator), settings, around)
        scene.prepare(stage)
        yield stage, scene


@pytest.mark.parametrize("stage", SCENES.values(), ids=SCENES, indirect=True)
def test_a_reload_is_seen_from_outside(stage: tuple[Stage, Scene]) -> None:
    running, scene = stage
    for key, effect in scene.effects.items():
        running.see(key, effect)


@pytest.mark.parametrize("stage", [JOBS], ids=["jobs"], indirect=True)
def test_a_reload_changes_the_next_job_only(stage: tuple[Stage, Scene]) -> None:
    for key, setting in NEXT_JOB.items():
        see_next_job(stage[0], key, setting)


@pytest.mark.parametrize("key", PARTS)
async def test_a_part_acts_on_a_reloaded_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    part = PARTS[key]
    await part.see(tmp_path, monkeypatch, key, part.old, part.new)


@pytest.mark.parametrize("key", LIMITS)
def test_a_limit_of_gpu_health_holds_from_the_next_reading_on(key: str) -> None:
    see_limit(key, LIMITS[key])


@pytest.mark.parametrize("key", RUNS)
async def test_a_setting_of_burn_in_holds_for_runs_that_begin_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    await see_run(key, RUNS[key], tmp_path, monkeypatch)
