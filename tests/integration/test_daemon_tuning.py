"""A whole daemon finds the best slots of its server on the work of a job, loses nothing, and remembers them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from daemon_support import Daemon, prompts, wait_for
from tuning_daemon import CONFIG, CURVE, in_a_step, tuning, with_old_job

Make = Callable[..., Daemon]


@pytest.mark.near
def test_slots_are_found_on_the_work_of_a_job_and_used_at_the_next_start(make_daemon: Make) -> None:
    d = make_daemon(CONFIG, simulator={**CURVE, "load_s": 0.05})
    asked = with_old_job(d, 10_000)
    wait_for(lambda: d.events("slots_chosen"), 90, "the search is over")
    found = tuning(d)
    job = d.done("job.jsonl", 60)
    job.check(asked)
    assert {record["attempts"] for record in job.results} == {1}
    assert {record["slots"] for record in job.results} >= {4, 8, 16, 32}
    assert found["state"] == "found" and found["chosen"] in (12, 16, 24)
    assert {4, 8, 16, 32} <= {one["slots"] for one in found["tried"]} and found["slot_bytes"] > 0
    server = d.servers()[0]
    assert server["restarts"] == 0 and not d.events("server_strike") and not d.events("attempt_failed")
    shown = d.control("servers", "--tuning").stdout
    assert "chosen" in shown and f"{found['chosen']} slots: the fastest of" in shown
    d.stop()
    d.start().ready()
    d.drop("more.jsonl", prompts(20, "more"))
    assert {record["slots"] for record in d.done("more.jsonl").results} == {found["chosen"]}


def test_a_server_that_dies_in_a_step_costs_no_request_and_comes_back_as_it_was(make_daemon: Make) -> None:
    d = make_daemon(CONFIG, simulator={**CURVE, "load_s": 0.6})
    asked = with_old_job(d, 10_000)
    os.kill(in_a_step(d)["pid"], signal.SIGKILL)
    wait_for(lambda: len(d.events("profile_loaded")) >= 2, 30, "it is loaded again")
    assert " slots=8 " in d.events("profile_loaded")[-1]
    assert [(one["slots"], one["state"]) for one in tuning(d)["tried"] if one["state"] == "server_died"] == [
        (16, "server_died")
    ]
    job = d.done("job.jsonl", 120)
    job.check(asked)
    assert {record["attempts"] for record in job.results} == {1}  # nothing was in flight


@pytest.mark.parametrize("servers", [{"slots": "auto", "tune": False}, {"slots": 6}], ids=["off", "a number"])
def test_without_tuning_the_slots_stay_and_the_table_says_so(make_daemon: Make, servers: dict[str, object]) -> None:
    d = make_daemon({**CONFIG, "servers": servers}, simulator=CURVE)
    asked = with_old_job(d, 2000)
    d.done("job.jsonl", 60).check(asked)
    assert not d.events("slots_measured") and not d.events("slots_change")
    document = d.client.get("servers/tuning")
    assert document["tune"] is False and not document["profiles"]
    shown = d.control("servers", "--tuning").stdout
    assert "No numbers of slots are tried" in shown and ("tune is false" in shown or "servers.slots is 6" in shown)
