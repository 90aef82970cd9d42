"""GPUs of joined hosts, as operators see and command them at the head; the host is in memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from operations_support import ADMIN, Desk, desk
from session_support import Kept, sessions
from test_gpu_monitor import Bench
from test_gpu_service import cards_of
from test_host_desks import Tasks

from obatchd.cluster.head import gpus as elsewhere
from obatchd.cluster.head.joined import JoinedHost
from obatchd.cluster.host.desks.gpus import GpuDesk
from obatchd.cluster.messages import HostNews
from obatchd.control.operations import SpanAsked
from obatchd.documents.audit import AuditAsked
from obatchd.documents.history import GpuColumns, GpuHistory
from obatchd.errors import ControlError, NotFoundError, ServerError
from obatchd.gpucare.cards import GpuCards
from obatchd.gpucare.past import Past
from obatchd.operations.gpus import GpuService
from obatchd.operations.reads.history import Histories
from obatchd.tasks import TaskSet


class Fleet:
    """A head with one GPU of its own, or none, and two hosts: node07, which is here, and node08, which never was."""

    def __init__(self, rig: Desk, own: int = 0) -> None:
        self.rig = rig
        self.at_host = GpuCards(rig.policy, rig.probe)
        attached: Any = None
        self.hosts = {name: JoinedHost(name, attached) for name in ("node07", "node08")}
        here = cards_of(Bench(count=own))
        self.gpus = GpuService(here, rig.work.audit, self.hosts)
        past: Any = NoPast()
        self.histories = Histories(past, self.gpus, self.hosts)

    @property
    def node07(self) -> JoinedHost:
        return self.hosts["node07"]

    def tell(self) -> None:
        """Have the host say what there is."""
        self.node07.news = HostNews(self.at_host.all(), [])


class NoPast:
    """The head's own :class:`obatchd.gpucare.past.Past`, without GPUs."""

    async def gpus(self, since_s: float, until_s: float, points: int, name: str | None) -> GpuHistory:
        return GpuHistory(60, [60 * step for step in range(points)], [], [], False)


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    async with desk(monkeypatch, tmp_path) as made:
        made.read()
        yield made


@contextlib.asynccontextmanager
async def joined(rig: Desk, own: int = 0) -> AsyncIterator[Fleet]:
    fleet, tasks = Fleet(rig, own), TaskSet(Tasks())
    head, host = sessions(Kept(), Kept(), of_host={"gpus": GpuDesk(fleet.at_host, Past(rig.policy, fleet.at_host))})
    running = [tasks.start(session.run(), session.peer) for session in (head, host)]
    fleet.node07.session = head
    fleet.tell()
    try:
        yield fleet
    finally:
        head.end("the test is over")
        for task in running:
            await task


async def test_gpus_of_hosts_are_listed_behind_our_own_with_their_host(rig: Desk) -> None:
    async with joined(rig, own=1) as fleet:
        found = fleet.gpus.all()
        assert [(card.host, card.index, card.servers) for card in found.gpus] == [
            (msgspec.UNSET, 0, []),
            ("node07", 0, ["node07.gpu0"]),
            ("node07", 1, ["node07.gpu1"]),
        ]
        assert found.hosts is not msgspec.UNSET
        assert [(host.name, host.here, host.state) for host in found.hosts] == [("node07", True, "ok")]


async def test_hosts_are_sorted_as_people_count(rig: Desk) -> None:
    async with joined(rig) as fleet:
        attached: Any = None
        for name in ("node10", "node2"):
            host = fleet.hosts[name] = JoinedHost(name, attached)
            host.news = fleet.node07.news
        assert [host.name for host in fleet.gpus.all().hosts or ()] == ["node2", "node07", "node10"]


async def test_the_gpus_of_a_host_that_is_away_are_not_known_to_be_well(rig: Desk) -> None:
    async with joined(rig) as fleet:
        await fleet.gpus.quarantine(ADMIN, "node07/1", "it smells")
        fleet.tell()
        fleet.node07.session, fleet.node07.reason = None, "it has said nothing for 7.5 s"
        good, bad = fleet.gpus.all().gpus
        assert (good.health, good.reason) == ("unknown", "host node07 is away: it has said nothing for 7.5 s")
        assert good.temp_c is None
        assert (bad.health, bad.reason) == ("quarantine", "it smells")
        with pytest.raises(ServerError, match=r"^host node07 is away: it has said nothing") as caught:
            await fleet.gpus.release(ADMIN, "node07/1")
        assert caught.value.code == "host_away"


