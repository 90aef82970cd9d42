"""``obatchctl status`` of many hosts, in a terminal of 80 × 24."""

from __future__ import annotations

from typing import Any

import click
import pytest

from obatchd.cli import hosts
from obatchd.cli.views import text
from obatchd.cli.views.fleet import host_table
from obatchd.cli.views.status import render

COLUMNS, LINES = 80, 24
GIB = 1024**3


def server(host: str, number: int, **changes: Any) -> dict[str, Any]:
    gpu = {
        "uuid": f"GPU-{host}-{number}", "index": number, "name": "NVIDIA H100 80GB HBM3", "utilisation_percent": 90,
        "memory_used_bytes": 18 * GIB, "memory_total_bytes": 80 * GIB, "temp_c": 60 + number, "power_w": 500.0,
    }  # fmt: skip
    made = {
        "id": f"{host}.gpu{number}", "kind": "managed", "state": "ready", "reason": "", "gpus": [gpu], "loading": None,
        "loaded": {"model": "llama3.1:70b", "context_length": 8192}, "in_flight": 4, "offered": 6, "slots": 4,
        "tokens_per_s": 250.0, "restarts": 0, "host": host,
    }  # fmt: skip
    return made | changes


def page(hosts: int = 7, gpus: int = 4, **states: str) -> dict[str, Any]:
    """The status of a fleet with two jobs; ``states`` of hosts that are not here."""
    names = [f"node{number:02}" for number in range(1, hosts + 1)]
    briefs = [
        {"name": name, "state": states.get(name, "here"), "reason": "", "since": "2026-11-29T09:00:00Z"}
        for name in names
    ]
    jobs = [
        {
            "job": f"20261129-09{number:02}00-ab12", "state": "running", "name": "abstracts.jsonl", "owner": 1000,
            "requests": 40_000, "indexed": 40_000, "succeeded": 17_000, "failed": 3, "cancelled": 0, "expired": 0,
            "paused": False, "in_flight": 56, "held_up": "", "totals": None, "requests_per_s": 21.5,
            "tokens_per_s": 3500.0, "eta_s": 5400.0, "energy_j": None,
        }
        for number in range(2)
    ]  # fmt: skip
    return {
        "version": "0.9.0", "started_at": "2026-11-29T09:00:00Z", "pid": 812, "spool": "/srv/batch", "state": "running",
        "reasons": [f"host {name} is away: it has said nothing for 7.5 s" for name in states],
        "servers": [
            server(name, number) if name not in states
            else server(name, number, state="backoff", reason=f"host {name} is away: it has said nothing for 7.5 s")
            for name in names for number in range(gpus)
        ],
        "gpus": {"state": "absent", "message": "No NVIDIA driver on this host.", "pid": None}, "notices": [],
        "burnin": None, "pulls": [], "jobs": jobs, "hosts": briefs,
        "queue": {"requests": 46_000, "jobs": 2, "finished": 34_006, "total": 80_000, "requests_per_s": 43.0},
        "inbox": {"settling": 0, "blocked": [], "refused": 0, "problem": ""},
        "disk": {"free_bytes": 900 * GIB, "free_inodes": 9**9, "low": False},
    }  # fmt: skip


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_width", lambda: COLUMNS)


def shown(status: dict[str, Any], room: int | None = LINES - 2) -> list[str]:
    return [click.unstyle(line) for line in render(status, room)]


def test_28_gpus_on_7_hosts_fit_a_terminal_of_80_by_24() -> None:
    lines = shown(page())
    assert len(lines) <= LINES - 2 and max(map(len, lines)) <= COLUMNS
    [row] = [line for line in lines if line.startswith("node03")]
    assert "4/4" in row and "90 %" in row and "72/320" in row and "16/16" in row and "1000.0" in row
    [total] = [line for line in lines if line.startswith("all")]
    assert "28/28" in total and "112/112" in total and "7000.0" in total
    assert sum("  20261129-09" in line for line in lines) == 2, "the jobs are there, too"


def test_a_host_that_is_away_is_one_line_and_is_told_once() -> None:
    lines = shown(page(node05="away"))
    assert len(lines) <= LINES - 2
    [row] = [line for line in lines if line.startswith("node05")]
    assert "away" in row and "0/4" in row
    assert sum("has said nothing" in line for line in lines) == 1


def test_what_is_not_ready_is_told_below_the_hosts() -> None:
    status = page()
    status["servers"][5] |= {"state": "quarantined", "reason": "an ECC error"}
    lines = shown(status)
    assert "  node02.gpu1 quarantined: an ECC error" in lines and len(lines) <= LINES - 2


def test_names_of_40_characters_fit_as_well() -> None:
    status = page()
    long = "gpu-rack17-chassis03-node11-of-the-lab40"
    status["hosts"][0]["name"] = long
    for server in status["servers"][:4]:
        server |= {"host": long, "id": server["id"].replace("node01", long)}
    assert max(map(len, shown(status))) <= COLUMNS
    whole = shown(status, None)
    assert {line.split()[0][-5:] for line in whole if line.startswith("gpu-rack17-")} == {f".gpu{n}" for n in range(4)}
    assert max(map(len, whole)) <= COLUMNS


def test_why_a_host_is_away_is_told_whole_below_a_narrow_list() -> None:
    host = {
        "name": "node07", "state": "away", "gpus": 4, "ready": 0, "servers": 4, "version": "0.2.0", "since": "",
        "reason": "it has said nothing for 7.5 s, and nobody knows whether it ever will again", "drained": "",
        "allocation": "", "clock_ahead_s": 90.0,
    }  # fmt: skip
    found = {"door": {"address": "", "problem": ""}, "hosts": [host], "engine": None, "enrolments": []}
    lines = [click.unstyle(line) for line in hosts._list(found)]
    assert max(map(len, lines)) <= COLUMNS and lines[2].startswith("  node07: it has said nothing for 7.5 s, and")
    assert "its clock is 1 min 30 s ahead of ours" in lines[3]


def test_many_hosts_that_are_well_share_a_line() -> None:
    status = page(hosts=32, gpus=8, node30="away")
    lines = shown(status)
    assert len(lines) <= LINES - 2
    assert any(line.startswith("node30") for line in lines)
    assert any(line.startswith("31 hosts") and "248/248" in line for line in lines)
    every = host_table(status["servers"], status["hosts"], 40)
    assert len(every) == 34, "a heading, a line for each host, and one for all"


def test_where_there_is_room_each_server_has_a_line() -> None:
    lines = shown(page(), None)
    assert sum(line.startswith("node") for line in lines) == 28
    assert len(shown(page(hosts=2), 40)) == len(shown(page(hosts=2), None))


def test_a_head_without_gpus_misses_none() -> None:
    assert not any("No NVIDIA driver" in line for line in shown(page(), None))
