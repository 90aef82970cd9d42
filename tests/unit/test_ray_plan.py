"""Which actors of Ray start and end, and what hosts on its nodes are called."""

from __future__ import annotations

import re

import pytest

from obatchd.cluster.launching import Node, NodeNews, Orders, host_name, news, plan

ORDERS = Orders("auto", "head-1")


def node(number: int, name: str = "", *, gpus: int = 2, leaving: bool = False) -> Node:
    return Node(f"id{number}", name or f"node{number}", f"10.0.0.{number}", gpus, leaving)


def test_each_node_with_gpus_gets_one_actor() -> None:
    wanted = plan([node(1), node(2), node(3, gpus=0)], ["id1"], ORDERS)
    assert ([one.id for one in wanted.start], wanted.end, wanted.leave, wanted.refused) == (["id2"], [], [], {})


def test_an_actor_ends_whose_node_is_gone_or_has_no_gpus_any_more() -> None:
    wanted = plan([node(1), node(2, gpus=0)], ["id1", "id2", "id7"], ORDERS)
    assert (wanted.start, wanted.end) == ([], ["id2", "id7"])


def test_all_actors_end_when_none_is_wanted() -> None:
    wanted = plan([node(1), node(2)], ["id2", "id1"], Orders("auto", "head-1", wanted=False))
    assert (wanted.start, wanted.end, wanted.leave) == ([], ["id1", "id2"], [])


def test_a_node_that_ray_drains_gives_back_its_work_and_gets_no_actor() -> None:
    wanted = plan([node(1, leaving=True), node(2, leaving=True)], ["id1"], ORDERS)
    assert (wanted.start, wanted.end, wanted.leave) == ([], [], ["id1"])


def test_a_forgotten_host_ends_and_its_node_says_how_it_comes_back() -> None:
    wanted = plan([node(1), node(2)], ["id1"], Orders("auto", "head-1", let_go=frozenset({"id1", "id2"})))
    assert (wanted.start, wanted.end, set(wanted.refused)) == ([], ["id1"], {"id1", "id2"})
    assert "raylet is started again" in wanted.refused["id1"]


def test_of_two_nodes_with_one_name_that_with_an_actor_keeps_it() -> None:
    twins = [node(1, "twin"), node(2, "twin")]
    neither = plan(twins, [], ORDERS)
    assert neither.start == [] and set(neither.refused) == {"id1", "id2"}
    assert "--node-name" in neither.refused["id1"]
    one = plan(twins, ["id2"], ORDERS)
    assert (one.start, one.end, set(one.refused)) == ([], [], {"id1"})


def test_a_raylet_that_was_started_again_is_the_same_host_on_a_new_node() -> None:
    wanted = plan([node(9, "node1")], ["id1"], ORDERS)
    assert ([one.name for one in wanted.start], wanted.end) == (["node1"], ["id1"])


@pytest.mark.parametrize(
    ("told", "hostname", "name"),
    [
        ("10.0.0.1", "gpu07.cluster.example", "gpu07"),  # Ray calls a node by its address where nobody named it
        ("", "gpu07", "gpu07"),
        ("Rack_3 left", "gpu07", "rack-3-left"),
        ("ü", "x", "node"),
        ("a" * 60, "x", "a" * 40),
        ("-a" + "b-" * 30, "x", None),
    ],
)
def test_names_of_hosts_are_such_as_ids_may_have(told: str, hostname: str, name: str | None) -> None:
    found = host_name(told, "10.0.0.1", hostname)
    assert name is None or found == name
    assert re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", found)


def test_news_tell_each_node_with_gpus_once() -> None:
    looks = {"id1": NodeNews("id1", "node1", "10.0.0.1", 2, "running")}
    nodes = [node(3, leaving=True), node(2), node(1), node(4, gpus=0)]
    told = news(nodes, looks, {"id2": "two nodes are called so"})
    assert [(one.name, one.state, one.reason) for one in told] == [
        ("node1", "running", ""),
        ("node2", "none", "two nodes are called so"),
        ("node3", "none", "Ray is about to take it away"),
    ]
