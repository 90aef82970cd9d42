"""Starts obatchd on the nodes of Ray: ``python -m obatchd.cluster.launch_ray``, a child of the head's daemon.

The only module that imports Ray, and a process of its own: a client of Ray is ended by Ray itself when Ray's head is
gone. Actors are detached, so that they outlive this process and the daemon; the next launcher finds them by name.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import attrs

from obatchd import frames
from obatchd.cluster.launching import (
    Asked,
    Cleared,
    Code,
    FromLauncher,
    Node,
    NodeNews,
    Orders,
    Plan,
    Seen,
    ToLauncher,
    Trouble,
    host_name,
    namespace,
    news,
    plan,
    to_launcher,
)
from obatchd.cluster.node_agent import NodeAgent

_PASS_S = 2.0  # from one look at all nodes to the next
_LOOK_S = 5.0  # for the answers of all actors
_START_S = 60.0  # an actor that has not answered for so long since it was made is told of
_STOP_S = 40.0  # NodeAgent.stop takes 30 s at most


@attrs.define(eq=False)
class Mailbox:
    """Our end of the socket: what the daemon says is read by a thread of its own, and its end ends this process."""

    _socket: socket.socket
    _orders: Orders | None = None
    _codes: dict[str, str] = attrs.field(factory=dict, init=False)  # by node
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _new: threading.Event = attrs.field(factory=threading.Event, init=False)

    def first(self) -> Orders:
        """Wait for the first orders, and read on in the background."""
        while self._orders is None:
            self._take(frames.receive(self._socket, to_launcher))
        threading.Thread(target=self._read, name="mailbox", daemon=True).start()
        return self._orders

    def _read(self) -> None:
        try:
            while True:
                self._take(frames.receive(self._socket, to_launcher))
        finally:  # the daemon is gone; actors stay, and its next launcher finds them
            os._exit(0)

    def _take(self, message: ToLauncher) -> None:
        with self._lock:
            if isinstance(message, Code):
                self._codes[message.node] = message.link
            else:
                self._orders = message
        self._new.set()

    def look(self) -> tuple[Orders, dict[str, str]]:
        """The latest orders, and codes that came since the last look."""
        with self._lock:
            codes, self._codes = self._codes, {}
            assert self._orders is not None
            return self._orders, codes

    def wait(self, timeout_s: float) -> None:
        """Until something came, or for so long."""
        self._new.wait(timeout_s)
        self._new.clear()

    def say(self, message: FromLauncher) -> None:
        frames.send(self._socket, message)


@attrs.define(eq=False)
class Actor:
    """The actor on one node."""

    node: Node
    handle: Any
    since_s: float = attrs.field(factory=time.monotonic, init=False)  # of its start, or since it answered last
    _asked: Any = attrs.field(default=None, init=False)  # what it was asked, and has not answered yet

    def asked(self) -> Any:
        """The question how its host is; one that it does not answer is not asked again."""
        if self._asked is None:
            self._asked = self.handle.look.remote()
        return self._asked

    def answered(self) -> None:
        self._asked, self.since_s = None, time.monotonic()


class Cluster:
    """Ray as far as it is needed: nodes, and named actors of one namespace."""

    def __init__(self, orders: Orders) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray, self._affinity = ray, NodeAffinitySchedulingStrategy
        self._head = orders.head
        host = orders.address.rpartition(":")[0]
        # Ray takes the address of the interface of the default route for this node's, also where all of it is local.
        local = {"_node_ip_address": host} if host.startswith("127.") else {}
        ray.init(
            address=orders.address,
            namespace=namespace(orders.head),
            log_to_driver=False,
            logging_level="ERROR",
            **local,
        )
        self._agent = ray.remote(NodeAgent)
        self.version = str(ray.__version__)

    @property
    def authenticated(self) -> bool:
        """Whether Ray asks for a token here."""
        return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"

    def nodes(self) -> list[Node]:
        """Those that live."""
        draining = self._draining()
        return [
            Node(
                told["NodeID"],
                host_name(told.get("NodeName", ""), told["NodeManagerAddress"], told["NodeManagerHostname"]),
                told["NodeManagerAddress"],
                int(told["Resources"].get("GPU", 0)),
                told["NodeID"] in draining,
            )
            for told in self._ray.nodes()
            if told["Alive"]
        ]

    def _draining(self) -> frozenset[str]:
        """Nodes that Ray is about to take away. There is no public call for it; without it they are just lost."""
        with contextlib.suppress(Exception):
            from ray._private.state import state

            return frozenset(state.get_draining_nodes())
        return frozenset()

    def actors(self) -> set[str]:
        """Ids of the nodes that have an actor of this head, also those that an earlier launcher made."""
        found = self._ray.util.list_named_actors(all_namespaces=True)
        ours = namespace(self._head)
        return {one["name"] for one in found if one["namespace"] == ours}

    def find(self, node: str) -> Any:
        """The actor on a node; raises ValueError where there is none any more."""
        return self._ray.get_actor(node, namespace=namespace(self._head))

    def start(self, node: Node) -> Any:
        """Make the actor of a node; it has all GPUs of that node as soon as nobody else has one."""
        return self._agent.options(
            name=node.id,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=0,  # one that died is made anew by the launcher, which alone decides what there is
            num_cpus=0,  # a process that waits; and nodes may have none for Ray
            num_gpus=node.gpus,
            scheduling_strategy=self._affinity(node.id, soft=False),
        ).remote(self._head, node.name)

    def end(self, handle: Any) -> None:
        """End an actor and its host. One that does not answer is killed, and the kernel tells its host."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.get(handle.stop.remote(), timeout=_STOP_S)
        self._ray.kill(handle)

    def call(self, calls: Sequence[Any]) -> list[Any]:
        """The answers to calls of actors, in order; instead of one that did not come, its error or None."""
        done, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=_LOOK_S)
        came = set(done)
        return [self._answer(call) if call in came else None for call in calls]

    def _answer(self, call: Any) -> Any:
        try:
            return self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            return error


