"""Workers of a host for the length of one session: frames both ways, ends, a way that is full, frames too long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import attrs
import msgspec
import pytest
from head_stand_in import until
from task_support import Failures

from obatchd.child import Child, End, Parent
from obatchd.cluster import wire
from obatchd.cluster.host import relay as relay_module
from obatchd.cluster.host import shortening
from obatchd.cluster.host.relay import Relay
from obatchd.cluster.messages import WorkerEnded, WorkerStarted
from obatchd.dispatch import protocol
from obatchd.errors import ClusterError

_encode = msgspec.msgpack.encode


class Process(Child):
    """A worker that keeps what it is sent."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.got: list[bytes] = []
        self.heard = True
        self.killed = asyncio.Event()

    @property
    def pid(self) -> int:
        return self._pid

    def send(self, message: Any) -> bool:
        self.got.append(bytes(message))
        return True

    def pause(self) -> None:
        self.heard = False

    def resume(self) -> None:
        self.heard = True

    def kill(self) -> None:
        self.killed.set()


class Kept:
    """Runs one :class:`Process` after another, in the place of :class:`obatchd.child.Keeper`."""

    made: dict[str, Kept]

    def __init__(self, name: str, work: Any, decoder: Any, parent: Parent[Any]) -> None:
        self.name, self.parent = name, parent
        self.process = Process(0)
        self.made[name] = self

    async def run(self) -> None:
        for pid in range(100, 110):
            self.process = Process(pid)
            self.parent.started(self.process)
            await self.process.killed.wait()
            self.parent.ended(End("died of signal 9", 1.5))

    def says(self, frame: bytes) -> None:
        self.parent.heard(msgspec.Raw(frame))


@attrs.define
class Way:
    """Implements :class:`obatchd.cluster.host.relay.Way`."""

    said: list[Any] = attrs.field(factory=list)
    sent: list[tuple[int, bytes]] = attrs.field(factory=list)
    is_full: bool = False

    def say(self, message: object) -> bool:
        self.said.append(message)
        return True

    def send(self, channel: int, data: bytes) -> bool:
        self.sent.append((channel, data))
        return True


@attrs.define
class Bench:
    way: Way
    relay: Relay
    failures: Failures

    def worker(self, server: str = "gpu0") -> Kept:
        return Kept.made[f"worker-{server}"]


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(relay_module, "Keeper", Kept)
    Kept.made = {}
    way, failures = Way(), Failures()
    found = Bench(way, Relay(way, owner=failures), failures)
    found.relay.start(["gpu0", "gpu1"])
    await until(lambda: len(way.said) == 2, "both workers run")
    yield found
    await found.relay.stop()
    assert failures == []


async def test_frames_pass_untouched_on_the_channel_of_their_worker(bench: Bench) -> None:
    assert bench.way.said == [WorkerStarted("gpu0", 1, 100), WorkerStarted("gpu1", 2, 100)]
    frame = _encode(protocol.Progress(1, 2, 0.5))
    bench.worker("gpu1").says(frame)
    assert bench.way.sent == [(2, frame)]
    bench.relay.frame(1, frame)
    bench.relay.frame(7, frame)  # of nobody
    assert bench.worker().process.got == [frame] and bench.worker("gpu1").process.got == []


async def test_what_comes_for_a_worker_that_ended_is_dropped(bench: Bench) -> None:
    first = bench.worker().process
    bench.relay.kill(1)
    await until(lambda: len(bench.way.said) == 4, "another one runs")
    assert bench.way.said[2:] == [WorkerEnded(1, "died of signal 9", 1.5), WorkerStarted("gpu0", 3, 101)]
    bench.relay.frame(1, b"late")
    bench.relay.kill(1)
    bench.relay.frame(3, b"\xc0")
    assert first.got == [] and bench.worker().process.got == [b"\xc0"] and not bench.worker().process.killed.is_set()


async def test_workers_are_not_heard_while_the_way_is_full(bench: Bench) -> None:
    bench.way.is_full = True
    bench.worker().says(_encode(protocol.Progress(0, 0, 0.0)))
    assert not bench.worker().process.heard and bench.worker("gpu1").process.heard
    bench.way.is_full = False
    bench.relay.drained()
    assert bench.worker().process.heard


async def test_the_end_of_the_session_ends_workers_without_a_word(bench: Bench) -> None:
    await bench.relay.stop()
    assert len(bench.way.said) == 2


def _result(line: int, text: str) -> protocol.ResultItem:
    record = msgspec.json.encode(
        {"id": f"q-{line}", "line": line, "outcome": "succeeded", "prompt": "p", "response": text, "server": "h.gpu0",
         "attempts": 1, "servers": ["h.gpu0"], "duration_s": 1.0}
    )  # fmt: skip
    return protocol.ResultItem(1, line, 1, True, record, 1.0, 3, 5)


async def test_long_results_go_one_by_one_and_one_that_is_too_long_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "LONGEST_BYTES", 1000)
    monkeypatch.setattr(shortening, "_LONGEST_RECORD_BYTES", 800)
    bench.worker().says(_encode(protocol.Results([_result(1, "a" * 500), _result(2, "b" * 5000), _result(3, "c")])))
    messages = [protocol.to_main.decode(data) for channel, data in bench.way.sent if channel == 1]
    items = [item for message in messages if isinstance(message, protocol.Results) for item in message.items]
    assert [len(data) < 1000 for _, data in bench.way.sent] == [True] * 3
    assert [(item.line, item.succeeded) for item in items] == [(1, True), (2, False), (3, True)]
    assert items[0] == _result(1, "a" * 500)
    assert (items[1].fault, items[1].code) == ("request", "answer_too_long")
    record = msgspec.json.decode(items[1].record)
    assert (record["id"], record["outcome"], record["code"]) == ("q-2", "failed", "answer_too_long")
    assert "response" not in record and record["servers"] == ["h.gpu0"]


def test_a_long_frame_without_results_is_refused() -> None:
    with pytest.raises(ClusterError, match="in one frame"):
        list(shortening.shortened(_encode(protocol.Started([(1, 1)]))))


def test_what_is_long_fits_into_a_session() -> None:
    assert shortening._LONGEST_RECORD_BYTES < shortening.LONGEST_BYTES < wire.WHOLE_BYTES
