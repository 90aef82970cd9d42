"""Hosts that die, are cut off and come back, and a head that dies: every prompt is answered once, models stay loaded.

All tests share one fleet, and leave it as they found it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from cluster_support import Fleet, make_fleet
from daemon_support import Document, ask_server, prompts, wait_for
from process_support import alive

BACK_S = 10.0  # a host is back so soon after what was wrong is over
STEADY: Document = {"service_s": {"kind": "fixed", "value": 0.2}, "load_s": 0.05}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with make_fleet(tmp_path_factory.mktemp("faults"), simulator=STEADY) as fleet:
        yield fleet


def _in_work(fleet: Fleet, name: str, count: int) -> list[Document]:
    """A job of so many prompts, with which every server is busy."""
    asked = prompts(count, name)
    fleet.head.drop(f"{name}.jsonl", asked)
    wait_for(lambda: all(server["in_flight"] for server in fleet.head.servers()), 20, "every server is busy")
    return asked


def _comes_back(fleet: Fleet, within_s: float = BACK_S) -> None:
    begun_s = time.monotonic()
    fleet.head.has_ready(fleet.servers, within_s + 20)
    assert time.monotonic() - begun_s < within_s


def test_a_killed_host_loses_nothing_costs_no_attempt_and_comes_back(fleet: Fleet) -> None:
    victim, other = fleet.hosts
    asked = _in_work(fleet, "killed", 150)
    parts = victim.parts()
    victim.kill()
    wait_for(lambda: victim.state() == "away", 5, "it is noticed")
    assert all(server["state"] == "backoff" for server in victim.servers())
    assert "host node01 is away" in victim.servers()[0]["reason"]
    assert other.state() == "here" and all(server["state"] == "ready" for server in other.servers())
    wait_for(lambda: not any(alive(part.pid) for part in parts if "worker" in str(part)), 10, "no worker outlives it")
    victim.launch()
    fleet.head.has_ready(fleet.servers)
    job = fleet.done("killed", asked)
    assert {result["attempts"] for result in job.results} == {1}
    assert not fleet.head.events("server_strike")


def test_a_cut_is_noticed_and_after_it_healed_the_models_are_still_loaded(fleet: Fleet) -> None:
    victim, line = fleet.hosts[1], fleet.lines[1]
    asked = _in_work(fleet, "cut", 300)
    loads = fleet.loads()
    begun_s = time.monotonic()
    line.cut()
    wait_for(lambda: victim.state() == "away", 12, "silence is noticed")
    assert time.monotonic() - begun_s < 10
    wait_for(lambda: time.monotonic() - begun_s > 15, 20, "it lasts 15 s")
    line.heal()
    _comes_back(fleet)
    job = fleet.done("cut", asked)
    assert {result["attempts"] for result in job.results} == {1}
    assert fleet.loads() == loads
    fleet.job("after", prompts(20, "after"))
    assert fleet.loads() == loads


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_cut_of_70_seconds_is_none_that_anybody_feels(fleet: Fleet) -> None:
    asked = _in_work(fleet, "long", 4000)  # more than the other host can answer meanwhile
    loads = fleet.loads()
    fleet.lines[0].cut()
    wait_for(lambda: fleet.hosts[0].state() == "away", 12, "silence is noticed")
    time.sleep(70)
    fleet.lines[0].heal()
    _comes_back(fleet)
    wait_for(lambda: all(server["in_flight"] for server in fleet.hosts[0].servers()), 20, "it works again")
    job = fleet.done("long", asked, 120)
    assert {result["attempts"] for result in job.results} == {1}
    assert fleet.loads() == loads


def test_a_broken_connection_is_made_anew_at_once(fleet: Fleet) -> None:
    asked = _in_work(fleet, "broken", 100)
    loads = fleet.loads()
    for line in fleet.lines:
        line.break_()
    wait_for(lambda: not any(host.state() == "here" for host in fleet.hosts), 5, "both are away")
    for line in fleet.lines:
        line.heal()
    _comes_back(fleet)
    job = fleet.done("broken", asked)
    assert {result["attempts"] for result in job.results} == {1}
    assert fleet.loads() == loads


def test_a_host_that_stands_still_is_taken_for_away_and_goes_on(fleet: Fleet) -> None:
    asked = _in_work(fleet, "frozen", 100)
    loads = fleet.loads()
    fleet.hosts[0].freeze()
    wait_for(lambda: fleet.hosts[0].state() == "away", 12, "silence is noticed")
    fleet.hosts[0].thaw()
    _comes_back(fleet)
    fleet.done("frozen", asked)
    assert fleet.loads() == loads


def test_a_killed_head_takes_up_its_jobs_and_loads_no_model_again(fleet: Fleet) -> None:
    asked = _in_work(fleet, "headless", 200)
    loads = fleet.loads()
    pids = [server["pid"] for server in fleet.head.servers()]
    fleet.head.kill()
    fleet.head.start()
    _comes_back(fleet)
    fleet.done("headless", asked)
    assert [server["pid"] for server in fleet.head.servers()] == pids
    assert fleet.loads() == loads


def test_models_are_unloaded_when_the_head_is_away_for_longer_than_the_lease(fleet: Fleet) -> None:
    fleet.job("filled", prompts(40, "filled"))
    urls = [server["url"] for server in fleet.hosts[0].servers()]
    unloaded = [ask_server(url, "/simulator/state")["unloads"] for url in urls]
    fleet.head.configure({"cluster": {"listen": f"127.0.0.1:{fleet.head.port}", "lease_s": 2}, "gpus": {"use": "none"}})
    fleet.head.stop()
    fleet.head.start()
    _comes_back(fleet)
    fleet.head.stop()
    wait_for(
        lambda: all(
            ask_server(url, "/simulator/state")["unloads"] > before for url, before in zip(urls, unloaded, strict=True)
        ),
        25,
        "the models are unloaded",
    )
    assert fleet.hosts[0].process is not None and fleet.hosts[0].process.poll() is None
    fleet.head.start()
    _comes_back(fleet)
    fleet.job("again", prompts(40, "again"))
