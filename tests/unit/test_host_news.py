"""What changes at a host reaches its head: servers at once and before an answer, the rest soon, nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from head_stand_in import until
from operations_support import Desk, desk
from session_support import Kept, sessions

from obatchd.cluster.host import news as news_module
from obatchd.cluster.host.desks.servers import ServerDesk
from obatchd.cluster.host.head import Head
from obatchd.cluster.host.news import News
from obatchd.cluster.messages import HostNews, ServerGone, ServerNews
from obatchd.cluster.session import Session
from obatchd.documents.gpus import Reading
from obatchd.documents.models import PullProgress
from obatchd.errors import NotFoundError
from obatchd.gpucare.cards import GpuCards
from obatchd.jobs.model import Profile
from obatchd.servers.states import ServerState

_TINY = Profile("tiny", 4096)


@attrs.define(eq=False)
class Seen:
    """Implements :class:`obatchd.cluster.host.news.Sights`."""

    rig: Desk
    told: list[str] = attrs.field(factory=list)
    pulling: dict[str, PullProgress] = attrs.field(factory=dict)

    def servers(self) -> dict[str, Any]:
        return self.rig.fleet.servers

    def gpus(self) -> Any:
        return GpuCards(self.rig.policy, self.rig.probe).all()

    def readings(self) -> dict[str, Reading]:
        return {gpu.uuid: Reading(gpu.uuid, 1.0, 50) for gpu in self.rig.gpus}

    def notices(self) -> list[str]:
        return list(self.told)

    def pulls(self) -> dict[str, PullProgress]:
        return self.pulling

    def share(self) -> str:
        return "files:/models"


@attrs.define(eq=False)
class Bench:
    rig: Desk
    seen: Seen
    news: News
    here: Head
    heard: Kept  # at the head
    head: Session[Any]

    def of(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.heard.messages if isinstance(message, kind)]

    @property
    def servers(self) -> list[Any]:
        return self.of(ServerNews)


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    async with desk(monkeypatch, tmp_path) as rig:
        here, seen, heard = Head(), Seen(rig), Kept()
        news = News(here, seen)
        head, host = sessions(heard, Kept(), of_host={"servers": ServerDesk(rig.fleet, news)})
        ends = [asyncio.create_task(session.run()) for session in (head, host)]
        here.entered(host)
        news.begin()
        found = Bench(rig, seen, news, here, heard, head)
        await until(lambda: bool(found.of(HostNews)), "the head knows all")
        yield found
        head.end("the test is over")
        await asyncio.gather(*ends)


async def test_a_session_begins_with_all_there_is(bench: Bench) -> None:
    assert [message.id for message in bench.servers] == ["gpu0", "gpu1"]
    [told] = bench.of(HostNews)
    assert len(told.readings) == 2 and not told.leaving
    assert bench.servers[0].gpus == [bench.rig.gpus[0]] and bench.servers[0].load_options == {}


async def test_what_has_not_changed_is_not_told(bench: Bench) -> None:
    bench.news.look()
    bench.news.host_changed()
    bench.rig.ports[1].hold("operator", "by an administrator")
    bench.news.server_changed(bench.rig.ports[1], ServerState.READY, ServerState.DRAINING, "")
    await until(lambda: len(bench.servers) == 3, "the change is told")
    assert bench.servers[2].id == "gpu1" and bench.servers[2].holds == {"operator": "by an administrator"}
    assert len(bench.of(HostNews)) == 1


async def test_a_command_is_answered_after_the_news_of_it(bench: Bench) -> None:
    server = bench.rig.ports[0]
    await until(lambda: server.up, "it runs")
    await bench.head.call("servers.load", type(None), 5.0, server="gpu0", profile=_TINY)
    assert (bench.servers[-1].loaded, bench.servers[-1].loads) == (_TINY, 1)
    await bench.head.call("servers.load", type(None), 5.0, server="gpu0", profile=_TINY)
    assert bench.servers[-1].loads == 1  # it is there
    await bench.head.call("servers.load", type(None), 5.0, server="gpu0", profile=_TINY, afresh=True)
    assert bench.servers[-1].loads == 2
    assert await bench.head.call("servers.drain", bool, 5.0, server="gpu0", reason="for a look")
    assert bench.servers[-1].state == "draining"
    await bench.head.call("servers.resume", type(None), 5.0, server="gpu0")
    assert bench.servers[-1].state == "ready"
    await bench.head.call("servers.unload", type(None), 5.0, server="gpu0")
    assert bench.servers[-1].loaded is None
    with pytest.raises(NotFoundError, match="there are: gpu0, gpu1"):
        await bench.head.call("servers.unload", type(None), 5.0, server="gpu7")


async def test_the_log_of_a_server_is_read_from_the_head(bench: Bench) -> None:
    file = bench.rig.ports[0].log_file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("one\ntwo\nthree\n")
    lines = bench.head.stream("servers.log", str, server="gpu0", lines=2, follow=False)
    assert [line async for line in lines] == ["two", "three"]


async def test_what_the_host_has_to_say_is_told_soon(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news_module, "_LOOK_S", 0.01)
    monkeypatch.setattr(news_module, "_SOON_S", 0.0)
    task = asyncio.create_task(bench.news.run())
    bench.seen.told.append("the ports are open to all")
    await until(lambda: bench.of(HostNews)[-1].notices == ["the ports are open to all"], "the notice is told")
    bench.seen.pulling["tiny"] = PullProgress("tiny", "gpu0", "pulling", 1, 2)
    await until(lambda: "tiny" in bench.of(HostNews)[-1].pulls, "the download is told")
    bench.seen.pulling["tiny"].completed_bytes = 2
    await until(lambda: bench.of(HostNews)[-1].pulls["tiny"].completed_bytes == 2, "its progress is told")
    bench.here.leaving = "its time limit is near"
    bench.news.host_changed()
    await until(lambda: bench.of(HostNews)[-1].leaving == "its time limit is near", "it says that it leaves")
    task.cancel()


async def test_a_server_that_is_gone_is_told(bench: Bench) -> None:
    gone = bench.rig.fleet.servers.pop("gpu1")
    bench.news.look()
    await until(lambda: bench.of(ServerGone) == [ServerGone("gpu1")], "the head knows")
    bench.rig.fleet.servers["gpu1"] = gone
