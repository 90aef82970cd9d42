"""Two joined hosts, as operators see and command them at the head: by the programs that they type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from cluster_support import Head, HostProcess
from process_support import wait_for

DEADLINE_S = 30.0


class Fleet(NamedTuple):
    """A head, and two hosts with two stand-in GPUs each."""

    head: Head
    first: HostProcess
    second: HostProcess


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    root = tmp_path_factory.mktemp("fleet")
    head = Head(root / "head", {"model": "tiny"})
    hosts = [HostProcess(root / name, head, name, number=number) for number, name in ((2, "node2"), (3, "node10"))]
    head.start()
    try:
        for host in hosts:
            host.join().start()
        head.has_ready(4)
        yield Fleet(head, *hosts)
    finally:
        for host in hosts:
            host.clean()
        head.stop()


def said(fleet: Fleet, *words: str, code: int = 0) -> str:
    done = fleet.head.control(*words)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_first_starts_are_told_and_warned_of_by_nobody(fleet: Fleet) -> None:
    assert len(fleet.head.events("host_starts")) == len(fleet.head.events("host_came")) == 2
    assert fleet.head.events("host_away") + fleet.head.events("host_replaced") == []
    assert not [host.name for host in (fleet.first, fleet.second) if host.events("head_away")]


def test_servers_and_gpus_are_sorted_by_host_and_have_readings(fleet: Fleet) -> None:
    servers = fleet.head.client.get("status")["servers"]
    assert [server["id"] for server in servers] == ["node2.gpu0", "node2.gpu1", "node10.gpu0", "node10.gpu1"]
    wait_for(
        lambda: all(server["gpus"][0]["temp_c"] for server in fleet.head.client.get("status")["servers"]),
        DEADLINE_S,
        "every server shows the temperature of its GPU",
    )
    wait_for(
        lambda: all(gpu["health"] == "ok" for gpu in fleet.head.client.get("gpus")["gpus"]),
        DEADLINE_S,
        "the health of every GPU is known",
    )
    gpus = fleet.head.client.get("gpus")["gpus"]
    assert [(gpu["host"], gpu["index"]) for gpu in gpus] == [("node2", 0), ("node2", 1), ("node10", 0), ("node10", 1)]
    assert "node10/1" in said(fleet, "gpus")
    assert "identity" in said(fleet, "gpus", "show", "node10/1").lower()


def test_a_gpu_is_taken_out_of_use_on_its_host_and_given_back(fleet: Fleet) -> None:
    assert "GPU node2/0: in quarantine" in said(fleet, "gpus", "quarantine", "node2/0", "--reason", "noisy fan")
    wait_for(lambda: fleet.head.server("node2.gpu0")["state"] == "quarantined", DEADLINE_S, "its server is out of use")
    assert fleet.head.server("node10.gpu0")["state"] == "ready", "a GPU with the same UUID, as stand-ins have"
    assert "of node2  noisy fan" in said(fleet, "gpus", "events")
    assert "noisy fan" in said(fleet, "status", code=1)
    assert "released" in said(fleet, "gpus", "release", "node2/0")
    fleet.head.has_ready(4)
    told = [(entry["kind"], entry["target"].split("/")[0]) for entry in fleet.head.client.get("audit")["entries"]]
    assert ("gpu_quarantined", "node2") in told and ("gpu_released", "node2") in told
    assert "no GPU 7 on host node2" in said(fleet, "gpus", "lend", "node2/7", "--for", "1h", code=1)


def test_a_model_is_pulled_to_all_hosts_and_removed_from_all(fleet: Fleet) -> None:
    said(fleet, "models", "pull", "new-one")
    [row] = [line for line in said(fleet, "models", "list").splitlines() if line.startswith("new-one")]
    assert "node2, node10" in row
    said(fleet, "models", "rm", "new-one")
    assert "new-one" not in said(fleet, "models", "list")


def test_the_log_of_a_server_comes_from_its_host(fleet: Fleet) -> None:
    assert "/api/version" in said(fleet, "servers", "logs", "node10.gpu1", "-n", "20")


def test_doctor_and_metrics_know_the_hosts(fleet: Fleet) -> None:
    page = said(fleet, "doctor")
    assert "2 of 2 here, 4 servers" in page
    for host in (fleet.first, fleet.second):
        of_host = page.partition(f"\nhost {host.name}\n")[2].partition("\nhost ")[0]
        assert "gpus    gpus = simulated:2" in of_host and " free" in of_host
        ports = sorted(server["url"].rpartition(":")[2] for server in host.servers())
        assert f"the daemon's servers use {', '.join(ports)}" in of_host
    text = fleet.head.client.get("metrics")["text"]
    assert 'obatch_host_up{host="node2"} 1.0' in text and 'obatch_server_slots{server="node10.gpu0"}' in text


def test_a_host_that_is_killed_is_away_everywhere_and_comes_back(fleet: Fleet) -> None:
    fleet.second.kill()
    wait_for(lambda: fleet.second.state() == "away", DEADLINE_S, "the head knows that it is away")
    status = fleet.head.client.get("status")
    assert status["state"] == "degraded" and [reason[:19] for reason in status["reasons"]] == ["host node10 is away"]
    gpus = [gpu for gpu in fleet.head.client.get("gpus")["gpus"] if gpu["host"] == "node10"]
    assert {gpu["health"] for gpu in gpus} == {"unknown"}
    assert "host node10 is away" in said(fleet, "gpus", "release", "node10/0", code=1)
    assert "node10 is away" in said(fleet, "doctor", code=1)
    assert "node2" in said(fleet, "models", "list")
    fleet.second.start()
    fleet.head.has_ready(4)
    assert fleet.head.client.get("status")["reasons"] == []
