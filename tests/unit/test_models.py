"""The models in the stores of servers elsewhere, as their Ollamas list them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from settings_support import in_force

from obatchd.daemon.compose import ServedModels
from obatchd.documents.models import PullProgress
from obatchd.errors import ModelError, ServerError
from obatchd.gpus.energy import EnergyMeters
from obatchd.gpus.model import Gpu
from obatchd.live.models import EnergyReading
from obatchd.ollama.api import OllamaApi, ShownModel, StoredModel
from obatchd.servers.models import ModelKeeper
from obatchd.servers.server import RemoteServer, Server
from obatchd.servers.states import ServerState
from obatchd.servers.stores import pulling


class Deaf:
    """Implements :class:`obatchd.servers.server.ServerListener`."""

    def server_changed(self, server: Server, old: ServerState, new: ServerState, reason: str) -> None:
        pass


class Hosts:
    """Servers elsewhere that answer, each with the models that ``stores`` has at its address: names and digests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stores: dict[str, dict[str, str]]) -> None:
        servers = [RemoteServer(address, in_force(), Deaf()) for address in stores]
        for server in servers:
            server.state = ServerState.READY
        self.stores = {server.base_url: stores[server.address] for server in servers}
        by_id = {server.id: server for server in servers}
        self.fleet: Any = SimpleNamespace(servers=by_id, all=by_id, find=by_id.get)
        self.keeper = ModelKeeper(in_force(), self.fleet)
        self.meters = EnergyMeters()
        self.served = ServedModels(self.keeper, self.fleet, self.meters)

        async def stored(api: OllamaApi, timeout_s: float) -> list[StoredModel]:
            return [StoredModel(f"{name}:latest", digest) for name, digest in self.stores[api._base_url].items()]

        async def show(api: OllamaApi, model: str, timeout_s: float) -> ShownModel:
            return ShownModel()

        monkeypatch.setattr(OllamaApi, "stored", stored)
        monkeypatch.setattr(OllamaApi, "show", show)

    async def used(self, model: str) -> None:
        """Every server is to answer with the model."""
        for server in self.fleet.servers.values():
            await self.keeper.ensure_on(server, model)


FIRST, SECOND, THIRD = "10.0.0.1:11434", "10.0.0.2:11434", "10.0.0.3:11434"
IDS = [f"remote-10.0.0.{number}-11434" for number in (1, 2, 3)]


async def test_one_name_for_two_models_is_told_and_each_server_of_the_job_has_its_digest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before, the summary named the digest of the first server for the answers of all."""
    digests = ["55be55be55be55be", "55be55be55be55be", "b0604b0604b0604"]
    stores = {address: {"m": digest} for address, digest in zip([FIRST, SECOND, THIRD], digests, strict=True)}
    hosts = Hosts(monkeypatch, stores)
    await hosts.used("m")
    told = f"m:latest is not the same model on all servers: {IDS[2]} has b0604b0604b0, the others 55be55be55be;"
    [notice] = hosts.keeper.notices
    assert notice.startswith(told) and "ollama pull m" in notice
    assert caplog.text.count(told) == caplog.text.count("event=model_differs") == 1

    facts = hosts.served.facts("m", IDS)
    assert (facts.digest, facts.digests) == (digests[0], dict(zip(IDS, digests, strict=True)))
    assert not hosts.served.facts("m", IDS[:2]).digests
    only = hosts.served.facts("m", IDS[2:])
    assert (only.digest, bool(only.digests)) == (digests[2], False)


async def test_a_list_of_models_sees_that_they_are_one_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts(monkeypatch, {FIRST: {"m": "55be"}, SECOND: {"m": "b060"}})
    await hosts.used("m")
    assert hosts.keeper.notices
    hosts.stores["http://" + SECOND]["m"] = "55be"
    await hosts.keeper.list_models()
    assert not hosts.keeper.notices


async def test_only_hosts_that_lack_a_model_are_told_to_pull_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, the first one was, which had it."""
    hosts = Hosts(monkeypatch, {FIRST: {"m": "55be"}, SECOND: {}, THIRD: {"m": "55be"}})
    tried: list[str] = []

    async def pull_through(server: Server, state: PullProgress) -> AsyncIterator[int]:
        tried.append(server.id)
        hosts.stores[server.base_url]["m"] = "55be"
        yield 0

    monkeypatch.setattr(pulling, "pull_through", pull_through)
    assert [step async for step in hosts.keeper.pull("m")]
    assert tried == [IDS[1]]
    assert [step async for step in hosts.keeper.pull("m")]
    assert tried == [IDS[1], *IDS]  # all have it: they are brought up to date


async def test_a_model_that_nobody_has_is_told_with_the_one_that_may_be_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, a slip of the hand was told as trouble with the network of the servers."""
    hosts = Hosts(monkeypatch, {FIRST: {"tiny": "55be"}})

    async def pull_through(server: Server, state: PullProgress) -> AsyncIterator[int]:
        raise ModelError("Pulling tinny failed: dial tcp: i/o timeout.", code="pull_failed")
        yield 0

    monkeypatch.setattr(pulling, "pull_through", pull_through)
    with pytest.raises(ModelError, match=r"i/o timeout\. Did you mean tiny, which is here\?") as caught:
        await hosts.used("tinny")
    assert caught.value.code == "pull_failed"


async def test_a_model_of_hosts_of_others_is_removed_there(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts(monkeypatch, {FIRST: {"m": "55be"}})
    with pytest.raises(ServerError, match="run `ollama rm m` on their hosts"):
        await hosts.keeper.remove("m")


async def test_a_plain_address_of_a_port_that_speaks_tls_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()  # as a server does that wants a handshake first

    listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    server = RemoteServer(f"127.0.0.1:{listener.sockets[0].getsockname()[1]}", in_force(), Deaf())
    server.begin()
    await asyncio.wait_for(server.until({ServerState.BACKOFF, ServerState.FAILED}), 10)
    assert "broke off its answer" in server.reason
    assert "Does it speak https? Then write https:// in front of its address." in server.reason
    await server.stop()
    listener.close()


async def test_a_server_that_is_down_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts(monkeypatch, {FIRST: {"m": "55be"}, SECOND: {"m": "b060"}})
    await hosts.used("m")
    hosts.fleet.servers[IDS[1]].state = ServerState.BACKOFF
    assert not hosts.keeper.notices


def test_the_energy_of_a_card_with_two_servers_is_given_to_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them had all of it, so their jobs together had twice what the card took."""
    hosts = Hosts(monkeypatch, {address: {} for address in (FIRST, SECOND, THIRD)})
    first, second, third = (hosts.fleet.servers[name] for name in IDS)
    for index, server in ((0, first), (0, second), (1, third)):
        server.gpus = (Gpu(f"GPU-{index}", "Simulated", index, "", None, ""),)
        hosts.meters.add(f"GPU-{index}", 5.0, 1.0)
    assert hosts.served.energy(IDS[0]) is None and hosts.served.energy(IDS[1]) is None
    assert hosts.served.why_no_energy(IDS[0]) == (
        f"it shares its GPU with {IDS[1]}, and the energy is counted for the whole GPU"
    )
    assert hosts.served.energy(IDS[2]) == EnergyReading(1.0, 0.0, 0) and not hosts.served.why_no_energy(IDS[2])
