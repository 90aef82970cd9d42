"""Effects of settings that a daemon would show too slowly: through the seams of the parts that act on them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
from dispatch_support import LARGE, SMALL, Port, Rig
from reload_metrics import METRICS
from reload_people import PEOPLE
from reload_tuning import TUNING
from settings_support import in_force, reload
from task_support import Failures
from test_committer import Rig as CommitterRig
from test_inbox import Bench as InboxBench
from test_recovery import NEVER_S, Suspect, Watched
from test_switching import Clock, look
from test_watchdog import Server
from test_worker import CONTEXT, Wire, offer
from work_support import make_work

from obatchd.dispatch import protocol, recovery, switching
from obatchd.dispatch.watchdog import Symptom
from obatchd.dispatch.worker.worker import Worker
from obatchd.errors import ServerError
from obatchd.frames import Channel
from obatchd.jobs.store import JobRow, Owed
from obatchd.spool import inbox
from obatchd.telling import alarms as alarms_module
from obatchd.telling import notifications as notifications_module

See = Callable[[Path, pytest.MonkeyPatch, str, Any, Any], Awaitable[None]]


class Part(NamedTuple):
    """A setting before and after a reload, and what shows that the part acts on both."""

    old: Any
    new: Any
    see: See


# The inbox.


class Silent:
    """In place of the watch: a file system that tells of nothing, and does not say so."""

    def __init__(self, *_: Any) -> None: ...

    sees_writers = True

    def take_names(self) -> dict[bytes, inbox.Sign]:
        return {}

    def tells_all(self, inode: int) -> bool:
        return True


async def rescanned(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
    patch.setattr(inbox, "Watch", Silent)
    bench = InboxBench(directory / "spool", settle_s=1, rescan_s=old)
    bench.scan()
    bench.put("a.jsonl")
    assert bench.scan(new).settling == 0, "nobody looked at the whole inbox"
    reload(bench.settings, key, new)
    assert bench.scan().settling == 1


async def claimed(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
    bench = InboxBench(directory / "spool", settle_s=0.1, claim_batch=old)
    for number in range(9):
        bench.put(f"{number}.jsonl")
    bench.scan()
    assert len(bench.ready(1.0)) == old
    reload(bench.settings, key, new)
    assert len(bench.ready()) == new


# Dispatch.


async def switched(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
    """A server goes to the owner of another model, who waits."""
    clock, gpu = Clock(), Port("gpu0", loaded=SMALL)
    patch.setattr(switching, "time", clock)
    rig = await Rig(gpu, switch_after_s=old).start()
    await rig.add(1, 1000, SMALL, owner=1)
    worker = rig.worker("gpu0")
    worker.end_all(list(worker.held), took_s=10.0)
    await rig.add(2, 1000, LARGE, owner=2)
    worker.end_all(list(worker.held), took_s=10.0)
    await look(rig)
    worker.begin(*worker.held)
    clock.now_s += 2 * new
    await look(rig)
    assert rig.link("gpu0").switching_to is None
    reload(rig.settings, key, new)
    await look(rig)
    assert rig.link("gpu0").switching_to == LARGE
    await rig.dispatcher.stop()


async def committed(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
    """Results of some milliseconds apart share commits, or have their own."""
    rig = CommitterRig(directory)
    reload(rig.work.settings, key, old)
    rig.committer.start(rig, rig, rig)

    async def commits() -> int:
        before = rig.batches
        for line in range(1, 11):
            rig.committer.finish(rig.finished(line))
            await asyncio.sleep(0.015)
        await rig.committer.settle(5)
        return rig.batches - before

    together = await commits()
    reload(rig.work.settings, key, new)
    await commits()  # the pause after the last commit is still the old one
    assert await commits() > 2 * together
    await rig.committer.stop()
    rig.store.close()


@contextlib.contextmanager
def full_port() -> Iterator[str]:
    """The address of a server that accepts nobody, whose queue is full: the kernel lets others wait."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextlib.asynccontextmanager
async def working() -> AsyncIterator[Wire]:
    wire = Wire()
    task = asyncio.create_task(Worker(Channel(wire.reader, wire, protocol.to_worker)).run())  # type: ignore[arg-type]
    yield wire
    wire.reader.feed_eof()
    await task


