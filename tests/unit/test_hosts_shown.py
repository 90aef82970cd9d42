"""Joined hosts and their servers in the status, the list of servers, their logs, and the metrics."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from dispatch_support import SMALL
from hosts_support import server_news
from operations_support import ADMIN, Desk, desk
from session_support import Kept, sessions
from test_host_desks import Tasks

from obatchd.cluster.head.joined import JoinedHost
from obatchd.cluster.head.server import HostedServer
from obatchd.cluster.messages import HostNews
from obatchd.documents.gpus import GpuEntry, Gpus, HostTrouble, KernelLogState, Reading
from obatchd.errors import NotFoundError, ServerError
from obatchd.gpus.model import Gpu
from obatchd.operations.servers import _by_host
from obatchd.tasks import TaskSet

GPU = Gpu("GPU-a", "NVIDIA H100", 0, "00000000:01:00.0", 80 * 2**30, "550")
CARD = GpuEntry(
    uuid="GPU-a", index=0, name="NVIDIA H100", serial="S1", slot="3", health="ok", reason="", action="",
    quarantine=None, lent_until=None, servers=["gpu0"], shared_with="",
)  # fmt: skip


class Logs:
    """The desk ``servers`` of a host, as far as logs are asked for."""

    async def log(self, server: str, lines: int, follow: bool) -> AsyncGenerator[str, None]:
        for number in range(lines):
            yield f"{server} line {number}"


class Joined(Desk):
    """With one joined host that has one server."""

    joined = ("node07",)

    @property
    def host(self) -> JoinedHost:
        return self.hosts["node07"]

    def come(self, session: Any, **changes: Any) -> HostedServer:
        """The host is here, and tells of itself."""
        now_s = time.time()
        host, news = self.host, server_news(gpus=[GPU], gpu_label="GPU-a", slots=3, **changes)
        host.session, host.reason, host.since_s = session, "", now_s
        server = HostedServer("node07", news, self, host.sensors)
        server.heard(news, session)
        self.fleet.guests["node07.gpu0"] = self.fleet.all["node07.gpu0"] = host.servers["node07.gpu0"] = server
        reading = Reading("GPU-a", now_s, 93, 18 * 2**30, 80 * 2**30, 71, 610.0, energy_j=5000.0)
        host.news = HostNews(Gpus("ok", "", None, KernelLogState("kmsg", ""), [CARD]), [reading], notices=["it is hot"])
        host.sensors.heard([reading], 0.0)
        return server


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Joined]:
    monkeypatch.setattr("operations_support.Desk", Joined)
    async with desk(monkeypatch, tmp_path) as made:
        assert isinstance(made, Joined)
        made.fleet.all = dict(made.fleet.servers)
        made.read()
        yield made


@contextlib.asynccontextmanager
async def here(rig: Joined) -> AsyncIterator[HostedServer]:
    tasks = TaskSet(Tasks())
    head, host = sessions(Kept(), Kept(), of_host={"servers": Logs()})
    running = [tasks.start(session.run(), session.peer) for session in (head, host)]
    try:
        yield rig.come(head)
    finally:
        head.end("the test is over")
        for task in running:
            await task


async def test_a_server_of_a_host_stands_behind_ours_with_its_readings(rig: Joined) -> None:
    async with here(rig):
        status = rig.operations.host.status(ADMIN)
        assert [(server.id, server.host) for server in status.servers][-1] == ("node07.gpu0", "node07")
        assert all(server.host is msgspec.UNSET for server in status.servers[:-1])
        hosted = status.servers[-1]
        assert (hosted.slots, hosted.state, hosted.loaded and hosted.loaded.model) == (3, "ready", SMALL.model)
        [gpu] = hosted.gpus
        assert (gpu.utilisation_percent, gpu.temp_c, gpu.power_w) == (93, 71, 610.0)
        assert status.hosts is not msgspec.UNSET
        assert [(host.name, host.state, host.reason) for host in status.hosts] == [("node07", "here", "")]
        assert (status.state, status.reasons) == ("running", [])
        assert "host node07: it is hot" in status.notices


async def test_a_host_that_is_away_is_one_reason_whatever_servers_it_has(rig: Joined) -> None:
    async with here(rig) as server:
        rig.host.session, rig.host.reason = None, "it has said nothing for 7.5 s"
        server.lost(rig.host.reason)
        status = rig.operations.host.status(ADMIN)
        assert status.reasons == ["host node07 is away: it has said nothing for 7.5 s"]
        assert status.state == "degraded" == rig.operations.host.state(held_up=False)
        assert status.servers[-1].gpus[0].temp_c is None, "nobody knows the present one"
        with pytest.raises(ServerError, match="host node07 is away: it has said nothing"):
            await rig.operations.servers.act(ADMIN, "node07.gpu0", "drain")


async def test_a_host_that_left_in_order_or_gets_no_work_is_a_notice(rig: Joined) -> None:
    async with here(rig):
        rig.host.drained = "by an administrator at 09:30"
        assert rig.host.news is not None
        rig.host.news = msgspec.structs.replace(rig.host.news, leaving="its time limit is near")
        rig.host.skew_s = -30.0
        notices = rig.operations.host.status(ADMIN).notices
        assert "host node07: it is about to go: its time limit is near" in notices
        assert "host node07: it gets no work: by an administrator at 09:30" in notices
        assert any(notice.startswith("host node07: its clock is 30 s behind ours") for notice in notices)
        rig.host.session, rig.host.reason = None, "it has left: its time limit is near"
        status = rig.operations.host.status(ADMIN)
        assert status.reasons == [] and "host node07: it has left: its time limit is near" in status.notices


async def test_trouble_of_a_hosts_driver_names_the_host(rig: Joined) -> None:
    async with here(rig):
        gpus = Gpus(
            "unknown", "The driver says nothing.", HostTrouble("mismatch", "Reboot."), KernelLogState(None, ""), []
        )
        rig.host.news = HostNews(gpus, [])
        reasons = rig.operations.host.status(ADMIN).reasons
        assert reasons == ["host node07: The driver says nothing.", "host node07: Reboot."]


async def test_logs_of_a_hosts_server_come_from_the_host(rig: Joined) -> None:
    async with here(rig):
        lines = [line async for line in rig.operations.servers.log("node07.gpu0", 3, False)]
        assert lines == ["gpu0 line 0", "gpu0 line 1", "gpu0 line 2"]
        with pytest.raises(NotFoundError, match=r"no server node08\.gpu0; there are: gpu0, gpu1, node07\.gpu0"):
            rig.operations.servers.log("node08.gpu0", 3, False)


async def test_metrics_of_hosts_have_their_names(rig: Joined) -> None:
    before = rig.metrics.text(process=False).decode()
    assert "obatch_host_up" in before and 'obatch_hosts{state="away"} 1.0' in before
    async with here(rig):
        text = rig.metrics.text(process=False).decode()
        for line in (
            'obatch_hosts{state="here"} 1.0',
            'obatch_host_up{host="node07"} 1.0',
            'obatch_server_slots{server="node07.gpu0"} 3.0',
            'obatch_gpu_temperature_celsius{gpu="node07/0",uuid="GPU-a"} 71.0',
            'obatch_gpu_health{gpu="node07/0",level="ok",uuid="GPU-a"} 1.0',
            'obatch_gpu_energy_joules_total{gpu="node07/0",uuid="GPU-a"} 5000.0',
        ):
            assert f"{line}\n" in text, line
        assert 'obatch_server_slots{server="gpu0"}' in text


def test_servers_are_sorted_by_host_and_number() -> None:
    class Named:
        def __init__(self, host: str, name: str) -> None:
            self.host, self.id = host, f"{host}.{name}"

    given: Any = [Named("node10", "gpu0"), Named("node2", "gpu10"), Named("node2", "gpu9")]
    assert [server.id for server in sorted(given, key=_by_host)] == ["node2.gpu9", "node2.gpu10", "node10.gpu0"]
