"""A server whose care meets a defect of ours leaves its state at once and is tried again."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Callable

import pytest
from settings_support import in_force

from obatchd import spoken
from obatchd.errors import ServerError
from obatchd.servers import life
from obatchd.servers.life import Life
from obatchd.servers.states import ServerState
from obatchd.servers.tries import Tries

S = ServerState
QUICK = {"backoff_max_s": 0.01, "slow_retry_s": 0.01, "health_s": 0.01, "starts_limit": 3, "start_timeout_s": 5}


class Cared(Life):
    """A server of which the test says what goes wrong."""

    def __init__(self, **slower: float) -> None:
        super().__init__("gpu0", in_force(servers=QUICK | slower))
        self.defects: dict[str, int] = {}  # how often each step still fails
        self.states: list[ServerState] = []
        self.closed = 0

    def _step(self, name: str) -> None:
        if self.defects.get(name, 0):
            self.defects[name] -= 1
            raise KeyError(name)

    async def _open(self) -> None:
        self._step("open")

    async def _close(self) -> None:
        self.closed += 1
        self._step("close")

    async def _check_health(self) -> None:
        self._step("health")

    async def _when_healthy(self) -> None:
        self._step("healthy")

    def _forget(self) -> None:
        pass

    def _tell(self, old: ServerState, new: ServerState, reason: str) -> None:
        self.states.append(new)
        self._step(f"tell-{new.value}")


@pytest.fixture
async def server() -> AsyncIterator[Cared]:
    made = Cared()
    yield made
    made.defects.clear()
    await made.stop()


async def until(found: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not found():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("step", ["open", "health", "healthy"])
async def test_a_defect_in_a_run_ends_that_run_and_the_server_comes_back(server: Cared, step: str) -> None:
    server.defects = {step: 1}
    server.begin()
    await until(lambda: S.BACKOFF in server.states and server.ready)
    before = server.states[: server.states.index(S.BACKOFF)]
    assert before == ([S.STARTING] if step == "open" else [S.STARTING, S.READY])
    assert server.closed == 1


async def test_a_server_that_meets_the_defect_again_and_again_fails_with_the_reason(server: Cared) -> None:
    server.defects = {"open": 1_000_000}
    server.begin()
    await until(lambda: S.FAILED in server.states)
    assert "obatchd itself failed in looking after it (KeyError" in server.reason
    assert not server.ready


async def test_what_cannot_be_closed_is_tried_again_all_the_same(server: Cared) -> None:
    server.defects = {"health": 1, "close": 1}
    server.begin()
    await until(lambda: S.BACKOFF in server.states and server.ready)


@pytest.mark.parametrize("state", ["ready", "backoff", "starting"])
async def test_a_listener_that_fails_does_not_leave_the_server_without_care(server: Cared, state: str) -> None:
    server.defects = {f"tell-{state}": 1, "open": 1 if state == "backoff" else 0}
    server.begin()
    await until(lambda: server.ready and not any(server.defects.values()))


async def test_a_restart_is_carried_out_after_a_defect(server: Cared) -> None:
    server.defects = {"open": 1_000_000}
    server.begin()
    await until(lambda: server.state in (S.BACKOFF, S.FAILED))
    server.defects.clear()
    async with asyncio.timeout(5):
        await server.restart("asked by an administrator")
    await until(lambda: server.ready)


async def test_who_waits_hears_of_a_life_that_has_ended(server: Cared) -> None:
    server.defects = {"open": 1, "tell-backoff": 1}
    waiting = asyncio.create_task(server.until({S.FAILED}))
    server.begin()
    async with asyncio.timeout(5):
        await waiting


async def test_a_life_that_has_ended_goes_on_when_an_operator_asks() -> None:
    server = Cared(slow_retry_s=600)
    server.defects = {"open": 1, "tell-backoff": 1}
    server.begin()
    await until(lambda: server.state is S.FAILED)
    async with asyncio.timeout(5):
        await server.restart("asked by an administrator")
    await until(lambda: server.ready)
    server.defects = {"health": 1, "tell-backoff": 1}
    await until(lambda: server.state is S.FAILED)
    async with asyncio.timeout(5):
        await server.quarantine("its GPU is bad")
    await server.stop()


class Elsewhere(Cared):
    """A server that others start."""

    ours = False
    tried: asyncio.Event | None = None  # a try lasts until then

    async def _open(self) -> None:
        if self.tried is not None:
            await self.tried.wait()
        await super()._open()

    def _step(self, name: str) -> None:
        if self.defects.get(name, 0):
            self.defects[name] -= 1
            raise ServerError("10.0.0.5:11434 cannot be reached: Connection refused.", code="server_unreachable")


@pytest.mark.parametrize("step", ["open", "health"])
async def test_a_server_elsewhere_that_cannot_be_reached_is_looked_for_as_often_as_ever(step: str) -> None:
    """Before, ten minutes passed although it was back after one."""
    server = Elsewhere(slow_retry_s=600, starts_limit=2)
    server.id = "remote-10.0.0.5-11434"
    server.defects = {step: 1_000_000}
    server.begin()
    await until(lambda: server.states.count(S.FAILED) >= 3)
    seen = server.reason
    await server.stop()
    assert "cannot be reached: Connection refused." in seen and "start" not in seen
    again = r"\(tried \d+ times; next try at [\d:]{8}, at once with: obatchctl servers resume remote-10.0.0.5-11434\)"
    assert re.search(again, seen)
    assert server.restarts >= 3 if step == "health" else server.restarts == 0  # where it never answered, nothing began


async def test_a_server_that_is_down_says_when_it_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock: before, it said 60 s until the next try, for all these 60 s."""
    monkeypatch.setattr(life, "clock", lambda at_s: f"{at_s - time.time():.1f} s from now")
    monkeypatch.setattr(random, "uniform", lambda low, high: 1.0)
    server = Cared(backoff_max_s=4)
    server.defects = {"open": 1_000_000}
    server.begin()
    await until(lambda: server.state is S.BACKOFF)
    assert server.reason.endswith(" (next try at 1.0 s from now)")
    await server.stop()


