"""Crashes of servers that speak against a GPU, from the failed request to the quarantine."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dispatch_support import CRASH, LARGE, SMALL, Port, Rig, settle
from settings_support import in_force
from task_support import Failures
from test_gpu_monitor import Bench, DictFacts
from work_support import Alarms

from obatchd.daemon.compose import DispatchMover
from obatchd.gpucare.policy import GpuPolicy
from obatchd.gpucare.watch import GpuWatch
from obatchd.gpus.model import Gpu, Reading, XidEvent
from obatchd.jobs.model import Profile
from obatchd.servers.managed import ManagedServer
from obatchd.servers.states import ServerState


class OnCard(ManagedServer):
    """The part of a server that the duty looks at."""

    def __init__(self, server_id: str, gpu: Gpu, loaded: Profile | None) -> None:
        self.id, self.gpus, self.loaded, self.loading = server_id, (gpu,), loaded, None
        self.state = ServerState.READY
        self.idle = asyncio.Event()
        self.idle.set()
        self.holds: dict[str, str] = {}
        self.ends: list[float] = []

    @property
    def ended(self) -> list[float]:
        return self.ends

    def hold(self, by: str, reason: str) -> None:
        self.holds[by] = reason

    def resume(self, by: str) -> None:
        del self.holds[by]

    async def unload(self) -> None:
        self.loaded = None

    async def quarantine(self, reason: str) -> None:
        self.state = ServerState.QUARANTINED


class Host:
    """Two cards with a server each, and one server elsewhere."""

    def __init__(self, rig: Rig, work: Path) -> None:
        self.rig = rig
        self.gpus = Bench(count=2).gpus
        self.servers = [OnCard(f"gpu{n}", gpu, SMALL) for n, gpu in enumerate(self.gpus)]
        servers = {each.id: each for each in self.servers} | {"far": SimpleNamespace(state=ServerState.READY)}
        fleet: Any = SimpleNamespace(
            servers=servers,
            all=servers,
            swept_s=[],
        )
        probe: Any = SimpleNamespace(gpus=self.gpus, listen=lambda listener: None)
        self.owner, alarms = Failures(), Alarms()
        self.facts, self.fleet = DictFacts(), fleet
        watch = GpuWatch(in_force(), probe, fleet, self.facts, work, work / "kernel.log", self.owner)
        self.duty = GpuPolicy(in_force(), watch, fleet, DispatchMover(rig.dispatcher), alarms, self.owner)
        self.duty.start()
        self.jobs = 0

    async def crash(self, at: str, answered_by: str) -> None:
        """A request that is in flight at one server when that crashes is answered in the end."""
        for server_id, port in self.rig.ports.items():
            port.is_ready = server_id == at
        self.jobs += 1
        await self.rig.add(self.jobs, 1)
        key = (self.jobs, 1)
        self.rig.worker(at).begin(key)
        self.rig.ports[at].is_ready, self.rig.ports[answered_by].is_ready = False, True
        self.rig.worker(at).end(key, CRASH)
        await settle()
        self.rig.worker(answered_by).end(key)
        await settle()

    def judge(self) -> list[bool]:
        """Whether each card's server gets no more work."""
        self.duty.monitor.readings([Reading(gpu.uuid, time.time(), 90) for gpu in self.gpus])
        return ["quarantine" in server.holds for server in self.servers]


@pytest.fixture
async def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("obatchd.gpus.monitor._ONE_CRASH_S", 0.0)  # the crashes of these tests come at once
    rig = await Rig(*(Port(name, loaded=SMALL) for name in ("gpu0", "gpu1", "far"))).start()
    made = Host(rig, tmp_path)
    yield made
    await made.duty.stop()
    await rig.dispatcher.stop()


async def test_three_crashes_of_what_another_card_can_do_condemn_whatever_is_loaded_by_then(host: Host) -> None:
    for _ in range(2):
        await host.crash("gpu0", answered_by="gpu1")
    assert host.judge() == [False, False]
    await host.crash("gpu0", answered_by="gpu1")
    host.servers[0].loaded = LARGE
    assert host.judge() == [True, False]


async def test_what_a_server_elsewhere_can_do_says_nothing_about_a_card(host: Host) -> None:
    for _ in range(3):
        await host.crash("gpu0", answered_by="far")
    host.servers[0].loaded = None  # it starts again, while the other card is well with another model
    host.servers[1].loaded = LARGE
    assert host.judge() == [False, False]


async def test_a_card_that_crashes_too_clears_nobody_whoever_answered_then(host: Host) -> None:
    for _ in range(3):
        await host.crash("gpu0", answered_by="gpu1")
    await host.crash("gpu1", answered_by="gpu1")
    assert host.judge() == [False, False]


async def test_a_card_is_not_compared_with_those_that_have_another_model_or_while_it_has_none(host: Host) -> None:
    monitor = host.duty.monitor
    host.servers[0].loaded, host.servers[1].loaded = None, LARGE
    monitor.xids([XidEvent(xid, time.time() + xid, uuid="GPU-0") for xid in (31, 13, 43)])
    assert host.judge() == [False, False]
    host.servers[0].loading = LARGE
    assert host.judge() == [True, False]


@pytest.mark.parametrize("lent", [0, 1])
async def test_a_group_gets_no_work_while_one_of_its_cards_is_lent(host: Host, lent: int) -> None:
    group, other = host.servers
    group.gpus, other.gpus = tuple(host.gpus), ()
    host.duty.lend(host.gpus[lent].uuid, 3600.0)
    assert "lent" in group.holds and "lent" not in other.holds
    host.duty.take_back(host.gpus[lent].uuid)
    assert "lent" not in group.holds


async def test_the_end_of_a_server_that_we_ended_is_no_finding(host: Host) -> None:
    now_s = time.time()
    host.servers[0].ends = [now_s]
    host.duty.monitor.xids([XidEvent(45, now_s, uuid=gpu.uuid) for gpu in host.gpus])
    async with asyncio.timeout(10):
        while not host.duty.monitor.tracks["GPU-0"].ended:
            await asyncio.sleep(0.01)
    host.judge()
    assert [host.duty.monitor.assessments[gpu.uuid].level for gpu in host.gpus] == ["ok", "warn"]


async def test_an_xid_that_the_end_of_the_daemon_leaves_is_no_finding_of_the_next(host: Host) -> None:
    await host.duty.stop()
    now_s = time.time()
    host.servers[0].ends = [now_s]
    await host.duty.servers_ended()
    again = Bench(host.facts, count=2)  # the next daemon, which reads the kernel log from the beginning
    again.monitor.xids([XidEvent(45, now_s + 1, uuid=gpu.uuid) for gpu in again.gpus])
    again.read()
    assert [again.monitor.assessments[gpu.uuid].level for gpu in again.gpus] == ["ok", "warn"]


async def test_what_a_killed_daemon_left_is_ended_by_the_next_without_a_finding(host: Host) -> None:
    host.fleet.swept_s.append(time.time())
    host.duty.take_back(host.gpus[0].uuid)  # any look
    host.duty.monitor.xids([XidEvent(45, time.time(), uuid=gpu.uuid) for gpu in host.gpus])
    host.judge()
    assert [host.duty.monitor.assessments[gpu.uuid].level for gpu in host.gpus] == ["ok", "ok"]
    host.duty.monitor.save()
    again = Bench(host.facts, count=2)
    again.monitor.xids([XidEvent(45, host.fleet.swept_s[0], uuid=gpu.uuid) for gpu in again.gpus])
    again.read()
    assert [again.monitor.assessments[gpu.uuid].level for gpu in again.gpus] == ["ok", "ok"]