@pytest.mark.parametrize("name", ["node07/1", "node07.1", "node07:1", "node07/GPU-1", "GPU-1"])
async def test_a_gpu_of_a_host_is_named_by_host_and_index_or_by_its_uuid(rig: Desk, name: str) -> None:
    async with joined(rig) as fleet:
        details = await fleet.gpus.one(name)
        assert (details.uuid, details.host, details.servers) == ("GPU-1", "node07", ["node07.gpu1"])


async def test_an_index_means_our_own_gpu_first_and_a_name_that_fits_none_or_several_is_refused(rig: Desk) -> None:
    async with joined(rig, own=1) as fleet:
        assert fleet.gpus.place("0") == (None, "0")
        assert fleet.gpus.place("1")[0] is not None
        for name, words in (
            ("7", r"^no GPU 7; there are: node07/0 = GPU-0, node07/1 = GPU-1\. Name one as HOST/INDEX"),
            ("node07/7", "^no GPU 7 on host node07; there are: node07/0"),
            ("node08/0", "^no GPU 0 on host node08; there are: none"),
            ("node07/GPU", "^several GPUs match GPU on host node07"),
        ):
            with pytest.raises(NotFoundError, match=words):
                await fleet.gpus.one(name)


async def test_commands_go_to_the_host_and_into_the_audit_log_here(rig: Desk) -> None:
    async with joined(rig) as fleet:
        assert (await fleet.gpus.quarantine(ADMIN, "node07/1", "it smells")).host == "node07"
        with pytest.raises(ControlError, match=r"^GPU 1 is in quarantine already$"):
            await fleet.gpus.quarantine(ADMIN, "node07/1", "")
        assert (await fleet.gpus.release(ADMIN, "node07/1")).host == "node07"
        assert (await fleet.gpus.lend(ADMIN, "node07/0", 60)).lent_until
        assert not (await fleet.gpus.take_back(ADMIN, "node07/0")).lent_until
        assert (await fleet.gpus.share(ADMIN, "node07/0", True)).shares_unknown
        entries = (await rig.work.audit.read(AuditAsked(100))).entries
        told = [(entry.kind, entry.target, entry.failed) for entry in sorted(entries, key=lambda entry: entry.at)]
        assert ("gpu_quarantined", "node07/GPU-1", msgspec.UNSET) in told
        assert ("gpu_quarantined", "node07/GPU-1", "already") in told
        kinds = {kind for kind, target, _ in told if target.startswith("node07/")}
        assert kinds == {"gpu_quarantined", "gpu_released", "gpu_lent", "gpu_taken_back", "gpu_shared"}
        events = await fleet.gpus.events(None, 10)
        assert [(event.kind, event.host) for event in events][-1] == ("share", "node07")
        assert [event.kind for event in await fleet.gpus.events("node07/1", 10)] == ["quarantine", "release"]


async def test_the_past_of_all_hosts_is_one_document(rig: Desk) -> None:
    async with joined(rig) as fleet:
        await fleet.gpus.quarantine(ADMIN, "node07/1", "it smells")
        now_s = time.time()
        asked = SpanAsked(now_s - 600, now_s + 60, 10)
        found = await fleet.histories.gpus(asked, None)
        assert [event.host for event in found.events if event.kind == "quarantine"] == ["node07"]
        assert all(len(card.temp_c) == len(found.at_s) for card in found.gpus)
        alone = await fleet.histories.gpus(asked, "node07/0")
        assert alone.at_s


def test_columns_of_another_clock_are_laid_on_our_steps() -> None:
    column: list[float | None] = [1.0, 2.0, 3.0]
    card = GpuColumns("GPU-0", 0, "", "", "", None, *[list(column) for _ in range(7)])
    [moved] = elsewhere.on_the_grid(GpuHistory(60, [60, 120, 180], [card], [], False), [0, 60, 120])
    assert moved.temp_c == [None, 1.0, 2.0]
