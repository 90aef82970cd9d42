"""What ``obatchctl hosts`` and ``doctor`` say of Ray."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from obatchd.cli.doctor import joined_checks
from obatchd.cli.hosts import _list
from obatchd.documents.engine import EngineNode, EngineState
from obatchd.documents.hosts import HostDoor, HostList

NODES = [
    EngineNode("node1", "10.0.0.1", 4, "running", ""),
    EngineNode("node2", "10.0.0.2", 1, "starting", "no GPU free"),
]


def told(
    state: str = "here", reason: str = "", *, token: bool | None = True, nodes: list[EngineNode] = NODES
) -> dict[str, Any]:
    engine = EngineState("ray", "auto", state, reason, "2.60.0" if state == "here" else "", token, nodes)
    found: dict[str, Any] = msgspec.to_builtins(HostList(HostDoor("10.0.0.1:7700", "sha256:a", ""), [], [], engine))
    return found


def levels(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [(found.level, found.text) for found in joined_checks.engine(document)]


def test_hosts_names_each_node_without_one_and_the_reason() -> None:
    assert _list(told())[1:] == ["Ray 2.60.0 (auto): a host runs on 1 of 2 nodes", "  node2, 1 GPU: no GPU free"]


@pytest.mark.parametrize("state", ["gone", "starting"])
def test_hosts_says_that_ray_is_not_here(state: str) -> None:
    lines = _list(told(state, "Ray is gone: start it" if state == "gone" else "", nodes=[]))
    assert ("Ray is gone" if state == "gone" else "about to connect") in lines[1]


def test_doctor_is_content_with_a_ray_that_asks_for_a_token() -> None:
    document = told(nodes=NODES[:1])
    assert levels(document) == [("ok", "Ray 2.60.0: a host runs on 1 of 1 node with GPUs")]


def test_doctor_warns_of_a_ray_that_asks_for_none_and_of_nodes_without_host() -> None:
    found = levels(told(token=False))
    assert [level for level, _ in found] == ["ok", "warn", "warn"]
    assert found[1][1] == "node2: no GPU free" and "token" in found[2][1]


def test_doctor_says_how_a_ray_that_is_gone_comes_back() -> None:
    assert levels(told("gone", "Ray is gone: start it with …")) == [("bad", "Ray is gone: start it with …")]
    assert [level for level, _ in levels(told("starting"))] == ["warn"]


def test_without_an_engine_nothing_is_said() -> None:
    assert levels({}) == []
