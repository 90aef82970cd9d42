"""Sessions between head and host, over a connection in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from session_support import Kept, MemorySocket, pair, sessions

from obatchd.cluster import calls, messages, wire
from obatchd.cluster import session as session_module
from obatchd.cluster.session import Session
from obatchd.errors import ClusterError, ModelError, NotFoundError, ServerError
from obatchd.frames import FULL_BYTES
from obatchd.jobs.model import Profile


class Servers:
    """A desk."""

    def __init__(self) -> None:
        self.loaded: list[Profile] = []
        self.cancelled = asyncio.Event()
        self.asked = asyncio.Event()

    async def load(self, server: str, profile: Profile) -> str:
        self.loaded.append(profile)
        return f"{server} has {profile}"

    async def fail(self) -> None:
        raise ModelError("There is no model x.", code="model_not_found")

    async def break_down(self) -> None:
        raise KeyError("x")

    async def hang(self) -> None:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    async def count(self, upto: int) -> AsyncGenerator[int, None]:
        for number in range(upto):
            yield number
        if upto == 3:
            raise ServerError("three", code="three")


@contextlib.asynccontextmanager
async def running(*both: Session[Any]) -> AsyncIterator[list[asyncio.Task[str]]]:
    tasks = [asyncio.create_task(session.run()) for session in both]
    try:
        yield tasks
    finally:
        for session in both:
            session.end("the test is over")
        await asyncio.gather(*tasks)


async def until(look: Any) -> None:
    async with asyncio.timeout(10):
        while not look():
            await asyncio.sleep(0.001)


async def test_what_is_said_arrives_in_order_on_its_channel() -> None:
    at_head, at_host = Kept(), Kept()
    head, host = sessions(at_head, at_host)
    long = bytes(range(256)) * 4096
    async with running(head, host):
        host.say(messages.WorkerStarted("gpu0", 1, 77))
        host.send(1, b"first")
        host.send(1, long)
        host.send(2, b"")
        host.send(1, b"last")
        await until(lambda: len(at_head.frames) == 4)
    assert at_head.messages == [messages.WorkerStarted("gpu0", 1, 77)]
    assert at_head.frames == [(1, b"first"), (1, long), (2, b""), (1, b"last")]


async def test_calls_are_answered_and_errors_are_raised_as_they_were() -> None:
    desk = Servers()
    head, host = sessions(Kept(), Kept(), of_host={"servers": desk})
    async with running(head, host):
        profile = Profile("tiny", 4096)
        assert await head.call("servers.load", str, server="gpu0", profile=profile) == "gpu0 has tiny (4096)"
        assert desk.loaded == [profile]
        with pytest.raises(ModelError, match="There is no model x") as failed:
            await head.call("servers.fail", type(None))
        assert failed.value.code == "model_not_found"
        for method in ("servers.nothing", "servers._private", "nothing.load", "servers"):
            with pytest.raises(NotFoundError, match="update obatchd"):
                await head.call(method, str)
        with pytest.raises(Exception, match="KeyError"):
            await head.call("servers.break_down", str)
        with pytest.raises(Exception, match=r"servers\.load: Expected"):
            await head.call("servers.load", str, server="gpu0", profile=7)


async def test_answers_in_parts_and_their_end() -> None:
    head, host = sessions(Kept(), Kept(), of_host={"servers": Servers()})
    async with running(head, host):
        assert [n async for n in head.stream("servers.count", int, upto=5)] == [0, 1, 2, 3, 4]
        got = []
        with pytest.raises(ServerError, match="three"):
            async for n in head.stream("servers.count", int, upto=3):
                got.append(n)
        assert got == [0, 1, 2]


class Flood:
    """A desk whose answer is longer than any way is fast."""

    def __init__(self) -> None:
        self.given = 0

    async def flow(self) -> AsyncGenerator[bytes, None]:
        for _ in range(100):
            self.given += 1
            yield b"x" * 2**20


async def test_an_answer_in_parts_waits_for_room() -> None:
    flood = Flood()
    head, host = sessions(Kept(), Kept(), of_host={"flood": flood})
    ends = [asyncio.create_task(session.run()) for session in (head, host)]
    stream = head.stream("flood.flow", bytes)
    assert await anext(stream) == b"x" * 2**20
    host._socket.blocked.clear()  # type: ignore[attr-defined]  # a MemorySocket
    await until(lambda: host.is_full)
    given = flood.given
    await asyncio.sleep(0.2)
    assert flood.given <= given + 1 < 100
    host._socket.blocked.set()  # type: ignore[attr-defined]
    assert len([part async for part in stream]) == 99
    head.end("over")
    await asyncio.gather(*ends)


async def test_a_call_that_nobody_waits_for_is_cancelled_on_the_other_side() -> None:
    desk = Servers()
    head, host = sessions(Kept(), Kept(), of_host={"servers": desk})
    async with running(head, host):
        asking = asyncio.create_task(head.call("servers.hang", type(None)))
        await desk.asked.wait()
        asking.cancel()
        await asyncio.wait_for(desk.cancelled.wait(), 10)
        with pytest.raises(ServerError, match="has not answered"):
            await head.call("servers.hang", type(None), 0.01)


async def test_the_end_of_a_session_ends_its_calls_on_both_sides() -> None:
    desk = Servers()
    head, host = sessions(Kept(), Kept(), of_host={"servers": desk})
    async with running(head, host) as tasks:
        asking = asyncio.create_task(head.call("servers.hang", type(None)))
        await desk.asked.wait()
        head.end("asked to")
        with pytest.raises(ServerError, match="host node01 is away: asked to") as gone:
            await asking
        assert gone.value.code == "host_away"
        await asyncio.wait_for(desk.cancelled.wait(), 10)
        assert await tasks[0] == "asked to"
        assert "the other end is gone" in await tasks[1]
        assert not head.say(messages.Busy("gpu0", True))
        with pytest.raises(ServerError, match="away"):
            await head.call("servers.hang", type(None))


async def test_a_session_that_is_cancelled_while_it_ends_closes_its_connection() -> None:
    one, _ = pair()
    session: Session[Any] = Session(one, "the host", messages.to_head, Kept())
    task = asyncio.create_task(session.run())
    one.blocked.clear()  # its last words do not leave
    session.say(messages.Challenge(b"", ""))
    session.end("it is over")
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert one.closed


async def test_last_words_arrive() -> None:
    at_host = Kept()
    head, host = sessions(Kept(), at_host)
    async with running(head, host) as tasks:
        refused = messages.Refused("version", "This is obatchd 1.2, and you are 1.3.")
        head.say(refused)
        head.end("refused")
        await tasks[0]
        await until(lambda: at_host.messages)
        assert at_host.messages == [refused]


async def test_a_full_connection_says_so_and_when_there_is_room_again() -> None:
    at_head = Kept()
    one, other = pair()
    head: Session[Any] = Session(one, "host node01", messages.to_head, at_head)
    host: Session[Any] = Session(other, "the head", messages.to_host, Kept())
    one.blocked.clear()
    async with running(head, host):
        for _ in range(9):
            head.send(1, bytes(2**20))
        assert head.is_full
        one.blocked.set()
        await until(lambda: at_head.drains)
        assert not head.is_full
    assert FULL_BYTES < 9 * 2**20


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (wire.encode(wire.Batch(2, [])), "batch 2 came where 1 was due"),
        (b"\xc1 rubbish", "a message that is none"),
        (wire.encode(wire.Batch(1, [wire.Piece(0, b"\xc1")])), "a message that is none"),
        (wire.encode(wire.Batch(1, [wire.Piece(0, messages.encode(messages.Challenge(b"", "1")))])), "none"),
    ],
)
async def test_whatever_is_wrong_ends_the_session(sent: bytes, reason: str) -> None:
    one, other = pair()
    head: Session[Any] = Session(one, "host node01", messages.to_head, Kept())
    running_head = asyncio.create_task(head.run())
    await other.send(sent)
    async with asyncio.timeout(10):
        assert reason in await running_head


async def test_a_doubled_batch_ends_the_session() -> None:
    one, other = pair()
    head: Session[Any] = Session(one, "host node01", messages.to_head, Kept())
    running_head = asyncio.create_task(head.run())
    for _ in range(2):
        await other.send(wire.encode(wire.Batch(1, [])))
    async with asyncio.timeout(10):
        assert "batch 1 came where 2 was due" in await running_head


async def test_a_flood_ends_the_session_whatever_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_MOST_MESSAGES_PER_S", 10)
    for pieces in ([], [wire.Piece(1, b"")]):
        socket, far = pair()
        session: Session[Any] = Session(socket, "host node01", messages.to_head, Kept())
        ending = asyncio.create_task(session.run())
        for number in range(1, 50 if not pieces else 25):
            await far.send(wire.encode(wire.Batch(number, pieces)))
        with contextlib.suppress(ConnectionResetError):
            await far.send(wire.encode(wire.Batch(50 if not pieces else 25, pieces)))
        assert await ending == "it said 50 things within 0.0 s"
        assert session.code == "untrue"


async def test_a_long_message_that_is_no_answer_ends_the_session() -> None:
    head, host = sessions(Kept(), Kept())
    async with running(head, host) as (ending, _):
        host.say(messages.Call(1, "x" * 5 * 2**20, {}))
        assert "which is no answer" in await ending


async def test_an_answer_that_nobody_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_MOST_UNREAD_BYTES", 2**20)
    head, host = sessions(Kept(), Kept(), of_host={"flood": Flood()})
    async with running(head, host):
        stream = head.stream("flood.flow", bytes)
        await anext(stream)
        await until(lambda: not host._answering._tasks)
        with pytest.raises(ServerError, match=r"the answer to flood\.flow comes faster than it is read"):
            async for _ in stream:
                pass
        assert not head.is_over


def test_messages_that_are_never_whole_are_bounded() -> None:
    receiver = wire.Receiver()
    with pytest.raises(Exception, match="not whole"):
        for number in range(1, 400):
            list(receiver.received(wire.encode(wire.Batch(number, [wire.Piece(number, bytes(2**20), more=True)]))))


def test_parts_without_bytes_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_MOST_BYTES", 101 * wire.PART_BYTES)
    receiver = wire.Receiver()

    def received(number: int, channels: int, *, more: bool) -> list[tuple[int, bytes]]:
        pieces = [wire.Piece(channel, b"", more) for channel in range(channels)]
        return list(receiver.received(wire.encode(wire.Batch(number, pieces))))

    for number in (1, 3):
        assert received(number, 100, more=True) == []
        assert received(number + 1, 100, more=False) == [(channel, b"") for channel in range(100)]
    with pytest.raises(ClusterError, match="not whole"):
        received(5, 102, more=True)


async def test_silence_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obatchd.cluster.session._TICK_S", 0.01)
    head: Session[Any] = Session(_connected(), "host node01", messages.to_head, Kept())
    async with asyncio.timeout(10):
        assert "host node01 has said nothing for" in await head.run()


def _connected() -> MemorySocket:
    return pair()[0]
