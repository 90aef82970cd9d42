"""An operator's restart of a server costs no request an attempt."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from daemon_support import Daemon, prompts, wait_for

pytestmark = pytest.mark.over_channel

Start = Callable[..., Daemon]
SLOW = {"service_s": {"kind": "fixed", "value": 0.5}}


def test_a_restart_waits_for_what_is_in_flight(daemon: Start) -> None:
    d = daemon({"gpus": {"use": "simulated:1"}}, simulator=SLOW)
    d.drop("job.jsonl", prompts(16))
    wait_for(lambda: d.servers()[0]["in_flight"] == 4, 10, "every slot is in use")
    old = d.servers()[0]["pid"]
    assert d.control("servers", "restart", "gpu0").returncode == 0
    wait_for(lambda: d.servers()[0]["state"] == "ready" and d.servers()[0]["pid"] != old, 10, "gpu0 is back")
    job = d.done("job.jsonl")
    job.check()
    assert {record["attempts"] for record in job.results} == {1}


def test_a_restart_that_does_not_wait_moves_what_is_in_flight(daemon: Start) -> None:
    d = daemon(
        {"gpus": {"use": "simulated:1"}, "servers": {"drain_s": 0.1}},
        simulator={"service_s": {"kind": "fixed", "value": 2}},
    )
    d.drop("job.jsonl", prompts(4))
    wait_for(lambda: d.servers()[0]["in_flight"] == 4, 10, "every slot is in use")
    assert d.control("servers", "restart", "gpu0").returncode == 0
    job = d.done("job.jsonl")
    job.check()
    assert {record["attempts"] for record in job.results} == {1}
