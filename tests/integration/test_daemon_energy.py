"""The energy of jobs in a whole daemon, with stand-in servers and GPUs whose counters follow their power."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from daemon_support import Daemon, Document, prompts, wait_for

from obatchd.simulator.timeline import GpuEvent, write_script

SIMULATOR: dict[str, Any] = {"tokens_per_s": 100.0, "answer": {"kind": "uniform", "low": 20, "high": 80}}
CONFIG: dict[str, Any] = {"gpus": {"poll_s": 0.2}}


def cards_j(d: Daemon) -> float:
    """The counters of both cards together, as their latest readings have them."""
    return sum(float(d.client.get("gpus", str(index))["reading"]["energy_j"]) for index in (0, 1))


def busy(d: Daemon) -> bool:
    return all(server["in_flight"] >= 4 for server in d.servers())


def usage_j(d: Daemon) -> float:
    [sums] = json.loads(d.control("usage", "--json").stdout)["usage"]
    return float(sums["energy_j"])


def test_jobs_get_the_energy_of_the_cards_and_no_more(daemon: Callable[..., Daemon]) -> None:
    d = daemon(CONFIG, simulator=SIMULATOR)
    d.drop("first.jsonl", prompts(8, "first"))
    first = d.done("first.jsonl").summary  # the model is loaded now
    begun_j = cards_j(d)
    d.drop("a.jsonl", prompts(120, "a"))
    d.drop("b.jsonl", prompts(40, "b", max_response_tokens=30))
    wait_for(lambda: busy(d), what="every slot is in use")
    running_j = cards_j(d)
    wait_for(lambda: not busy(d), 60, "the queue is empty")
    emptied_j = cards_j(d)
    jobs = [d.done(name).summary for name in ("a.jsonl", "b.jsonl")]
    wait_for(lambda: cards_j(d) > emptied_j, what="the cards were read after the end")
    given_j = sum(job["energy_j"] for job in jobs)
    # The last seconds of each job, between two readings, are reckoned by the price before them (docs/decisions.md).
    assert 0.9 * (emptied_j - running_j) <= given_j <= 1.02 * (cards_j(d) - begun_j)
    assert [(job["energy_percent"], job["energy_note"]) for job in jobs] == [(100.0, "")] * 2
    for job in jobs:
        assert job["tokens_per_j"] == pytest.approx(job["response_tokens"] / job["energy_j"], abs=0.001)
    assert usage_j(d) == pytest.approx(given_j + (first["energy_j"] or 0.0), abs=0.01)
    told = d.control("job", d.done("a.jsonl").id).stdout
    assert " Wh, " in told and " tokens/J" in told


def test_energy_goes_on_over_restarts_and_says_what_it_lacks(daemon: Callable[..., Daemon]) -> None:
    d = daemon(CONFIG, simulator=SIMULATOR)
    before_j = cards_j(d)
    d.drop("job.jsonl", prompts(400))
    wait_for(lambda: d.succeeded() >= 170, 60, "some answers")
    wait_for(lambda: _so_far(d) > 0, what="some energy")
    told = d.control("job", d.status()["jobs"][0]["job"]).stdout
    assert "of answers so far" in told and "tokens/J" in told and "GPU-seconds" in told
    [before] = d.status()["jobs"]
    d.kill()
    d.start()
    [after] = d.status()["jobs"]
    kept = after["cost"]["response_tokens"] / before["cost"]["response_tokens"]
    assert kept > 0.9, "all but what was durable at the last moment"
    wait_for(lambda: d.succeeded() >= 250, 60, "more answers")
    wait_for(lambda: _so_far(d) > 0, what="what was kept, or more energy")
    assert d.stop() == 0
    d.start()
    cost = wait_for(lambda: d.status()["jobs"][0]["cost"])
    summary = d.done("job.jsonl", 60).summary
    assert 0 < cost["gpu_s"] <= summary["gpu_s"] and 0 < cost["response_tokens"] <= summary["response_tokens"]
    assert 50 < summary["energy_percent"] < 100 and "started anew" in summary["energy_note"]
    assert 0 < summary["energy_j"] <= cards_j(d) - before_j
    whole_j = summary["energy_j"] / summary["energy_percent"] * 100
    assert summary["tokens_per_j"] == pytest.approx(summary["response_tokens"] / whole_j, rel=0.01)


def _so_far(d: Daemon) -> float:
    jobs: list[Document] = d.status()["jobs"]
    return sum(float(job.get("energy_j", 0.0)) for job in jobs)


def test_a_card_that_tells_none_is_named(daemon: Callable[..., Daemon]) -> None:
    d = daemon(CONFIG, simulator=SIMULATOR)
    silent = GpuEvent("set", values={"energy_j": None})
    d.stop()
    write_script(d.spool / "work" / "simulator", {"0": [silent], "1": [silent]})
    d.start().ready()
    asked = prompts(8)
    d.drop("job.jsonl", asked)
    summary = d.done("job.jsonl").check(asked)
    assert (summary["energy_j"], summary["energy_percent"]) == (None, 0.0)
    assert summary["energy_note"] in (
        "gpu0: GPU 0 does not tell its energy; gpu1: GPU 1 does not tell its energy",
        "gpu0: GPU 0 does not tell its energy",
        "gpu1: GPU 1 does not tell its energy",
    )
    assert "not known (gpu" in d.control("job", d.done("job.jsonl").id).stdout
