"""Hosts that say what cannot be: their sessions end, they are told of, and nothing of it is recorded or lost.

Of :mod:`obatchd.cluster.head.trust`, and of those that ask it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from dispatch_support import SMALL
from hosts_support import HeadRig, StandInHost, heads, host_news, server_news, until

from obatchd.cluster import messages, session
from obatchd.cluster.head import trust, workers
from obatchd.cluster.head.asking import ask
from obatchd.cluster.head.gpus import history
from obatchd.cluster.head.joined import JoinedHost
from obatchd.cluster.head.models import HostStore
from obatchd.dispatch import protocol
from obatchd.documents.gpus import GpuEntry, Gpus, KernelLogState
from obatchd.documents.history import GpuColumns, GpuHistory
from obatchd.errors import ClusterError, ServerError
from obatchd.gpucare.siblings import Sibling
from obatchd.gpus.model import Gpu, Reading
from obatchd.jobs.model import Profile

NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture
async def head() -> AsyncIterator[HeadRig]:
    async with heads() as made:
        yield made


def record(**changes: Any) -> bytes:
    good = {"id": "1", "line": 1, "outcome": "succeeded", "server": "node07.gpu0"}
    return msgspec.json.encode(good | changes)


ANSWERS: dict[str, dict[str, Any]] = {
    "a request that was not offered": {"line": 77},
    "a job that was not offered": {"job": 9},
    "an attempt to come": {"attempt": 2},
    "no attempt": {"attempt": 0},
    "a negative time": {"duration_s": -0.1},
    "no number": {"duration_s": NAN},
    "an infinite time": {"eval_s": INFINITE},
    "an infinite wait": {"wait_s": INFINITE},
    "a negative time beside": {"beside_s": -1.0},
    "negative tokens": {"response_tokens": -1},
    "tokens without end": {"prompt_tokens": 2**60},
    "negative slots": {"active": -1},
    "an answer and a fault": {"fault": "server"},
    "neither": {"succeeded": False},
    "a fault of no kind": {"succeeded": False, "fault": "of the moon"},
    "a code that is a text": {"succeeded": False, "fault": "server", "code": "Drop table;"},
    "no record": {"record": b""},
    "no JSON": {"record": b"{"},
    "no object": {"record": b"[]"},
    "two lines": {"record": record() + b"\n" + record()},
    "no text": {"record": b'{"id":"1","line":1,"outcome":"succeeded","response":"\xff"}'},
    "arrays without end": {"record": b'{"id":"1","line":1,"outcome":"succeeded","x":' + b"[" * 100_000},
    "the record of another request": {"record": record(line=2)},
    "the record of another time": {"record": record(repeat=1)},
    "the record of a failure": {"record": record(outcome="failed")},
    "the record of another server": {"record": record(server="gpu0")},
    "the record of an earlier job": {"record": record(copied_from="20261128-1")},
    "a record with no time": {"record": record(started_at="yesterday")},
    "a record with a day that is none": {"record": record(started_at="2026-02-31T10:00:00.000Z")},
    "a record with a negative time": {"record": record(duration_s=-1)},
    "a record with half a token": {"record": record(response_tokens=0.5)},
}


@pytest.mark.parametrize("changes", ANSWERS.values(), ids=ANSWERS)
async def test_an_answer_that_cannot_be_ends_the_session(head: HeadRig, changes: dict[str, Any]) -> None:
    host = StandInHost()
    await head.rig.add(1, 1)
    async with host.joined(head.hosts):
        await until(lambda: host.held.get("gpu0"))
        told = protocol.ResultItem(1, 1, 1, True, record(), 0.1, 1, 1)
        host.worker_says("gpu0", protocol.Results([msgspec.structs.replace(told, **changes)]))
        await until(lambda: head.hosts.hosts["node07"].state == "away")
    assert (head.rig.finished, head.rig.failed) == ([], [])
    assert head.hosts.hosts["node07"].code == "untrue"
    good = StandInHost("node08")  # where the request is answered, by its first attempt
    async with good.joined(head.hosts):
        await until(lambda: good.held.get("gpu0"))
        assert good.held["gpu0"][1, 1].attempt == 1
        good.answer_all()
        await until(lambda: head.rig.lines() == [(1, True)])


def test_late_tokens_of_a_request_that_was_taken_back_are_not_heard() -> None:
    ledger = trust.Ledger("node07.gpu0")
    ledger.offered(protocol.Offer("small", {}, [protocol.OfferItem(0, line, 1, b"") for line in (4, 5)], rank=1))
    ledger.check(protocol.Returned([(0, 4)]))
    late, known = protocol.TokenItem(0, 4, 1, "x"), protocol.TokenItem(0, 5, 1, "y")
    assert ledger.check(protocol.Tokens([late, known])) == protocol.Tokens([known])
    with pytest.raises(ClusterError, match="was not offered"):
        ledger.check(protocol.Tokens([protocol.TokenItem(0, 6, 1, "z")]))


async def test_an_answer_counts_once(head: HeadRig) -> None:
    host = StandInHost()
    await head.rig.add(1, 1)
    async with host.joined(head.hosts):
        await until(lambda: host.held.get("gpu0"))
        told = protocol.Results([protocol.ResultItem(1, 1, 1, True, record(), 0.1, 1, 1)])
        host.worker_says("gpu0", told)
        host.worker_says("gpu0", told)
        await until(lambda: head.hosts.hosts["node07"].state == "away")
    assert head.rig.lines() == [(1, True)]
    assert "which was not offered to it" in head.hosts.hosts["node07"].reason


WORDS: dict[str, Any] = {
    "began what it has not": protocol.Started([(1, 7)]),
    "gives back what it has not": protocol.Returned([(1, 7)]),
    "tokens of what it has not": protocol.Tokens([protocol.TokenItem(0, 7, 1, "x")]),
    "tokens for nobody": protocol.Tokens([protocol.TokenItem(1, 1, 1, "x")]),
    "negative tokens": protocol.Progress(-1, 1, 0.0, 1, 1),
    "silent for no time": protocol.Progress(1, 1, NAN, 1, 1),
    "got more than there was": protocol.Progress(1, 1, 0.0, 1, 2),
    "does not count": protocol.Progress(1, 1, 0.0, -1, 1),
    "a message to a worker": protocol.Recall(1),
    "no message": [1, 2, 3],
}


@pytest.mark.parametrize("message", WORDS.values(), ids=WORDS)
async def test_a_worker_that_says_what_cannot_be_ends_the_session(head: HeadRig, message: Any) -> None:
    host = StandInHost()
    await head.rig.add(1, 1)
    async with host.joined(head.hosts):
        await until(lambda: host.held.get("gpu0"))
        host.worker_says("gpu0", message)
        await until(lambda: head.hosts.hosts["node07"].state == "away")
    assert head.hosts.hosts["node07"].code == "untrue"
    assert not head.rig.finished


NEWS: dict[str, dict[str, Any]] = {
    "no slots": {"slots": 0},
    "slots without end": {"slots": 10**9},
    "a state that is none": {"state": "splendid"},
    "a negative time": {"load_s": -1.0},
    "no number": {"load_s": NAN},
    "no number of seconds": {"unloads_in_s": NAN},
    "negative restarts": {"restarts": -1},
    "a name that is none": {"id": "../gpu0"},
    "no name": {"id": ""},
    "a reason without end": {"reason": "x" * 100_000},
    "an address that is none": {"base_url": "file:///etc/passwd"},
    "a context of nothing": {"loaded": Profile("small", 0)},
    "GPUs without end": {"gpus": [Gpu("GPU-1", "H100", 0, "", None, "")] * 1000},
    "a GPU with less than no memory": {"gpus": [Gpu("GPU-1", "H100", 0, "", -1, "")]},
    "an option that is a table": {"load_options": {"num_thread": {}}},
    "no slots of its process": {"tuning": messages.SlotNews("H100", "", 0, 0, 0, 8, True, False)},
    "less than no memory": {"tuning": messages.SlotNews("H100", "", -1, 0, 8, 8, True, False)},
    "holds without end": {"holds": {str(number): "x" for number in range(1000)}},
}


@pytest.mark.parametrize("changes", NEWS.values(), ids=NEWS)
async def test_news_that_cannot_be_end_the_session(head: HeadRig, changes: dict[str, Any]) -> None:
    async with StandInHost().joined(head.hosts) as host:
        await until(lambda: head.guests)
        host.say(server_news(**changes))
        await until(lambda: head.hosts.hosts["node07"].state == "away")
        assert head.hosts.hosts["node07"].code == "untrue"
        assert head.server().loaded is None


NOTHING = msgspec.Raw(messages.encode(None))


def card(**changes: Any) -> GpuEntry:
    good = GpuEntry(
        uuid="GPU-1", index=0, name="H100", serial="", slot="", health="ok", reason="", action="", quarantine=None,
        lent_until=None, servers=["gpu0"], shared_with="",
    )  # fmt: skip
    return msgspec.structs.replace(good, **changes)


def gpus(*cards: GpuEntry) -> Gpus:
    return Gpus("ok", "", None, KernelLogState(None, ""), list(cards))


OUT_OF_TURN: dict[str, Callable[[StandInHost], object]] = {
    "a worker at a server that is none": lambda host: host.say(messages.WorkerStarted("gpu9", 50, 1)),
    "a second worker": lambda host: host.say(messages.WorkerStarted("gpu0", 50, 1)),
    "a channel that was there": lambda host: host.say(messages.WorkerStarted("gpu0", 1, 1)),
    "the end of no worker": lambda host: host.say(messages.WorkerEnded(50, "died", 1.0)),
    "a channel that is none": lambda host: host.session.send(50, b"x"),
    "no message": lambda host: host.session.send(0, b"\xc1"),
    "a server without a state": lambda host: host.say({"type": "server", "id": "gpu0"}),
    "a second hello": lambda host: host.say(messages.Hello(b"", "node07", "0.2.0", "", "", 0.0)),
    "an alarm that is none": lambda host: host.say(messages.AlarmNews("DiskLow", {"reason": 7})),
    "a reading of a GPU that is too busy": lambda host: host.say(host_news(readings=[Reading("GPU-gpu0", 0.0, 101)])),
    "a reading of no energy": lambda host: host.say(host_news(readings=[Reading("GPU-gpu0", 0.0, energy_j=NAN)])),
    "a reading of no time": lambda host: host.say(host_news(readings=[Reading("GPU-gpu0", NAN)])),
    "a GPU twice": lambda host: host.say(host_news(gpus=gpus(card(), card()))),
    "a health that is none": lambda host: host.say(host_news(gpus=gpus(card(health="splendid")))),
    "a GPU that is lent until no time": lambda host: host.say(host_news(gpus=gpus(card(lent_until="soon")))),
    "a temperature that is none": lambda host: host.say(host_news(gpus=gpus(card(power_w=INFINITE)))),
    "GPUs of no state": lambda host: host.say(host_news(gpus=msgspec.structs.replace(gpus(), state="fine"))),
    "more than news": lambda host: host.say(host_news(notices=["x" * 60_000] * 100)),
    "an answer to no question": lambda host: host.say(messages.Reply(4711, NOTHING)),
    "a part of an answer to no question": lambda host: host.say(messages.Part(4711, NOTHING)),
    "an error that is none": lambda host: host.say(
        messages.Reply(1, NOTHING, messages.CallError("ServerError", "Drop table;", "x"))
    ),
    "a question of no kind": lambda host: host.say(messages.Call(1, "head.siblings", {"own": 7})),
    "half a question": lambda host: host.say(messages.Call(1, "head.vacate", {"server": "gpu0"})),
    "patience without end": lambda host: host.say(
        messages.Call(1, "head.vacate", {"server": "gpu0", "patience_s": INFINITE, "reason": "x"})
    ),
    "siblings without end": lambda host: host.say(
        messages.Call(1, "head.siblings", {"own": [Sibling(str(number)) for number in range(100)]})
    ),
    "a sibling of no time": lambda host: host.say(
        messages.Call(1, "head.siblings", {"own": [Sibling("GPU-1", crashes_s=[NAN])]})
    ),
    "news without end": lambda host: host.say(host_news(leaving="x" * 100_000)),
}


@pytest.mark.parametrize("say", OUT_OF_TURN.values(), ids=OUT_OF_TURN)
async def test_what_is_out_of_turn_ends_the_session(head: HeadRig, say: Callable[[StandInHost], object]) -> None:
    async with StandInHost().joined(head.hosts) as host:
        await until(lambda: "gpu0" in host.channels)
        say(host)
        await until(lambda: host.session.is_over)
    assert head.hosts.hosts["node07"].code in ("untrue", "bad_frame")
    async with StandInHost("node08").joined(head.hosts):
        await until(lambda: "node08.gpu0" in head.guests)


class Lying:
    """A desk that answers what cannot be."""

    async def number(self) -> float:
        return NAN

    async def kind(self) -> int:
        return 7

    async def endless(self) -> str:
        return "x" * 2**21

    async def history(self, since_s: float, until_s: float, points: int, name: str | None) -> GpuHistory:
        column = [1.0]
        gpu = GpuColumns("GPU-1", 0, "H100", "", "", None, column, column, column, column, column, column, column)
        return GpuHistory(10, [10, 20], [gpu], [], False)

    async def show(self, model: str, verbose: bool) -> bytes:
        return b"{"


ASKED: dict[str, Callable[[JoinedHost], Awaitable[object]]] = {
    "no number": lambda host: ask(host, "gpus.number", float),
    "another kind": lambda host: ask(host, "gpus.kind", str),
    "a text without end": lambda host: ask(host, "gpus.endless", str),
    "columns that are too short": lambda host: history(host, 0.0, 30.0, 3, None),
    "a model that is no JSON": lambda host: HostStore(host).show("tiny", verbose=False),
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
async def test_an_answer_of_the_host_itself_that_cannot_be_ends_the_session(
    head: HeadRig, asked: Callable[[JoinedHost], Awaitable[object]]
) -> None:
    async with StandInHost(desks={"gpus": Lying(), "models": Lying()}).joined(head.hosts) as host:
        await until(lambda: head.guests)
        with pytest.raises(ServerError, match="host node07 was cut off"):
            await asked(head.hosts.hosts["node07"])
        await until(lambda: host.session.is_over)
    assert head.hosts.hosts["node07"].code == "untrue"


async def test_a_worker_that_is_told_to_end_and_does_not_costs_its_session_and_no_request(
    head: HeadRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "END_S", 0.05)
    await head.rig.add(1, 1)
    async with StandInHost(keeps_workers=True).joined(head.hosts) as host:
        await until(lambda: host.held.get("gpu0"))
        worker = head.rig.dispatcher.links["node07.gpu0"].worker
        assert worker is not None
        worker.kill()
        await until(lambda: host.session.is_over)
    assert "has not ended within" in head.hosts.hosts["node07"].reason
    good = StandInHost("node08")
    async with good.joined(head.hosts):
        await until(lambda: good.held.get("gpu0"))
        assert good.held["gpu0"][1, 1].attempt == 1


async def test_a_host_has_only_so_many_servers(head: HeadRig) -> None:
    async with StandInHost().joined(head.hosts) as host:
        await until(lambda: head.guests)
        for number in range(300):
            host.say(server_news(f"more{number}"))
        await until(lambda: host.session.is_over)
    assert len(head.guests) == 256


async def test_a_server_that_has_the_name_of_another_is_not_taken() -> None:
    async with heads() as head:
        async with StandInHost("node07", servers={"a.gpu0": server_news("a.gpu0")}).joined(head.hosts):
            await until(lambda: head.guests)
            other = StandInHost("node07.a")  # its servers would be called the same
            async with other.joined(head.hosts):
                await until(lambda: other.session.is_over)
            assert head.server("node07.a.gpu0").ready
        assert "under another name" in head.hosts.hosts["node07.a"].reason


async def test_a_worker_speaks_only_in_a_session(head: HeadRig) -> None:
    host = StandInHost(silent=True)
    async with host.joined(head.hosts):
        host.session.send(1, b"x")
        await until(lambda: host.session.is_over)


async def test_a_host_says_hello_first(head: HeadRig) -> None:
    host = StandInHost(silent=True)
    async with host.joined(head.hosts):
        host.say(server_news())
        await until(lambda: host.session.is_over)
    assert not head.guests


async def test_a_host_that_floods_is_cut_off(head: HeadRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_MOST_MESSAGES_PER_S", 10)
    for name, thing in (("node07", server_news()), ("node08", messages.CancelCall(1))):
        async with StandInHost(name).joined(head.hosts) as host:
            await until(lambda name=name: f"{name}.gpu0" in head.guests)
            for _ in range(100):
                host.say(thing)
            await until(lambda host=host: host.session.is_over)
        assert "it said 50 things within" in head.hosts.hosts[name].reason


async def test_a_host_that_said_what_cannot_be_has_to_wait(head: HeadRig) -> None:
    host = StandInHost()
    async with host.joined(head.hosts):
        await until(lambda: head.guests)
        host.say(server_news(slots=0))
        await until(lambda: host.session.is_over)
    async with host.joined(head.hosts):
        await until(lambda: host.refused)
        assert host.refused is not None
        assert (host.refused.code, host.refused.final) == ("untrue", False)
        assert "node07.gpu0" not in host.refused.message
        assert "it may come again in 1 s" in host.refused.message
    async with StandInHost("node08").joined(head.hosts):  # which has nothing to do with that
        await until(lambda: "node08.gpu0" in head.guests)
    assert head.server("node07.gpu0").loaded != SMALL