async def connected(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
    """A worker is told at once, and gives up waiting for a connection."""
    with full_port() as url:
        gpu = Port("gpu0", loaded=SMALL)
        gpu.base_url = url
        rig = await Rig(gpu, **{key.rpartition(".")[2]: old}).start()
        async with working() as wire:
            wire.feed(rig.worker("gpu0").sent[-1], CONTEXT, offer(1, 1))
            await asyncio.sleep(2 * new)
            assert wire.results() == {}
            reload(rig.settings, key, new)
            rig.dispatcher.settings_changed()
            wire.feed(rig.worker("gpu0").sent[-1], offer(1, 2))
            result = (await wire.until(wire.results))[1, 2]
            assert result.code == "unreachable"
            wire.feed(protocol.Cancel(1))
        await rig.dispatcher.stop()


# The watchdog: what it finds.


def found(usual: dict[str, float], finding: Symptom, seconds: Callable[[Server], dict[Symptom, float]]) -> See:
    """What is wrong with a server is found after a reload, and not before."""

    async def see(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
        server = Server(usual | {key.rpartition(".")[2]: old})
        server.answer(60, rate=50)
        assert finding not in seconds(server)
        reload(server.settings, key, new)
        assert finding in seconds(server)

    return see


# The watchdog: what it does.


class Late(Suspect):
    """Gives its one token after a fifth of a second, if somebody waits for so long."""

    late_s = 0.2

    def __init__(self) -> None:
        super().__init__()
        self.drained = False

    async def one_token(self, timeout_s: float) -> None:
        await asyncio.sleep(min(timeout_s, self.late_s))
        if timeout_s < self.late_s:
            raise ServerError("no answer", code="timeout")
        self.did.append("one_token")

    async def drain(self, reason: str) -> bool:
        self.drained = True
        return True


@contextlib.asynccontextmanager
async def under_watch(patch: pytest.MonkeyPatch, **limits: Any) -> AsyncIterator[tuple[Late, Watched]]:
    """A server with two requests, both in a slot, no token and an idle GPU; another one does the same work well."""
    patch.setattr(recovery, "_PERIOD_S", 0.01)
    server = Late()
    rig = await Rig(server, Port("gpu1", loaded=SMALL)).start()
    await rig.add(1, 4)
    worker = rig.worker("gpu0")
    worker.begin(*list(worker.held)[:2])
    watched = Watched(rig, server, 0, limits)
    watched.watchdog.start()
    yield server, watched
    await watched.watchdog.stop()
    await rig.dispatcher.stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def waited_for_a_token(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
    async with under_watch(patch, idle_gpu_s=0.05, probe_s=old) as (server, watched):
        await until(lambda: server.did)
        assert set(server.did) == {"one_token"}
        reload(watched.rig.settings, key, new)
        await until(lambda: "broken" in server.did)


async def looked_at_vram(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
    async with under_watch(patch, vram_s=old) as (server, watched):
        server.outside_vram = "only half of it is in VRAM"
        await asyncio.sleep(4 * new)
        assert server.did == []
        reload(watched.rig.settings, key, new)
        await until(lambda: "broken" in server.did)


def drained_after_restarts(**usual: Any) -> See:
    """A server that is restarted again and again gets no more work after a reload, and goes on without."""

    async def see(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
        limits = {"idle_gpu_s": 0.01, "probe_s": 0.01, **usual, key.rpartition(".")[2]: old}
        async with under_watch(patch, **limits) as (server, watched):
            await until(lambda: len(server.did) >= 4)
            assert not server.drained
            reload(watched.rig.settings, key, new)
            await until(lambda: server.drained)

    return see


def idle(percent: int) -> Callable[[Server], dict[Symptom, float]]:
    return lambda server: server.look(100, gpu=percent)


def waiting(server: Server) -> dict[Symptom, float]:
    return server.answer(100, wait_s=0.6, active=1)


def slow(server: Server) -> dict[Symptom, float]:
    return server.answer(100, rate=1)


# Who is told.


async def posted(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
    urls: list[str] = []

    async def post(url: str, message: object, *, timeout_s: float) -> None:
        urls.append(url)

    patch.setattr(alarms_module, "post", post)
    current = in_force(alarms={"webhook": old})
    alarms = alarms_module.Alarms(current, Failures())
    await alarms.test()
    reload(current, key, new)
    await alarms.test()
    assert urls == [old, new]


def mailed(seen: Callable[[Sequence[str], float], Any], *expected: Any) -> See:
    """What is seen of a mail with the setting as it was, and as it is; None: it was not sent."""

    async def see(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
        sent: list[Any] = []

        async def run(command: Sequence[str], message: object, timeout_s: float) -> None:
            sent[-1] = seen(command, timeout_s)

        patch.setattr(notifications_module, "run_command", run)
        work = make_work(directory, notifications={"allow": ["*@example.org"], "mail_command": ["true"]})
        notifications = notifications_module.Notifications(work)
        for number, value in enumerate((old, new)):
            reload(work.settings, key, value)
            sent.append(None)
            owed = Owed(f"notify/{number}/0", str(number), number, "mail:ann@example.org", {})
            work.store.state.update_many([], [owed])
            notifications.job_over(cast(JobRow, SimpleNamespace(job=str(number))))
            while work.store.state.get(owed.key) == owed.encoded():
                await asyncio.sleep(0.001)
        assert sent == list(expected)
        await notifications.stop()
        work.store.close()

    return see


PARTS = {
    "alarms.webhook": Part("http://a.lab/", "http://b.lab/", posted),
    "notifications.allow": Part([], ["*@example.org"], mailed(lambda *_: "sent", None, "sent")),
    "notifications.mail_command": Part(["true"], ["false"], mailed(lambda command, _: command[0], "true", "false")),
    "notifications.timeout_s": Part(30, 60, mailed(lambda _, timeout_s: timeout_s, 30, 60)),
    "inbox.rescan_s": Part(600, 5, rescanned),
    "inbox.claim_batch": Part(2, 5, claimed),
    "dispatch.switch_after_s": Part(1e6, 10, switched),
    "dispatch.commit_interval_ms": Part(100, 1, committed),
    "dispatch.connect_timeout_s": Part(60, 0.1, connected),
    "watchdog.idle_gpu_s": Part(1e6, 60, found({}, Symptom.GPU_IDLE, idle(0))),
    "watchdog.idle_gpu_percent": Part(2, 20, found({}, Symptom.GPU_IDLE, idle(10))),
    "watchdog.leak_s": Part(1e6, 60, found({}, Symptom.SLOTS_LEAKING, waiting)),
    "watchdog.slow_factor": Part(0, 0.3, found({}, Symptom.SLOW, slow)),
    "watchdog.slow_s": Part(1e6, 60, found({}, Symptom.SLOW, slow)),
    "watchdog.probe_s": Part(30, 0.05, waited_for_a_token),
    "watchdog.vram_s": Part(NEVER_S, 0.05, looked_at_vram),
    "watchdog.repeats": Part(1000, 3, drained_after_restarts()),
    "watchdog.window_s": Part(1e-3, 3600, drained_after_restarts(repeats=3)),
} | {key: Part(*part) for key, part in (PEOPLE | METRICS | TUNING).items()}
