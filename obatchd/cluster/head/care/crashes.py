"""Crashes of servers, as dispatch sees them, told to whoever takes care of the card: this machine or its host."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from obatchd import log
from obatchd.cluster.head.joined import JoinedHost
from obatchd.cluster.head.server import HostedServer
from obatchd.dispatch.events import CrashListener
from obatchd.errors import ObatchError
from obatchd.gpucare.moving import CrashesHere
from obatchd.servers.server import ServerFace
from obatchd.tasks import TaskSet

_log = log.get(__name__)
_ANSWER_S = 10.0


class CrashesOfAll(CrashListener):
    """``own`` cares for the cards of this machine; ``guests`` are the servers of hosts, by id."""

    def __init__(
        self, own: CrashesHere, guests: Mapping[str, ServerFace], hosts: Mapping[str, JoinedHost], tasks: TaskSet
    ) -> None:
        self._own = own
        self._guests = guests
        self._hosts = hosts
        self._tasks = tasks

    def crashed(self, server_id: str, work: str, crashed_s: float) -> None:
        if isinstance(server := self._guests.get(server_id), HostedServer):
            self._tell(server, "crashed", work=work, ago_s=time.monotonic() - crashed_s)
        else:
            self._own.crashed(server_id, work, crashed_s)

    def cleared(self, server_id: str, work: str, crashed_s: float, answered_by: str) -> None:
        other = self._guests.get(answered_by)
        cards = {gpu.card for gpu in other.gpus} if other is not None else self._own.cards_of(answered_by)
        words = f"{server_id} crashed, and {answered_by} answered what it was working on"
        if isinstance(server := self._guests.get(server_id), HostedServer):
            ago_s = time.monotonic() - crashed_s
            self._tell(server, "cleared", work=work, ago_s=ago_s, answered_by=sorted(cards), reason=words)
        else:
            self._own.cleared_by(server_id, work, crashed_s, cards, words)

    def _tell(self, server: HostedServer, what: str, **arguments: Any) -> None:
        self._tasks.start(self._call(server, what, arguments), f"{what}-{server.id}")

    async def _call(self, server: HostedServer, what: str, arguments: dict[str, Any]) -> None:
        host = self._hosts.get(server.host)
        if host is None or host.session is None:
            return
        try:
            await host.session.call(f"care.{what}", type(None), _ANSWER_S, server=server.local_id, **arguments)
        except ObatchError as error:
            _log.warning("crash_not_told", server=server.id, reason=error.message)
