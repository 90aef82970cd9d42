"""Keeps the launcher of Ray running, a process of its own, and tells what it says.

The daemon never imports Ray: a client of Ray is ended with its process when Ray's head is gone. Whatever the launcher
comes to, another one follows after a pause, for ever; hosts and their sessions do not depend on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import attrs
import msgspec

from obatchd import log
from obatchd.cluster.host.files import read_file, write_file
from obatchd.cluster.launching import (
    Asked,
    Cleared,
    Code,
    FromLauncher,
    NodeNews,
    Orders,
    Seen,
    Trouble,
    from_launcher,
)
from obatchd.documents.engine import EngineNode, EngineState
from obatchd.errors import ObatchError
from obatchd.frames import Channel
from obatchd.settings.tables.cluster import ClusterSettings
from obatchd.tasks import TaskOwner, TaskSet

_log = log.get(__name__)
_PAUSES_S = (1.0, 2.0, 5.0)  # between two launchers, where they end again and again
_STEADY_S = 30.0  # after so long the pauses begin anew
_CONNECT_S, _SILENT_S = 60.0, 60.0  # without a word: then it hangs in Ray, and another one may do better
_END_S = 3.0
_JOINS_WITHIN_S = 30.0  # a code is for one host, which may need so long to come
_LOG_BYTES = 2**20
_GONE = (
    "Ray is gone: {}. Start it on its head with  ray start --head  and on each node with  ray start --address HEAD:6379"
    "  ; hosts come back by themselves"
)


class Admission(Protocol):
    """Lets hosts join; :class:`obatchd.daemon.hosts.Codes`."""

    def names(self) -> Collection[str]:
        """Of all hosts that have joined."""
        ...

    def link(self) -> str:
        """A new link with which one host joins; blocks. Raises ObatchError where there can be none."""
        ...


class _Kept(msgspec.Struct):
    """The file: where there may be actors, also when the daemon begins anew with other settings."""

    address: str
    joined: dict[str, str] = {}  # node → name of its host, which had joined when the launcher looked last
    let_go: set[str] = set()  # nodes whose host was forgotten


@attrs.define(eq=False)
class Launcher:
    """Keeps it. Does nothing, and starts no process, where the engine is none and no actor can be left of another."""

    _settings: ClusterSettings
    _file: Path
    _head: str  # uuid
    _admission: Admission
    _owner: TaskOwner
    _command: Sequence[str] = (sys.executable, "-m", "obatchd.cluster.launch_ray")
    _kept: _Kept | None = attrs.field(default=None, init=False)
    _tasks: TaskSet = attrs.field(init=False)
    _seen: Seen | None = attrs.field(default=None, init=False)  # the latest word of a launcher that runs
    _trouble: str = attrs.field(default="", init=False)  # why there is none
    _told: str = attrs.field(default="", init=False)  # of it, in the log
    _channel: Channel[FromLauncher] | None = attrs.field(default=None, init=False)
    _inviting: set[str] = attrs.field(factory=set, init=False)  # nodes that get a code now

    def __attrs_post_init__(self) -> None:
        self._tasks = TaskSet(self._owner)
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            self._kept = msgspec.json.decode(read_file(self._file), type=_Kept)

    def start(self) -> None:
        if self._wanted or self._kept is not None:
            self._tasks.start(self._run(), "launcher")

    async def stop(self) -> None:
        """End the launcher. Actors and hosts go on, and are found again."""
        await self._tasks.stop()

    @property
    def _wanted(self) -> bool:
        return self._settings.engine == "ray"

    def state(self) -> EngineState | None:
        """As ``obatchctl hosts`` shows it; None: there is no engine, and nothing left of one."""
        if self._kept is None and not self._wanted:
            return None
        seen = self._seen
        state = "here" if seen is not None else "gone" if self._trouble else "starting"
        nodes = (
            [EngineNode(one.name, one.address, one.gpus, one.state, one.reason) for one in seen.nodes] if seen else []
        )
        return EngineState(
            "ray", self._address, state, self._reason(), seen.version if seen else "",
            seen.authenticated if seen else None, nodes,
        )  # fmt: skip

    @property
    def trouble(self) -> str:
        """Why no host can be started now, with what to do; empty: nothing is known of that."""
        return self._trouble if self._seen is None and self._wanted else ""

    def notices(self) -> list[str]:
        """Nodes of Ray on which no host runs, each with the reason."""
        nodes = self._seen.nodes if self._seen is not None else ()
        return [f"Ray's node {node.name}: {node.reason}" for node in nodes if node.reason]

    def _reason(self) -> str:
        if self._seen is None:
            return self._trouble
        return "" if self._wanted else "its actors are being ended, because engine is not ray any more"

    @property
    def _address(self) -> str:
        """Where there may be actors comes first: they are ended before others are made elsewhere."""
        return self._kept.address if self._kept is not None else self._settings.address

    async def _run(self) -> None:
        ends = 0
        while self._wanted or self._kept is not None:
            began_s = time.monotonic()
            moved = self._kept is not None and self._kept.address != self._settings.address
            try:
                cleared = await self._one(self._wanted and not moved)
            except OSError as error:
                cleared = False
                self._lost(f"the launcher cannot be started: {log.reason(error)}")
            if cleared:
                await self._forget_file()
                continue
            ends = 0 if time.monotonic() - began_s > _STEADY_S else ends + 1
            await asyncio.sleep(_PAUSES_S[min(ends, len(_PAUSES_S) - 1)])

    async def _one(self, wanted: bool) -> bool:
        """One launcher from its start to its end; whether no actor is left."""
        if self._kept is None:
            self._kept = _Kept(self._settings.address)
            await self._keep()
        ours, theirs = socket.socketpair()
        with theirs, self._log_file() as output:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=theirs.fileno(), stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        words, cleared = "", False
        try:
            channel = self._channel = await Channel.open(ours, from_launcher)
            self._order(wanted)
            words, cleared = await self._listen(channel)
        finally:
            self._seen = self._channel = None
            channel.close()
            code = await _ended(process)
        if not cleared:
            self._lost(words or f"its launcher ended with exit code {code}")
        return cleared

    async def _listen(self, channel: Channel[FromLauncher]) -> tuple[str, bool]:
        """Hear it out: why it ended, as far as it said so, and whether no actor is left."""
        words = ""
        try:
            while True:
                async with asyncio.timeout(_SILENT_S if self._seen else _CONNECT_S):
                    message = await channel.receive()
                match message:
                    case Trouble():
                        words = message.words
                    case Cleared():
                        return "", True
                    case Asked() if not self._is_forgotten(message.node):
                        self._invite(message.node, message.name)
                    case Seen():
                        await self._look_at(message)
        except TimeoutError:
            return f"it does not answer within {_SILENT_S:g} s", False
        except (ConnectionError, ValueError, msgspec.DecodeError):
            return words, False

    def _order(self, wanted: bool) -> None:
        assert self._kept is not None and self._channel is not None
        self._channel.send(Orders(self._kept.address, self._head, wanted, frozenset(self._kept.let_go)))

    async def _look_at(self, seen: Seen) -> None:
        if self._seen is None:
            _log.info("ray_here", version=seen.version, nodes=len(seen.nodes), authenticated=seen.authenticated)
            self._trouble = self._told = ""
        self._seen = seen
        assert self._kept is not None
        if not self._wanted or self._kept.address != self._settings.address:
            return
        joined, let_go = known(seen.nodes, self._kept.joined, set(self._admission.names()))
        let_go |= self._kept.let_go & {node.id for node in seen.nodes}
        if (joined, let_go) != (self._kept.joined, self._kept.let_go):
            for node_id in let_go - self._kept.let_go:
                _log.info("ray_host_forgotten", node=node_id, host=self._kept.joined[node_id])
            self._kept.joined, self._kept.let_go = joined, let_go
            await self._keep()
            self._order(True)
        for node in strangers(seen.nodes, joined, let_go):
            self._invite(node.id, node.name)

    def _is_forgotten(self, node: str) -> bool:
        """Also one whose host was forgotten a moment ago: it has seen that its credential is good for nothing."""
        assert self._kept is not None
        joined = self._kept.joined.get(node)
        return node in self._kept.let_go or (joined is not None and joined not in self._admission.names())

    def _invite(self, node: str, name: str) -> None:
        if node not in self._inviting:
            self._inviting.add(node)
            self._tasks.start(self._send_code(node, name), f"code-{name}")

    async def _send_code(self, node: str, name: str) -> None:
        """Have the host on a node join by a code for it alone, and leave it the time to do so."""
        try:
            link = await asyncio.to_thread(self._admission.link)
            if self._channel is not None and self._channel.send(Code(node, link)):
                _log.info("ray_host_invited", host=name)
                await asyncio.sleep(_JOINS_WITHIN_S)
        except ObatchError as error:
            _log.error("ray_host_not_invited", host=name, reason=error.message)
            await asyncio.sleep(_JOINS_WITHIN_S)
        finally:
            self._inviting.discard(node)

    def _lost(self, words: str) -> None:
        self._trouble = _GONE.format(words.rstrip("."))
        if words != self._told:
            _log.warning("ray_gone", reason=words)
        self._told = words

    # The file.

    async def _keep(self) -> None:
        try:
            await asyncio.to_thread(self._write, msgspec.json.format(msgspec.json.encode(self._kept), indent=1))
        except OSError as error:
            _log.error("ray_file_not_written", path=self._file, reason=log.reason(error))

    def _write(self, text: bytes) -> None:
        self._file.parent.mkdir(mode=0o700, exist_ok=True)
        write_file(self._file, text)

    async def _forget_file(self) -> None:
        _log.info("ray_cleared", address=self._address)
        await asyncio.to_thread(self._file.unlink, missing_ok=True)
        self._kept = None

    def _log_file(self) -> BinaryIO:
        """Where the launcher writes what Ray says; short, because the launcher says itself what matters."""
        path = self._file.with_suffix(".log")
        path.parent.mkdir(mode=0o700, exist_ok=True)
        whole = path.exists() and path.stat().st_size > _LOG_BYTES
        return open(path, "wb" if whole else "ab")


async def _ended(process: asyncio.subprocess.Process) -> int:
    """Its exit code; one that hangs in Ray is killed, which its actors do not notice."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_S):
            return await process.wait()
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    return await process.wait()


def known(nodes: Collection[NodeNews], joined: dict[str, str], names: set[str]) -> tuple[dict[str, str], set[str]]:
    """The nodes whose hosts have joined, and those whose host had, but was forgotten since."""
    now = {node.id: node.name for node in nodes if node.name in names}
    forgotten = {node.id for node in nodes if node.id in joined and joined[node.id] not in names}
    return now, forgotten


def strangers(nodes: Collection[NodeNews], joined: dict[str, str], let_go: set[str]) -> list[NodeNews]:
    """Nodes with a host that runs, but that the head does not know: its credential is that of an earlier life."""
    return [node for node in nodes if node.state == "running" and node.id not in joined and node.id not in let_go]