async def test_a_server_elsewhere_that_stays_down_is_down_while_it_is_tried_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Before, the log had its whole line with each try, and while a try ran the daemon was content."""
    caplog.set_level("INFO")
    server = Elsewhere(starts_limit=3)
    server.defects = {"open": 1_000_000}
    server.begin()
    await until(lambda: server.states.count(S.FAILED) >= 3)
    told = [record.fields["new"] for record in caplog.records if getattr(record, "event", "") == "server_state"]  # type: ignore[attr-defined]
    assert told == [S.STARTING, S.BACKOFF, S.FAILED]
    server.tried = asyncio.Event()
    await until(lambda: server.state is S.STARTING)
    assert server.in_words == "gpu0 is down: 10.0.0.5:11434 cannot be reached: Connection refused."
    server.defects.clear()
    server.tried.set()
    await until(lambda: server.ready)
    assert not server.down and caplog.records[-1].fields["new"] is S.READY  # type: ignore[attr-defined]
    await server.stop()


async def test_a_drained_server_that_comes_back_is_said_to_stay_so(caplog: pytest.LogCaptureFixture) -> None:
    """Before, the log called it ready while the table had it draining."""
    caplog.set_level("INFO")
    server = Elsewhere()
    server.hold("operator", "by an administrator at 17:00")
    server.begin()
    await until(lambda: server.state is S.DRAINING)
    told = [record.fields for record in caplog.records if getattr(record, "event", "") == "server_state"]  # type: ignore[attr-defined]
    words = [spoken.told("server_state", fields) for fields in told]
    assert list(filter(None, words)) == ["Server gpu0 is back and stays drained: by an administrator at 17:00"]
    await server.stop()


async def test_a_server_elsewhere_that_answers_wrongly_is_left_alone_for_long() -> None:
    server = Elsewhere(slow_retry_s=600, starts_limit=1)
    server.begin()
    await until(lambda: server.ready)
    server.broken("5 faults, the latest: 502")
    await until(lambda: server.state is S.FAILED)
    assert "(tried once; next try at " in server.reason
    async with asyncio.timeout(5):
        await server.try_again()
    await until(lambda: server.ready)
    await server.stop()


async def test_no_pause_is_longer_than_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    tries, settings = Tries(), in_force(servers={"backoff_max_s": 5, "starts_limit": 9}).value.servers
    assert [tries.failed(settings, ours=False, reached=False) for _ in range(5)] == [
        (pause_s, "") for pause_s in (1, 2, 4, 5, 5)
    ]