@attrs.define(eq=False)
class Launcher:
    """Looks at the nodes again and again, and sees to it that each has its actor."""

    _mailbox: Mailbox
    _ray: Cluster
    _actors: dict[str, Actor] = attrs.field(factory=dict, init=False)  # by node
    _died: dict[str, str] = attrs.field(factory=dict, init=False)  # node → why its actor could not live

    def run(self) -> None:
        """Until the orders are that there shall be no actor, and there is none."""
        while True:
            orders, codes = self._mailbox.look()
            if not orders.wanted and not self._ray.actors():
                self._mailbox.say(Cleared())
                return
            self._pass(orders, codes)
            self._mailbox.wait(_PASS_S)

    def _pass(self, orders: Orders, codes: dict[str, str]) -> None:
        nodes = self._ray.nodes()
        existing = self._ray.actors()
        wanted = plan(nodes, existing, orders)
        self._know(nodes, existing)
        self._change(wanted)
        for node, link in codes.items():
            if (actor := self._actors.get(node)) is not None:
                actor.handle.enrol.remote(link)
        looks = self._look() if orders.wanted else {}
        self._died = {id: why for id, why in self._died.items() if id not in looks or looks[id].state == "none"}
        told = news(nodes, looks, self._died | wanted.refused)
        self._mailbox.say(Seen(told, self._ray.version, self._ray.authenticated))

    def _know(self, nodes: list[Node], existing: set[str]) -> None:
        """Forget actors that are gone, and find those that an earlier launcher made."""
        self._actors = {id: actor for id, actor in self._actors.items() if id in existing}
        for node in nodes:
            if node.id in existing and node.id not in self._actors:
                with contextlib.suppress(ValueError):
                    self._actors[node.id] = Actor(node, self._ray.find(node.id))

    def _change(self, wanted: Plan) -> None:
        for id in wanted.end:
            with contextlib.suppress(ValueError):
                self._ray.end(self._ray.find(id))
            self._actors.pop(id, None)
        for id in wanted.leave:
            if (actor := self._actors.get(id)) is not None:
                actor.handle.leave.remote()
        for node in wanted.start:
            self._actors[node.id] = Actor(node, self._ray.start(node))

    def _look(self) -> dict[str, NodeNews]:
        """Ask all actors; those that need a code get one from the daemon."""
        actors = list(self._actors.values())
        answers = self._ray.call([actor.asked() for actor in actors]) if actors else []
        looks = {}
        for actor, answer in zip(actors, answers, strict=True):
            node = actor.node
            state, reason, needs = self._judged(actor, answer)
            looks[node.id] = NodeNews(node.id, node.name, node.address, node.gpus, state, reason)
            if needs:
                self._mailbox.say(Asked(node.id, node.name))
        return looks

    def _judged(self, actor: Actor, answer: Any) -> tuple[Any, str, bool]:
        if answer is not None:
            actor.answered()
        if isinstance(answer, tuple):
            return answer
        if answer is not None:
            self._died[actor.node.id] = reason = f"its actor ended: {_first_line(answer)}"
            return "none", reason, False
        if time.monotonic() - actor.since_s < _START_S:
            return "starting", "", False
        return "starting", "its actor does not start: somebody else has GPUs of this node in Ray (ray status)", False


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    last = lines[-1].strip() if "Error" in lines[-1] else lines[0].strip() if lines else ""
    return last or type(error).__name__


def main() -> None:
    """Serve the daemon whose socket is the standard input, until it ends or Ray does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C of a terminal is for the daemon, which then ends this
    mailbox = Mailbox(socket.socket(fileno=os.dup(0)))
    try:
        Launcher(mailbox, Cluster(mailbox.first())).run()
    except ImportError:
        words = f"Ray is not installed for {sys.executable}: pip install 'obatchd[ray]' on the head and on all nodes"
        mailbox.say(Trouble(words))
    except ConnectionError as error:
        hint = (
            "" if os.environ.get("RAY_AUTH_MODE") else " (where it asks for a token, obatchd needs RAY_AUTH_MODE=token)"
        )
        mailbox.say(Trouble(f"{_first_line(error)}{hint}"))
    except Exception as error:
        mailbox.say(Trouble(f"{type(error).__name__}: {_first_line(error)}"))
        raise


if __name__ == "__main__":
    main()
