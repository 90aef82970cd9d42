"""Servers and workers for tests of dispatch: objects that remember what they were told, no processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import msgspec
from settings_support import in_force
from task_support import Failures
from work_support import NoFeeder

from obatchd.child import End
from obatchd.dispatch import protocol
from obatchd.dispatch.dispatcher import Dispatcher
from obatchd.dispatch.events import Failed, Finished
from obatchd.dispatch.holds import Holds
from obatchd.dispatch.link import Link
from obatchd.dispatch.protocol import OfferItem, ResultItem
from obatchd.dispatch.tuning.ports import TunableServer
from obatchd.dispatch.workers import WorkerLife, WorkerMaker, WorkerPlace
from obatchd.errors import ObatchError, ServerError
from obatchd.frames import Drained, frame
from obatchd.jobs.lane import Lane, Pending
from obatchd.jobs.model import Profile
from obatchd.jobs.queue import JobQueue
from obatchd.ollama import faults
from obatchd.ollama.faults import Fault

SMALL, LARGE = Profile("small", 4096), Profile("large", 8192)
Key = tuple[int, int]


class Port:
    """A server that is READY and loads what it is asked for, when it is allowed to."""

    def __init__(self, server_id: str, slots: int = 2, loaded: Profile | None = None) -> None:
        self.id = server_id
        self.base_url = "http://127.0.0.1:1"
        self.gpu_label = f"GPU-{server_id}"
        self.version = ""
        self.token = ""
        self.slots = slots
        self.loaded = loaded
        self.loading: Profile | None = None
        self.load_s: float | None = 0.1
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.is_ready = True
        self.out_of_use = False
        self.down = ""
        self.strikes: list[str] = []
        self.loads: list[Profile] = []
        self.refuse: dict[Profile, ObatchError] = {}
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.works = True  # else it answers no token
        self.tuning: TunableServer | None = None

    @property
    def ready(self) -> bool:
        return self.is_ready

    @property
    def up(self) -> bool:
        return self.is_ready

    @property
    def starting_runner(self) -> bool:
        return False

    def load_options(self, profile: Profile) -> dict[str, Any]:
        return {"num_ctx": profile.context_length}

    async def load(self, profile: Profile) -> None:
        self.loaded, self.loading = None, profile
        try:
            await self.may_load.wait()
            self.loads.append(profile)
            if profile in self.refuse:
                raise self.refuse[profile]
            self.loaded = profile
        finally:
            self.loading = None

    async def unload(self) -> None:
        self.loaded = None

    async def drain(self, reason: str) -> bool:
        return self.idle.is_set()

    async def restart(self, reason: str) -> None:
        self.loaded = None

    async def one_token(self, timeout_s: float) -> None:
        if not self.works:
            raise ServerError("CUDA error", code="server_error")

    async def fallen_back(self) -> str:
        return ""

    def progress(self) -> None:
        pass

    def fault(self, reason: str) -> None:
        self.strikes.append(reason)

    def broken(self, reason: str) -> None:
        self.strikes.append(reason)


class FakeWorker:
    """In place of a child: holds offers until the test says what becomes of them."""

    unstartable = 0  # this many starts fail
    absent: ClassVar[set[str]] = set()  # servers whose workers never come
    made: ClassVar[list[FakeWorker]] = []

    def __init__(self, name: str, place: WorkerPlace) -> None:
        self.name = name
        self.tell = place.heard
        self.dead = asyncio.Event()
        self.sent: list[protocol.ToWorker] = []
        self.held: dict[Key, OfferItem] = {}
        self.started: list[Key] = []
        self.recalls = 0
        self.answers_recalls = True
        self.answers_pings = False
        self.losing = False  # what is sent now does not arrive
        self.got = 0
        self.killed = False
        self.lost_host = ""  # what its end says
        self.pid = 4711
        self.is_full = False
        self.away_s = 0.0
        self.fills = False  # the settings of one job are enough for it to be full
        self.listener: Drained | None = None

    def listen(self, listener: Drained) -> None:
        self.listener = listener

    def send(self, message: Any) -> bool:
        frame(message)  # as a real one does: not every message can be sent
        self.sent.append(message)
        if self.losing:
            return True
        match message:
            case protocol.JobContext():
                self.is_full = self.fills
            case protocol.Ping(offered):
                if self.answers_pings:
                    progress = protocol.Progress(1, 1, 0.0, len(self.held), self.got, offered, self.got)
                    asyncio.get_running_loop().call_soon(self.tell, progress)
            case protocol.Offer():
                self.got += len(message.items)
                self.held |= {(item.job, item.line): item for item in message.items}
            case protocol.Recall():
                self.recalls += 1
                if self.answers_recalls:
                    self.give_back(message.count)
            case protocol.Cancel():
                gone = [key for key in self.held if key[0] == message.job]
                for key in gone:
                    del self.held[key]
                asyncio.get_running_loop().call_soon(self.tell, protocol.Returned(gone))
            case protocol.CancelOne():
                key = (message.job, message.line)
                known = [key] if self.held.pop(key, None) is not None else []
                asyncio.get_running_loop().call_soon(self.tell, protocol.Returned(known))
        return True

    def say(self, key: Key, text: str) -> None:
        """A piece of an answer has come."""
        self.tell(protocol.Tokens([protocol.TokenItem(*key, self.held[key].attempt, text)]))

    def give_back(self, count: int) -> None:
        waiting = [key for key in self.held if key not in self.started][::-1][:count]
        for key in waiting:
            del self.held[key]
        asyncio.get_running_loop().call_soon(self.tell, protocol.Returned(waiting))

    def begin(self, *keys: Key) -> None:
        """These have a slot now."""
        self.started += keys
        self.tell(protocol.Started(list(keys)))

    def end(
        self,
        key: Key,
        fault: Fault | None = None,
        *,
        attempt: int | None = None,
        took_s: float = 1.0,
        vectors: bool = False,
    ) -> None:
        """The attempt has ended, well or with ``fault``."""
        self.end_all([key], fault, attempt=attempt, took_s=took_s, vectors=vectors)

    def end_all(
        self,
        keys: list[Key],
        fault: Fault | None = None,
        *,
        attempt: int | None = None,
        took_s: float = 1.0,
        vectors: bool = False,
    ) -> None:
        items = []
        for key in keys:
            item = self.held.pop(key)
            if key in self.started:
                self.started.remove(key)
            code = {"code": fault.code} if fault else {}
            servers = [*item.servers, self.name]
            code |= {"message": fault.message} if fault else {}
            record = msgspec.json.encode({"id": str(key[1]), "line": key[1], "servers": servers, **code})
            ended = fault or ("", "", "")
            tried = attempt or item.attempt
            items.append(ResultItem(*key, tried, fault is None, record, took_s, 1, 1, *ended, vectors=vectors))
        self.tell(protocol.Results(items))

    def die(self, host: str = "") -> None:
        """It ends: by itself, or because ``host`` is lost."""
        self.lost_host = host
        self.dead.set()

    def kill(self) -> None:
        self.killed = True
        self.dead.set()


class FakeLife:
    """Keeps a fake worker at one server."""

    def __init__(self, server_id: str, place: WorkerPlace) -> None:
        self.name = f"worker-{server_id}"
        self.tried = asyncio.Event()
        self._server_id = server_id
        self._place = place

    async def run(self) -> None:
        while True:
            if self._server_id in FakeWorker.absent:
                await asyncio.Event().wait()
            if FakeWorker.unstartable:
                FakeWorker.unstartable -= 1
                end = End("cannot be started: no more processes", 0.0)
            else:
                worker = FakeWorker(self._server_id, self._place)
                FakeWorker.made.append(worker)
                self._place.started(worker)
                self._place.heard(protocol.Hello(worker.pid))
                self.tried.set()
                try:
                    await worker.dead.wait()
                finally:
                    worker.dead.set()
                end = End("died", 10.0, host=worker.lost_host)
            self._place.ended(end)
            await asyncio.sleep(0)


class FakeWorkers:
    """Makes fake workers."""

    def keep(self, server_id: str, place: WorkerPlace) -> WorkerLife:
        return FakeLife(server_id, place)


async def settle() -> None:
    """Let everything that is due happen."""
    for _ in range(20):
        await asyncio.sleep(0)


class Told:
    """Writes down what dispatch tells. Implements :class:`obatchd.dispatch.events.DispatchEvents`."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def finished(self, finished: Finished) -> None:
        self._rig.finished.append(finished)

    def answered_for_nobody(self, finished: Finished) -> None:
        self._rig.of_nobody.append(finished)

    def failed(self, failed: Failed) -> None:
        self._rig.failed.append(failed)

    def hindered(self, job: int, reason: str) -> None:
        self._rig.hindered.append((job, reason))

    def model_missing(self, model: str) -> None:
        self._rig.forgotten.append(model)

    def unservable(self, profile: Profile, error: ObatchError) -> None:
        self._rig.unservable.append((profile, error.code))
        self._rig.queue.remove_lanes(self._rig.queue.lanes_of_profile(profile))

    def context_of(self, job: int) -> protocol.JobContext:
        return protocol.JobContext(job, str(job), "", {}, 100, self._rig.formats.get(job, ""))

    def name_of(self, job: int) -> str:
        return f"20261128-job{job}"

    def defective(self, job: int) -> None:
        self._rig.queue.cancel_job(job)


