"""What the watchdog does to a server: its findings are made up, what is done to the server is seen at the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import pytest
from dispatch_support import SMALL, Port, Rig, settle
from task_support import Failures

from obatchd.dispatch import recovery
from obatchd.dispatch.link import Link
from obatchd.dispatch.protocol import GiveUp
from obatchd.dispatch.recovery import Watchdog
from obatchd.dispatch.watchdog import Observation, TimedAnswer
from obatchd.errors import ServerError
from obatchd.jobs.places import AtWork
from obatchd.ollama.faults import Fault
from obatchd.settings.settings import Settings

NEVER_S = 1000.0


class Load(NamedTuple):
    """Implements :class:`obatchd.dispatch.recovery.GpuLoad`."""

    percent: int | None

    def utilisation(self, server_id: str) -> int | None:
        return self.percent


class Suspect(Port):
    """A server that remembers what was done to it, in order."""

    def __init__(self) -> None:
        super().__init__("gpu0", loaded=SMALL)
        self.did: list[str] = []
        self.no_token: ServerError | None = None
        self.outside_vram = ""

    async def load(self, profile: Any) -> None:
        self.did.append("load")
        await super().load(profile)

    async def unload(self) -> None:
        self.did.append("unload")
        await super().unload()

    async def restart(self, reason: str) -> None:
        self.did.append("restart")

    def broken(self, reason: str) -> None:
        self.did.append("broken")
        self.is_ready = False

    async def one_token(self, timeout_s: float) -> None:
        self.did.append("one_token")
        if self.no_token is not None:
            raise self.no_token

    async def fallen_back(self) -> str:
        return self.outside_vram


class Watched:
    """A rig with one server under watch. Only the rules that are named can strike."""

    def __init__(self, rig: Rig, server: Suspect, gpu_percent: int | None, limits: Any) -> None:
        self.rig = rig
        self.server = server
        never = dict.fromkeys(("idle_gpu_s", "leak_s", "slow_s", "vram_s"), NEVER_S)
        rig.settings.value = Settings.model_validate({
            "dispatch": {"stall_s": limits.pop("stall_s", NEVER_S)},
            "servers": {"drain_s": limits.pop("drain_s", NEVER_S)},
            "watchdog": never | limits,
        })  # fmt: skip
        self.watchdog = Watchdog(rig.dispatcher, rig.settings, Load(gpu_percent), Failures())
        self.link = rig.link("gpu0")
        self._at_s = 0.0

    async def until_did(self, *expected: str) -> None:
        async with asyncio.timeout(20):
            while self.server.did[: len(expected)] != list(expected):
                await asyncio.sleep(0.005)

    def answer(self, count: int, *, rate: float = 50.0, wait_s: float = 0.0) -> None:
        """So many answers, one each second of their own clock, of a server with every slot in use."""
        for _ in range(count):
            self._at_s += 1
            self.link.watch.answered(TimedAnswer(self._at_s, SMALL, 2, 2, 1.0, wait_s, 100, 100 / rate))

    @property
    def gave_up(self) -> list[str]:
        return [message.code for message in self.rig.worker("gpu0").sent if isinstance(message, GiveUp)]


Make = Callable[..., Awaitable[Watched]]


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    made: list[Watched] = []
    monkeypatch.setattr(recovery, "_PERIOD_S", 0.01)

    async def watched(*, gpu_percent: int | None = None, **limits: float) -> Watched:
        """With two requests, both in a slot."""
        server = Suspect()
        rig = await Rig(server).start()
        await rig.add(1, 2)
        rig.worker("gpu0").begin((1, 1), (1, 2))
        made.append(Watched(rig, server, gpu_percent, limits))
        made[-1].watchdog.start()
        return made[-1]

    yield watched
    for each in made:
        await each.watchdog.stop()
        await each.rig.dispatcher.stop()


IDLE = {"gpu_percent": 0, "idle_gpu_s": 0.1}
SILENT = {"stall_s": 0.1}


@pytest.mark.parametrize(
    ("rule", "given_up"), [(IDLE, []), (SILENT, ["server_hung"])], ids=["gpu_idle", "stalled"]
)  # fmt: skip
async def test_a_suspect_that_gives_one_token_is_spared(make: Make, rule: dict[str, Any], given_up: list[str]) -> None:
    watched = await make(**rule)
    await watched.until_did("one_token")
    await watched.until_did("one_token", "one_token")  # it is looked at again, so the first look is over
    assert watched.gave_up[:1] == given_up
    assert watched.link.watchdog["restart"] == 0
    assert watched.server.ready


@pytest.mark.parametrize("rule", [IDLE, SILENT], ids=["gpu_idle", "stalled"])
async def test_a_suspect_that_gives_none_is_restarted(make: Make, rule: dict[str, Any]) -> None:
    watched = await make(**rule)
    watched.server.no_token = ServerError("no answer within 30 s", code="timeout")
    await watched.until_did("one_token", "broken")
    assert watched.gave_up[-1] == "server_hung"
    assert watched.link.watchdog["restart"] == 1


async def test_a_slow_server_gets_its_model_again_then_a_restart_and_then_is_taken_as_it_is(make: Make) -> None:
    watched = await make(slow_s=5)
    worker = watched.rig.worker("gpu0")
    watched.answer(10)
    watched.answer(30, rate=2)
    async with asyncio.timeout(20):
        while not worker.recalls:
            await asyncio.sleep(0.005)
    assert watched.server.did == [], "what is in flight ends first"
    worker.end_all([(1, 1), (1, 2)])
    await watched.until_did("unload", "load")
    assert watched.server.loaded == SMALL
    await settle()
    watched.answer(30, rate=2)
    await watched.until_did("unload", "load", "restart")
    watched.answer(30, rate=2)
    async with asyncio.timeout(20):
        while watched.link.watchdog["slow"] < 3:
            await asyncio.sleep(0.005)
    await watched.rig.add(1, 1)
    assert worker.held, "it gets work again"
    assert watched.server.did == ["unload", "load", "restart"]


async def test_a_server_that_loses_slots_is_restarted_when_it_is_empty(make: Make) -> None:
    watched = await make(leak_s=5)
    watched.answer(10, wait_s=0.5)
    worker = watched.rig.worker("gpu0")
    async with asyncio.timeout(20):
        while not worker.recalls:
            await asyncio.sleep(0.005)
    assert watched.server.did == []
    worker.end_all([(1, 1), (1, 2)])
    await watched.until_did("restart")


async def test_what_a_server_did_before_its_restart_is_not_held_against_it_afterwards(make: Make) -> None:
    watched = await make(leak_s=5)
    watched.answer(10, wait_s=0.5)
    worker = watched.rig.worker("gpu0")
    async with asyncio.timeout(20):
        while not worker.recalls:
            await asyncio.sleep(0.005)
    watched.answer(10, wait_s=0.5)  # it is not empty yet
    worker.end_all([(1, 1), (1, 2)])
    await watched.until_did("restart")
    await watched.watchdog.stop()
    assert watched.link.watch.look(Observation(time.monotonic(), True, 1, time.monotonic(), None)) is None
    assert watched.link.watchdog["restart"] == 1


async def test_what_does_not_end_before_a_restart_is_moved_and_no_crash(make: Make) -> None:
    watched = await make(leak_s=5, drain_s=0.05)
    worker = watched.rig.worker("gpu0")
    watched.answer(10, wait_s=0.5)
    async with asyncio.timeout(20):
        while not watched.gave_up:
            await asyncio.sleep(0.005)
    assert watched.server.did == []
    [moved] = [message for message in worker.sent if isinstance(message, GiveUp)]
    worker.end_all([(1, 1), (1, 2)], Fault(moved.fault, moved.code, moved.message))
    await watched.until_did("restart")
    await settle()
    assert watched.rig.failed == [] and watched.rig.dispatcher.suspicion == {}
    assert watched.server.strikes == []


async def test_a_model_outside_the_vram_means_a_restart(make: Make) -> None:
    watched = await make(vram_s=0.1)
    watched.server.outside_vram = "only 0.0 of 2.0 GiB of the model are in VRAM"
    await watched.until_did("broken")
    assert (watched.link.watchdog["cpu_fallback"], watched.gave_up) == (1, ["server_hung"])


async def test_what_hinders_a_remedy_ends_neither_it_nor_the_watch(make: Make) -> None:
    watched = await make(**IDLE)
    watched.server.no_token = ServerError("the model is gone", code="model_not_found")
    await watched.until_did("one_token", "one_token")  # it answered, though not with a token
    assert watched.link.watchdog["restart"] == 0 and watched.server.ready


@pytest.mark.parametrize("error", [ServerError("it is restarting", code="not_ready"), KeyError("a mistake of ours")])
async def test_a_remedy_that_fails_is_tried_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    watched = await make(vram_s=0.02)
    asked = 0

    async def fallen_back() -> str:
        nonlocal asked
        asked += 1
        raise error

    monkeypatch.setattr(watched.server, "fallen_back", fallen_back)
    async with asyncio.timeout(20):
        while asked < 2:
            await asyncio.sleep(0.005)
    assert ("watchdog_hindered" if isinstance(error, ServerError) else "watchdog_failed") in caplog.text
    assert watched.link.watchdog["restart"] == 0


async def test_a_server_is_condemned_only_by_others_that_do_the_same_work_well(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = await make(**IDLE, repeats=1)
    drained: list[str] = []

    async def drain(reason: str) -> bool:
        drained.append(reason)
        return True

    monkeypatch.setattr(watched.server, "drain", drain)
    watched.server.no_token = ServerError("no answer", code="timeout")
    await watched.until_did("one_token", "broken")
    await settle()
    assert drained == [] and watched.link.watchdog["drained"] == 0, "there is no other one"
    other = Link(Port("gpu1", loaded=SMALL), watched.rig.settings, AtWork())
    watched.rig.dispatcher.links["gpu1"] = other
    watched.server.is_ready = True
    async with asyncio.timeout(20):
        while not drained:
            await asyncio.sleep(0.005)
    assert "restarted it 1 time because it did not do its work, most recently: it has requests" in drained[0]
    assert watched.link.watchdog["drained"] == 1
    del watched.rig.dispatcher.links["gpu1"]


async def test_restarts_long_ago_condemn_nobody(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = await make(**IDLE, repeats=2, window_s=0.001)
    monkeypatch.setattr(watched.server, "drain", None)
    watched.rig.dispatcher.links["gpu1"] = Link(Port("gpu1", loaded=SMALL), watched.rig.settings, AtWork())
    watched.server.no_token = ServerError("no answer", code="timeout")
    for count in (1, 2, 3):
        async with asyncio.timeout(20):
            while watched.link.watchdog["restart"] < count:
                await asyncio.sleep(0.002)
        watched.server.is_ready = True
    assert watched.link.watchdog["drained"] == 0
    del watched.rig.dispatcher.links["gpu1"]


async def test_a_server_that_is_loading_is_not_looked_at(make: Make) -> None:
    watched = await make(vram_s=0.02)
    watched.server.outside_vram = "it is outside"
    watched.server.loading = SMALL
    for _ in range(8):
        await asyncio.sleep(0.01)
    assert watched.server.did == []
    watched.server.loading = None
    await watched.until_did("broken")


async def test_a_slow_server_that_does_not_become_empty_keeps_its_model(make: Make) -> None:
    watched = await make(slow_s=5, drain_s=0.02)
    watched.answer(10)
    watched.answer(30, rate=2)
    async with asyncio.timeout(20):
        while not watched.link.watchdog["slow"]:
            await asyncio.sleep(0.005)
        while watched.link.held_until_s:
            await asyncio.sleep(0.005)
    assert watched.server.did == []
