"""Lengths of time: one reader for every setting and every option."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from obatchd.burnin.run.plan import duration_s
from obatchd.cli.obatchctl import main
from obatchd.client.control import ControlClient
from obatchd.errors import ConfigError
from obatchd.settings import job, reading
from obatchd.settings.base import time_unit
from obatchd.settings.reading import Leaf
from obatchd.times import span_s

TIMES = [leaf for leaf in reading.leaves() if time_unit(leaf.name)]
COUNTS = {"gpu_health.ecc_corrected_per_s"}  # so many in a second are no time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("0", 0), ("1.5", 1.5), ("90s", 90), ("90m", 5400), ("90 min", 5400), ("2h", 7200), ("3d", 259_200),
        ("1h30m", 5400), ("1 h 30 min", 5400), ("1d12h", 129_600), ("0.5h", 1800), ("50ms", 0.05), ("2w", 1_209_600),
        (" 2H ", 7200), ("30 days", 2_592_000), ("1 hour", 3600),
    ],
)  # fmt: skip
def test_a_length_of_time_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert span_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "h", "2 moons", "-2h", "-1", "1h2", "2h!", "nan", "inf", "1e", "2026-12-31"])
def test_what_is_no_length_of_time_is_told_with_what_may_be_written(text: str) -> None:
    with pytest.raises(ValueError, match="is no length of time; write 90s, 90m, 2h, 3d or plain seconds"):
        span_s(text)


def test_every_setting_that_ends_with_a_unit_is_a_time_and_no_other() -> None:
    ends = {leaf.key for leaf in reading.leaves() if leaf.name.endswith(("_s", "_ms", "_minutes", "_days", "_h"))}
    assert ends - {leaf.key for leaf in TIMES} == {*COUNTS, "gpu_health.ecc_corrected_per_h"}


def written(leaf: Leaf, value: str, tmp_path: Path) -> Path:
    path = tmp_path / "batch.toml"
    path.write_text(f"[{leaf.section}]\n{leaf.name} = {value}\n" if leaf.section else f"{leaf.name} = {value}\n")
    return path


@pytest.mark.parametrize("leaf", TIMES, ids=lambda leaf: leaf.key)
def test_each_time_may_be_written_with_a_unit_in_file_and_variable(leaf: Leaf, tmp_path: Path) -> None:
    unit = time_unit(leaf.name)
    assert unit is not None
    default = leaf.field.default
    text = f"{round(default * unit.seconds * 1000)}ms"
    for given in (text, f"{default}"):
        settings = reading.load(written(leaf, f'"{given}"', tmp_path), environ={}, flags={})
        assert reading.value_of(settings, leaf) == pytest.approx(default)
        settings = reading.load(None, environ={leaf.variable: given}, flags={})
        assert reading.value_of(settings, leaf) == pytest.approx(default)
    assert unit.words in leaf.type_text and unit.example in leaf.type_text
    with pytest.raises(ConfigError) as caught:
        reading.load(written(leaf, '"2 moons"', tmp_path), environ={}, flags={})
    assert f"{leaf.key}: must be {unit.words}" in caught.value.message and "moons" not in caught.value.message


def test_days_and_minutes_are_kept_in_their_own_unit(tmp_path: Path) -> None:
    file = tmp_path / "batch.toml"
    file.write_text('[disk]\nretention_days = "2w"\nkeep_done_s = "3d"\n[gpu_health]\nslowdown_minutes = "20m"\n')
    settings = reading.load(file, environ={}, flags={})
    assert settings.disk.retention_days == 14 and settings.disk.keep_done_s == 259_200
    assert settings.gpu_health.slowdown_minutes == 20
    file.write_text('[gpu_health]\nslowdown_minutes = "90s"\n')
    with pytest.raises(ConfigError, match="slowdown_minutes: must be minutes from 1 to 60, or text such as"):
        reading.load(file, environ={}, flags={})


def test_a_deadline_may_have_a_unit() -> None:
    assert job.parse_job_settings({"deadline": "2h"}, "job.toml")[0].deadline == 7200
    with pytest.raises(ConfigError, match='must be seconds, a text such as "2h", or a time such as 2026'):
        job.parse_job_settings({"deadline": "soon"}, "job.toml")


@pytest.mark.parametrize(("given", "seconds"), [("2h", 7200), ("90m", 5400), ("3600", 3600)])
def test_options_read_the_same(monkeypatch: pytest.MonkeyPatch, given: str, seconds: float) -> None:
    asked: list[dict[str, Any]] = []

    def post(client: ControlClient, path: str, *names: str, **query: Any) -> dict[str, Any]:
        asked.append(query)
        return {"uuid": "GPU-1", "lent_until": "2026-12-31T18:00:00Z"}

    monkeypatch.setattr(ControlClient, "post", post)
    result = CliRunner().invoke(main, ["gpus", "lend", "0", "--for", given])
    assert (result.exit_code, asked) == (0, [{"for_s": seconds}])
    assert duration_s(given) == seconds
    wrong = CliRunner().invoke(main, ["gpus", "lend", "0", "--for", "a while"])
    assert wrong.exit_code == 2 and "a while is no length of time; write 90s, 90m, 2h, 3d" in wrong.stderr
    wrong = CliRunner().invoke(main, ["status", "--watch", "--interval", "1ms"])
    assert wrong.exit_code == 2 and "1ms is too short; at least 0.1 s" in wrong.stderr
