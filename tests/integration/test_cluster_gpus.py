"""GPUs of hosts: their own rules take them out of use there, and the head tells it and goes on without them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster_support import Fleet, make_fleet
from daemon_support import Document, prompts, wait_for

from obatchd.simulator.timeline import GpuEvent

STEADY: Document = {"service_s": {"kind": "fixed", "value": 0.2}, "load_s": 0.05}
GPUS: Document = {"poll_s": 0.1, "slow_poll_s": 0.2, "silent_warn_s": 1, "silent_s": 3}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with make_fleet(tmp_path_factory.mktemp("gpus"), simulator=STEADY, of_hosts={"gpus": GPUS}) as fleet:
        yield fleet


def _states(fleet: Fleet) -> dict[str, str]:
    return {server["id"]: server["state"] for server in fleet.head.servers()}


def _told(fleet: Fleet) -> str:
    return fleet.head.control("status").stdout + fleet.head.control("gpus").stdout


def test_a_bad_gpu_is_taken_out_on_its_host_and_told_at_the_head(fleet: Fleet) -> None:
    asked = prompts(150, "bad")
    fleet.head.drop("bad.jsonl", asked)
    wait_for(lambda: fleet.head.server("node01.gpu1")["in_flight"], 20, "it is at work")
    fleet.hosts[0].happens(1, GpuEvent("xid", xid=48))
    wait_for(lambda: _states(fleet)["node01.gpu1"] == "quarantined", 20, "it is in quarantine")
    job = fleet.done("bad", asked)
    assert {result["attempts"] for result in job.results} == {1}
    assert sum(state == "ready" for state in _states(fleet).values()) == 3
    assert "XID 48" in _told(fleet)
    assert fleet.hosts[0].events("quarantine") or "quarantine" in fleet.hosts[0].log()

    fleet.hosts[0].kill()
    fleet.hosts[0].happens(1)
    fleet.hosts[0].launch()
    wait_for(lambda: fleet.hosts[0].state() == "here" and fleet.head.ready_servers() == 3, 60, "it is back")
    assert _states(fleet)["node01.gpu1"] == "quarantined", "the host remembers"
    released = fleet.head.control("gpus", "release", "node01/1")
    assert released.returncode == 0, released.stdout + released.stderr
    fleet.head.has_ready(4)


def test_a_driver_that_hangs_on_one_host_is_that_hosts_trouble(fleet: Fleet) -> None:
    fleet.hosts[1].happens(0, GpuEvent("hang"))
    wait_for(lambda: _health(fleet, "node02") == {"unknown"}, 30, "it is told")
    assert _health(fleet, "node01") == {"ok"}
    fleet.job("hang", prompts(60, "hang"))
    assert [host.state() for host in fleet.hosts] == ["here", "here"]
    fleet.hosts[1].happens(0)
    wait_for(lambda: _health(fleet, "node02") == {"ok"}, 30, "it is over")
    fleet.head.has_ready(4)


def _health(fleet: Fleet, host: str) -> set[str]:
    """Of the GPUs of a host, as the head shows them."""
    return {gpu["health"] for gpu in fleet.head.client.get("gpus")["gpus"] if gpu["host"] == host}