class Rig:
    """A dispatcher with its queue, servers and workers."""

    def __init__(self, *ports: Port, **settings: Any):
        FakeWorker.unstartable, FakeWorker.made, FakeWorker.absent = 0, [], set()
        self.settings = in_force(dispatch={"switch_after_s": 1e-9} | settings)
        self.ports = {port.id: port for port in ports}
        self.finished: list[Finished] = []
        self.of_nobody: list[Finished] = []  # answers that belong to no job
        self.failed: list[Failed] = []
        self.hindered: list[tuple[int, str]] = []
        self.unservable: list[tuple[Profile, str]] = []
        self.prepared: list[tuple[str, str]] = []
        self.formats: dict[int, dict[str, Any]] = {}  # of jobs
        self.forgotten: list[str] = []  # models that a server said it does not have
        self.missing: dict[str, ObatchError] = {}
        self.may_prepare = asyncio.Event()
        self.may_prepare.set()
        feeder = NoFeeder()
        self.fetches = feeder.fetches
        self.queue = JobQueue(feeder)
        self.failures = Failures()
        self.workers: WorkerMaker = FakeWorkers()
        self.dispatcher = Dispatcher(
            self.queue,
            self.settings,
            Told(self),
            self,
            Holds(),
            self.failures,
        )

    async def ensure(self, server: str, model: str) -> list[str]:
        self.prepared.append((server, model))
        await self.may_prepare.wait()
        if model in self.missing:
            raise self.missing[model]
        return []

    async def start(self, *absent: str) -> Rig:
        """Workers of servers that are ``absent`` do not come."""
        FakeWorker.absent = set(absent)
        await self.dispatcher.start(self.ports.values(), self.workers)
        await settle()
        return self

    def link(self, server: str) -> Link:
        return self.dispatcher.links[server]

    def worker(self, server: str) -> FakeWorker:
        """The latest worker of a server."""
        return next(worker for worker in reversed(FakeWorker.made) if worker.name == server)

    async def add(
        self,
        job: int,
        lines: int,
        profile: Profile = SMALL,
        *,
        owner: int = 1,
        priority: str = "normal",
        raw: bytes = b'{"id":"x"}',
    ) -> Lane:
        lane = self.queue.add_lane(Lane(job, 0, owner, profile, priority, 1000.0))
        first = 1 + lane.cursor
        pending = [Pending(line, raw) for line in range(first, first + lines)]
        self.queue.extend(lane, lines, pending)
        self.dispatcher.wake()
        await settle()
        return lane

    def lines(self) -> list[tuple[int, bool]]:
        return [(finished.line, finished.succeeded) for finished in self.finished]


Make = Callable[..., Awaitable[Rig]]


@asynccontextmanager
async def rigs(slots: int) -> AsyncIterator[Make]:
    """Makes dispatchers, on one server with so many slots unless told otherwise, and stops them at the end."""
    made: list[Rig] = []

    async def make(servers: int = 1, slots: int = slots, **settings: Any) -> Rig:
        ports = [Port(f"gpu{i}", slots, SMALL) for i in range(servers)]
        made.append(await Rig(*ports, **settings).start())
        return made[-1]

    yield make
    for each in made:
        await each.dispatcher.stop()


CRASH = Fault(faults.CRASH, "runner_crash", "the runner died")
REFUSED = Fault(faults.NOBODY, "unreachable", "connection refused")
FOREIGN = Fault(faults.FOREIGN, "not_ollama", "http://front/api/chat answered 404")
SERVER = Fault(faults.SERVER, "server_error", "it failed")
BAD_REQUEST = Fault(faults.REQUEST, "bad_request", "no")
