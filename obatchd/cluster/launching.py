"""What the daemon and the launcher of Ray say to each other, and which actors there are to be: pure, without Ray.

The launcher is a child of the daemon with its end of a socket as its standard input; frames are those of
:mod:`obatchd.frames`. First it gets its :class:`Orders`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

import attrs
import msgspec

# Said by the daemon.


class Orders(msgspec.Struct, tag="orders", frozen=True):
    """What is wanted; again whenever it changes. The address holds from the first one on."""

    address: str  # of Ray, "auto" or HOST:PORT
    head: str  # the head's uuid: actors of two heads never meet
    wanted: bool = True  # False: end every actor, and then yourself
    let_go: frozenset[str] = frozenset()  # ids of nodes that get no actor any more


class Code(msgspec.Struct, tag="code", frozen=True):
    """A link with a one-use code for the host on a node, as asked for by :class:`Asked`."""

    node: str
    link: str


ToLauncher = Orders | Code

# Said by the launcher.

State = Literal["running", "starting", "leaving", "none"]


class NodeNews(msgspec.Struct, frozen=True):
    """A node of Ray with GPUs, and what runs there. ``reason`` says why nothing does, or what is the matter."""

    id: str
    name: str
    address: str
    gpus: int
    state: State
    reason: str = ""


class Seen(msgspec.Struct, tag="seen", frozen=True):
    """All nodes at this moment, every few seconds: also the sign that Ray answers."""

    nodes: list[NodeNews]
    version: str  # of Ray
    authenticated: bool  # Ray's token authentication is on


class Asked(msgspec.Struct, tag="asked", frozen=True):
    """The host on this node has no credential; said again until it has."""

    node: str
    name: str


class Trouble(msgspec.Struct, tag="trouble", frozen=True):
    """Why the launcher ends now, in words that say what to do."""

    words: str


class Cleared(msgspec.Struct, tag="cleared", frozen=True):
    """No actor of this head is left."""


FromLauncher = Seen | Asked | Trouble | Cleared

to_launcher: msgspec.msgpack.Decoder[ToLauncher] = msgspec.msgpack.Decoder(ToLauncher)
from_launcher: msgspec.msgpack.Decoder[FromLauncher] = msgspec.msgpack.Decoder(FromLauncher)

# Nodes and actors.


@attrs.frozen
class Node:
    """A node of Ray that lives."""

    id: str
    name: str  # of the host that is to run there
    address: str
    gpus: int
    leaving: bool = False  # Ray drains it: the autoscaler or a preemption takes it soon


class Plan(NamedTuple):
    """What is to be done so that there is one actor on each node."""

    start: list[Node]
    end: list[str]  # ids of nodes whose actor is to end
    leave: list[str]  # ids of nodes whose host is to give back its work
    refused: dict[str, str]  # node id → why it gets no actor


def namespace(head: str) -> str:
    """Ray's namespace of the actors of a head."""
    return f"obatchd-{head}"


def host_name(told: str, address: str, hostname: str) -> str:
    """The name of the host on a node: that of ``ray start --node-name``, else the machine's, in letters that ids may
    have."""
    name = told if told and told != address else hostname.partition(".")[0]
    safe = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name.lower())
    return safe.strip("-")[:40].strip("-") or "node"


def plan(nodes: Sequence[Node], actors: Collection[str], orders: Orders) -> Plan:
    """Which actors start and end, where ``actors`` are the ids of the nodes that have one.

    Of two nodes with one name, that with an actor keeps it; without one, neither starts: nobody could say which of
    them is the host of that name.
    """
    if not orders.wanted:
        return Plan([], sorted(actors), [], {})
    living = {node.id: node for node in nodes if node.gpus}
    names = Counter(node.name for node in living.values())
    held = {living[id].name for id in actors if id in living}
    start, refused = [], {}
    for node in living.values():
        if node.id in orders.let_go:
            refused[node.id] = "it was forgotten; it is taken again when its raylet is started again"
        elif node.id in actors or node.leaving:
            continue
        elif node.name in held or names[node.name] > 1:
            refused[node.id] = (
                f"two nodes are called {node.name}: start each with a name of its own, ray start --node-name NAME"
            )
        else:
            start.append(node)
    end = [id for id in actors if id not in living or id in orders.let_go]
    leave = [id for id in actors if id in living and living[id].leaving and id not in orders.let_go]
    return Plan(start, sorted(end), sorted(leave), refused)


def news(nodes: Sequence[Node], looks: Mapping[str, NodeNews], refused: Mapping[str, str]) -> list[NodeNews]:
    """All nodes with GPUs as the daemon is told of them, where ``looks`` are those with an actor."""
    told = []
    for node in nodes:
        if (look := looks.get(node.id)) is not None:
            told.append(look)
        elif node.gpus:
            reason = refused.get(node.id, "Ray is about to take it away" if node.leaving else "")
            told.append(NodeNews(node.id, node.name, node.address, node.gpus, "none", reason))
    return sorted(told, key=lambda node: node.name)
