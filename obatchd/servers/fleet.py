"""All servers of one daemon: which there are, started one after another, ended together, and who else is around."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import psutil

import obatchd.log
from obatchd.errors import ConfigError, GpuError, ServerError
from obatchd.gpus.probe import Probe
from obatchd.gpus.selection import Given, PlannedServer, choose, given
from obatchd.ollama.api import OllamaApi
from obatchd.servers import environment
from obatchd.servers.claims import GpuClaims
from obatchd.servers.managed import FactStore, Host, ManagedServer, free_port, port_is_free
from obatchd.servers.neighbours import Neighbours, process_words
from obatchd.servers.program import Program
from obatchd.servers.server import RemoteServer, Server, ServerFace, ServerListener
from obatchd.servers.sweep import sweep
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.tasks import TaskSet

log = obatchd.log.get(__name__)

FOREIGN_URL = "http://127.0.0.1:11434"  # where an Ollama installed as a service listens; it takes every GPU
_EXPOSED = "Ollama has no authentication: whoever reaches these ports can use, change and delete models."
_LOOK_S = 30.0
_FOREIGN_TIMEOUT_S = 1.0


@attrs.define(eq=False)
class Fleet:
    """Plans, starts and ends the servers."""

    _current: Current[Settings] = attrs.field(alias="settings")
    _work: Path  # directory for logs and homes of the servers
    _instance: str  # uuid of the spool; marks every process we start
    _program: Program  # of managed servers
    _probe: Probe
    _facts: FactStore
    _tasks: TaskSet = attrs.field(alias="owner", converter=TaskSet)  # told when one of them ends by an exception
    servers: dict[str, Server] = attrs.field(factory=dict, init=False)  # of this machine, by id, in order
    guests: dict[str, ServerFace] = attrs.field(factory=dict, init=False)  # of joined hosts, by id; they come and go
    swept_s: list[float] = attrs.field(factory=list, init=False)  # when we killed processes of an earlier daemon; epoch
    lacks_gpus: bool = attrs.field(default=False, init=False)  # servers on GPUs were to be, and there was no GPU
    _ours: Given = attrs.field(default=Given([], ""), init=False)
    foreign_ollama: str = attrs.field(default="", init=False)  # one that is not ours, in plain words; empty for none
    _listener: ServerListener = attrs.field(init=False)
    _claims: GpuClaims = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._claims = GpuClaims(self._work)

    def listen(self, listener: ServerListener) -> None:
        """Let ``listener`` hear of each change of state, in the event loop; before ``start``."""
        self._listener = listener

    @property
    def all(self) -> Mapping[str, ServerFace]:
        """The servers of this machine and those of joined hosts, by id."""
        return {**self.servers, **self.guests} if self.guests else self.servers

    def find(self, server_id: str) -> ServerFace | None:
        """A server of this machine or of a joined host; None: it is not there, or not any more."""
        return self.servers.get(server_id) or self.guests.get(server_id)

    @property
    def _settings(self) -> Settings:
        return self._current.value

    async def start(self) -> None:
        """End orphans of an earlier daemon, decide on the servers, and start them in the background.

        Raises:
            ConfigError: the settings name GPUs that are not there, or leave no server at all.
            GpuError: there is a driver, but it does not tell which GPUs there are; or another obatchd of this machine
                has one of them (``gpu_taken``).
            ServerError: ``no_ollama`` or ``bad_address``.
        """
        planned = self._plan()
        await self._claims.take(gpu for plan in planned for gpu in plan.gpus)
        if killed := await asyncio.to_thread(sweep, self._instance):
            self.swept_s = [time.time()]
            log.info("orphans_swept", count=len(killed))
        self._make(planned)
        if self._is_exposed:
            log.warning("servers_exposed", listen=self._settings.servers.listen, reason=_EXPOSED)
        self._tasks.start(self._start_all(), "fleet-start")
        self._tasks.start(self._look_around(), "fleet-look")
        neighbours = Neighbours(self._probe, self._instance, self._current)
        self._tasks.start(neighbours.watch(self.servers.values()), "fleet-neighbours")

    async def stop(self) -> None:
        """End every server that was started here, all at once; remote servers are only left."""
        await self._tasks.stop()
        await asyncio.gather(*(server.stop() for server in self.servers.values()))
        await self._claims.release()

    # --- planning ---------------------------------------------------------------------------------------------------

    def _plan(self) -> list[PlannedServer]:
        settings, probe = self._settings, self._probe
        self.lacks_gpus = settings.gpus.use != "none" and not probe.gpus
        hidden = probe.state == "unknown" or (probe.state == "absent" and probe.code not in ("no_driver", "no_gpu"))
        if self.lacks_gpus and hidden and not self._waits_for_hosts:
            raise GpuError(f'{probe.message} To go on without GPUs, set gpus = "none".', code=probe.code)
        count = settings.servers.cpu_servers
        if self.lacks_gpus and (isinstance(settings.gpus.use, list) or settings.servers.group or not count):
            log.warning(
                "gpus_awaited", reason=f"{probe.message} The settings ask for GPUs: their servers wait for them."
            )
            return []
        self._ours = given(probe.gpus, os.environ)
        planned = choose(probe.gpus, settings.gpus, settings.servers.group, self._ours)
        if self._limit:
            log.warning("gpus_limited", reason=self._limit)
        if planned or settings.ollama_instances:
            return planned
        if self._waits_for_hosts:
            log.info("hosts_awaited", reason=f"This machine has no server of its own: {probe.message or self._limit}")
            return []
        if count == 0:
            raise ConfigError(
                "There is no GPU to use, no server in [ollama_instances], and servers.cpu_servers is 0: name one."
            )
        why = f"{probe.message} If one comes later, its server starts by itself." if self.lacks_gpus else self._limit
        why = why or "The settings choose no GPU."
        log.warning(
            "cpu_only", cpu_servers=count, reason=f"{why} There is no remote server either, so the CPU does the work."
        )
        return [PlannedServer(f"cpu{number}", ()) for number in range(count)]

    @property
    def _waits_for_hosts(self) -> bool:
        """Whether other hosts do the work where this one has no GPU; its CPU does some only where that is asked."""
        servers = self._settings.servers
        of_cpu = "cpu_servers" in servers.model_fields_set and servers.cpu_servers > 0
        return self._settings.cluster.door is not None and not of_cpu

    def _make(self, planned: list[PlannedServer]) -> None:
        if planned:
            self._program.command()  # it has to be there
        environment.check(self._settings.servers)
        work = self._work.absolute()
        host = Host(
            settings=self._current,
            work=work,
            instance=self._instance,
            facts=self._facts,
            listener=self._listener,
            base=dict(os.environ),
            program=self._program,
            cpu_servers=sum(not plan.gpus for plan in planned),
            models_dir=environment.models_dir(self._settings.servers, self._program, work),
        )
        for number, (plan, port) in enumerate(zip(planned, self._ports(planned), strict=True)):
            log.info("server_planned", number=number, server=plan.id, gpus=[gpu.uuid for gpu in plan.gpus], port=port)
            self._add(ManagedServer(plan.id, plan.gpus, port, host))
        for address, index in self._settings.ollama_instances.items():
            server = RemoteServer(address, self._current, self._listener)
            gpu = next((gpu for gpu in self._probe.gpus if gpu.index == index and gpu.parent_uuid is None), None)
            if gpu is not None and _is_local(urlsplit(server.base_url).hostname or ""):
                server.gpus, server.gpu_label = (gpu,), gpu.uuid
            self._add(server)

    def _add(self, server: Server) -> None:
        if server.id in self.servers:
            raise ConfigError(f"ollama_instances: {server.base_url} is there twice; remove one.")
        self.servers[server.id] = server

    def _ports(self, planned: list[PlannedServer]) -> list[int]:
        """A port for each: counted from base_port, else the one it had last time, else a free one."""
        settings = self._settings.servers
        if settings.base_port:
            return [settings.base_port + number for number in range(len(planned))]
        ports: list[int] = []
        for plan in planned:
            kept = self._facts.get(f"port/{plan.id}") or ""
            port = int(kept) if kept.isdecimal() else 0
            if not port or port in ports or not port_is_free(settings.listen, port):
                while (port := free_port(settings.listen)) in ports:
                    pass
                self._facts.set(f"port/{plan.id}", str(port))
            ports.append(port)
        return ports

    @property
    def _limit(self) -> str:
        """What the environment takes from us, in words; empty for nothing, and where the settings name the GPUs."""
        ours = self._ours
        if self._settings.gpus.use != "all" or not ours.by:
            return ""
        return f"{ours.by} gives obatchd {len(ours.gpus)} of {len(self._probe.gpus)} GPUs; the others get no server."

    @property
    def _is_exposed(self) -> bool:
        managed = any(server.kind == "managed" for server in self.servers.values())
        return managed and not _is_loopback(self._settings.servers.listen)

    @property
    def notices(self) -> list[str]:
        """Notices for operators although everything works: exposed ports, GPUs kept from us, others on our GPUs."""
        found = [f"The servers listen on {self._settings.servers.listen}. {_EXPOSED}"] if self._is_exposed else []
        found += [notice for notice in (self._limit, self.foreign_ollama) if notice]
        return found + [
            f"Others hold memory on the GPU of {server.id}: {process_words(server.foreign)}. They are left alone."
            for server in self.servers.values()
            if server.foreign
        ]

    # --- in the background ------------------------------------------------------------------------------------------

    async def _start_all(self) -> None:
        for server in self.servers.values():
            server.begin()
            if server.kind == "managed":
                await asyncio.sleep(self._settings.servers.stagger_s)

    async def _look_around(self) -> None:
        while True:
            if all(server.base_url != FOREIGN_URL for server in self.servers.values()):
                await self._look_for_ollama()
            await asyncio.sleep(_LOOK_S)

    async def _look_for_ollama(self) -> None:
        api = OllamaApi(FOREIGN_URL)
        found = ""
        with contextlib.suppress(ServerError):
            version = await api.version(_FOREIGN_TIMEOUT_S)
            stranger = f"Ollama {version} at {FOREIGN_URL} is none of obatchd's servers"
            found = f"{stranger} and may load models on the same GPUs."
            if models := [entry.name for entry in await api.loaded(_FOREIGN_TIMEOUT_S) if entry.size_vram]:
                found = f"{stranger} and has {', '.join(models)} in VRAM."
        if found and found != self.foreign_ollama:
            log.warning("foreign_ollama", reason=found, remedy="systemctl stop ollama, if it is not needed")
        self.foreign_ollama = found


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _is_local(host: str) -> bool:
    """Whether ``host`` is this machine, as far as its address shows it."""
    own = {address.address.partition("%")[0] for found in psutil.net_if_addrs().values() for address in found}
    return _is_loopback(host) or host in own
