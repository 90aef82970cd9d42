"""What changes at a host, told to the head: servers at once, the rest within seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Protocol

import attrs
import msgspec

from obatchd.cluster.host.head import Head
from obatchd.cluster.messages import HostNews, ServerGone, ServerNews, SlotNews
from obatchd.documents.gpus import Gpus, Reading
from obatchd.documents.models import PullProgress
from obatchd.jobs.model import Profile
from obatchd.servers.managed import ManagedServer
from obatchd.servers.server import Server
from obatchd.servers.states import ServerState

_LOOK_S = 0.5
_SOON_S = 1.0  # between two news of the host that somebody waits for
_READINGS_S = 5.0


class Sights(Protocol):
    """What there is to see at a host; :class:`obatchd.daemon.host.Sights`."""

    def servers(self) -> Mapping[str, ManagedServer]:
        """By id."""
        ...

    def gpus(self) -> Gpus: ...
    def readings(self) -> Mapping[str, Reading]:
        """The latest of each GPU, by UUID."""
        ...

    def notices(self) -> list[str]: ...
    def pulls(self) -> Mapping[str, PullProgress]: ...
    def share(self) -> str:
        """Of its store, see :mod:`obatchd.servers.stores.sharing`."""
        ...


@attrs.define(eq=False)
class News:
    """Compares what there is with what the head knows. Implements :class:`obatchd.servers.server.ServerListener`."""

    _head: Head
    _sights: Sights
    _told: dict[str, ServerNews] = attrs.field(factory=dict, init=False)
    _told_of_host: HostNews | None = attrs.field(default=None, init=False)
    _host_s: float = attrs.field(default=0.0, init=False)  # monotonic time of the latest news of the host

    def begin(self) -> None:
        """A session begins, in which nothing is known yet: tell all."""
        self._told.clear()
        self._told_of_host = None
        self.look()
        self._tell_of_host()

    def server_changed(self, server: Server, old: ServerState, new: ServerState, reason: str) -> None:
        self.look()

    def look(self) -> None:
        """Tell of each server that has changed; before an answer that depends on it."""
        if self._head.session is None:
            return
        servers = self._sights.servers()
        for server in servers.values():
            news, told = server_news(server), self._told.get(server.id)
            if told is None or news != msgspec.structs.replace(told, unloads_in_s=news.unloads_in_s):
                self._told[server.id] = news
                self._head.say(news)
        for gone in self._told.keys() - servers.keys():
            del self._told[gone]
            self._head.say(ServerGone(gone))

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if self._head.session is not None:
                self.look()
                self._look_at_host()

    def _look_at_host(self) -> None:
        passed_s = time.monotonic() - self._host_s
        if passed_s >= _READINGS_S or (passed_s >= _SOON_S and self._is_urgent()):
            for server_id, told in self._told.items():
                if told.unloads_in_s is not None:  # a time that runs, and is told with the readings
                    self._head.say(server_news(self._sights.servers()[server_id]))
            self._tell_of_host()

    def host_changed(self) -> None:
        """Tell of the host now."""
        if self._head.session is not None:
            self._tell_of_host()

    def _is_urgent(self) -> bool:
        told = self._told_of_host
        if told is None or told.notices != self._sights.notices() or told.pulls != self._sights.pulls():
            return True
        cards = [(card.uuid, card.health, card.reason, card.lent_until) for card in self._sights.gpus().gpus]
        return cards != [(card.uuid, card.health, card.reason, card.lent_until) for card in told.gpus.gpus]

    def _tell_of_host(self) -> None:
        self._host_s = time.monotonic()
        used = {gpu.uuid for server in self._sights.servers().values() for gpu in server.gpus}
        readings = [reading for uuid, reading in self._sights.readings().items() if uuid in used]
        pulls = {name: msgspec.structs.replace(pull) for name, pull in self._sights.pulls().items()}
        sights, leaving = self._sights, self._head.leaving
        news = HostNews(sights.gpus(), readings, sights.notices(), pulls, leaving, sights.share())
        if news != self._told_of_host:
            self._head.say(news)
        self._told_of_host = news


def server_news(server: ManagedServer) -> ServerNews:
    """A server as the head sees it."""
    return ServerNews(
        id=server.id,
        state=server.state.value,
        reason=server.reason,
        down=server.down,
        base_url=server.base_url,
        gpu_label=server.gpu_label,
        gpus=list(server.gpus),
        slots=server.slots,
        version=server.version,
        loaded=server.loaded,
        loading=server.loading,
        load_s=server.load_s,
        restarts=server.restarts,
        pid=server.pid,
        load_options=_beside_context(server),
        starting_runner=server.starting_runner,
        holds=dict(server.holds),
        model_vram_bytes=server.model_vram_bytes,
        unloads_in_s=server.unloads_in_s,
        loads=server.loads,
        tuning=_slot_news(server.tuning) if server.tuning is not None else None,
    )


def _slot_news(server: ManagedServer) -> SlotNews:
    return SlotNews(
        server.device, server.driver, server.memory_bytes, server.vram_bytes, server.process_slots,
        server.first_slots(Profile("", 0)), server.fresh, server.beside_others,
    )  # fmt: skip


def _beside_context(server: ManagedServer) -> dict[str, Any]:
    options = server.load_options(Profile("", 0))
    return {name: value for name, value in options.items() if name != "num_ctx"}
