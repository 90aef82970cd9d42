"""What cards of one host tell those of another, by way of the head."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hosts_support import server_news, until
from session_support import Kept, sessions

from obatchd.cluster.head.care.crashes import CrashesOfAll
from obatchd.cluster.head.care.siblings import SiblingBoard
from obatchd.cluster.head.sensors import HostSensors
from obatchd.cluster.head.server import HostedServer
from obatchd.cluster.host.desks.care import CareDesk
from obatchd.cluster.host.head import Head
from obatchd.cluster.host.mover import HeadMover
from obatchd.cluster.host.siblings import SiblingExchange
from obatchd.errors import ClusterError
from obatchd.gpucare.moving import CrashesHere
from obatchd.gpucare.siblings import STALE_S, CardsElsewhere, Sibling
from obatchd.gpus.model import Gpu
from obatchd.tasks import TaskSet


def test_each_host_hears_of_the_cards_of_all_others_for_as_long_as_they_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board, now_s = SiblingBoard(), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    one, two = Sibling("GPU-1", ["tiny"], [(31, 5.0)]), Sibling("GPU-2", ["tiny"])
    assert board.exchange("node01", [one]) == []
    now_s += 20
    assert board.exchange("", [two]) == [one.aged(20.0)]
    assert board.exchange("node02", []) == [one.aged(20.0), two]
    now_s += STALE_S - 10
    assert board.exchange("node02", []) == [two.aged(STALE_S - 10)]


def test_what_no_host_can_say_of_its_cards_is_not_believed() -> None:
    lies = (
        [Sibling(f"GPU-{number}") for number in range(65)],
        [Sibling("GPU-1", ["x" * 1000])],
        [Sibling("GPU-1", [], [(31, float("nan"))])],
        [Sibling("GPU-1", [], [], [float("inf")])],
        [Sibling("GPU-1", [], [(31, 1.0)] * 100)],
    )
    for lie in lies:
        with pytest.raises(ClusterError) as raised:
            SiblingBoard().exchange("node01", lie)
        assert raised.value.code == "untrue"


class _Watch:
    """One card that has the model ``tiny``."""

    def __init__(self, uuid: str) -> None:
        self.elsewhere = CardsElsewhere()
        self._own = [Sibling(uuid, ["tiny"])]

    def siblings(self) -> list[Sibling]:
        return self._own


class _HeadDesk:
    def __init__(self, board: SiblingBoard, host: str) -> None:
        self._board, self._host = board, host

    async def siblings(self, own: list[Sibling]) -> list[Sibling]:
        return self._board.exchange(self._host, own)


async def test_a_host_exchanges_with_a_head_and_does_without_an_older_one() -> None:
    board = SiblingBoard()
    board.exchange("node02", [Sibling("GPU-2", ["tiny"])])
    for desks, heard in (({"head": _HeadDesk(board, "node01")}, ["GPU-2"]), ({}, [])):
        at_head, at_host = sessions(Kept(), Kept(), of_head=desks)
        running = [asyncio.create_task(session.run()) for session in (at_head, at_host)]
        head, watch = Head(), _Watch("GPU-1")
        head.entered(at_host)
        await SiblingExchange(head, watch).exchange()  # type: ignore[arg-type]
        assert [track.uuid for track in watch.elsewhere.tracks({"tiny"}, set())] == heard
        assert not watch.elsewhere.tracks({"another"}, set())
        at_head.end("over")
        await asyncio.gather(*running)


class _Care(CrashesHere):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def crashed(self, server_id: str, work: str, crashed_s: float) -> None:
        self.heard.append(("crashed", server_id, work, round(time.monotonic() - crashed_s)))

    def cleared_by(self, server_id: str, work: str, crashed_s: float, cards: set[str], reason: str) -> None:
        self.heard.append(("cleared", server_id, work, round(time.monotonic() - crashed_s), cards, reason))

    def cards_of(self, server_id: str) -> set[str]:
        return {"GPU-here"}


class _Nobody:
    def server_changed(self, *_: object) -> None: ...

    def task_failed(self, name: str, error: BaseException) -> None: ...


async def test_a_crash_is_told_to_whoever_has_the_card() -> None:
    own, there, mover = _Care(), _Care(), HeadMover(Head())
    mover.listen_to_crashes(there)
    at_head, at_host = sessions(Kept(), Kept(), of_host={"care": CareDesk(mover)})
    running = [asyncio.create_task(session.run()) for session in (at_head, at_host)]
    card = Gpu("GPU-far", "H100", 0, "00000000:01:00.0", 2**36, "580.1")
    server = HostedServer("node01", server_news("gpu0", gpus=[card]), _Nobody(), HostSensors())
    host: Any = SimpleNamespace(session=at_head)
    crashes = CrashesOfAll(own, {server.id: server}, {"node01": host}, TaskSet(_Nobody()))
    then_s = time.monotonic() - 7
    crashes.crashed("node01.gpu0", "tiny", then_s)
    crashes.cleared("node01.gpu0", "tiny", then_s, "gpu3")
    crashes.crashed("gpu3", "tiny", then_s)
    crashes.cleared("gpu3", "tiny", then_s, "node01.gpu0")
    await until(lambda: len(there.heard) == 2)
    assert there.heard == [
        ("crashed", "gpu0", "tiny", 7),
        ("cleared", "gpu0", "tiny", 7, {"GPU-here"}, "node01.gpu0 crashed, and gpu3 answered what it was working on"),
    ]
    assert own.heard == [
        ("crashed", "gpu3", "tiny", 7),
        ("cleared", "gpu3", "tiny", 7, {"GPU-far"}, "gpu3 crashed, and node01.gpu0 answered what it was working on"),
    ]
    at_head.end("over")
    await asyncio.gather(*running)
