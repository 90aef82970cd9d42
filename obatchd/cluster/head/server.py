"""A server of a joined host, as the head sees it: a mirror of what the host tells, and commands to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from obatchd import log
from obatchd.cluster.head.sensors import HostSensors
from obatchd.cluster.messages import Busy, Fault, Progressed, ServerNews, SlotNews, ToHead, UseSlots
from obatchd.cluster.session import Session
from obatchd.errors import ModelError, ObatchError, ServerError
from obatchd.gpus.model import Gpu
from obatchd.jobs.model import Profile
from obatchd.servers.states import ServerState
from obatchd.tasks import TaskSet
from obatchd.words import server_state

_log = log.get(__name__)
_PROGRESS_S = 1.0
_WAITED_FOR_S = 300.0  # nobody waits for a host that is away for longer
_UP = frozenset({ServerState.READY, ServerState.DRAINING})
_DOWN = frozenset({ServerState.BACKOFF, ServerState.FAILED, ServerState.QUARANTINED})
_HOST = "host"  # keeps work away because its whole host is drained, or leaves
_FIXED = SlotNews("", "", 0, 0, 1, 1, False, False)  # of a server whose slots are not to be chosen
T = TypeVar("T")


class HostedListener(Protocol):
    """Hears of the servers of joined hosts; :class:`obatchd.daemon.compose.ServerNews`."""

    def server_changed(self, server: HostedServer, old: ServerState, new: ServerState, reason: str) -> None:
        """The state of a server has changed."""


class HostedServer:
    """One server of a joined host. Implements :class:`obatchd.dispatch.link.ServerPort`,
    :class:`obatchd.servers.server.ServerFace`, and :class:`obatchd.dispatch.tuning.ports.TunableServer`.

    What it tells of itself is true as of the latest news: the host sends these before it answers a command. While the
    host is away it is down, with nothing loaded.
    """

    kind = "managed"
    token = ""
    gpus: tuple[Gpu, ...]

    def __init__(self, host: str, news: ServerNews, listener: HostedListener, sensors: HostSensors) -> None:
        self.id = f"{host}.{news.id}"
        self.local_id = news.id  # on its host
        self.host = host
        self.idle = asyncio.Event()  # written by the dispatcher, as is ``in_flight``
        self.idle.set()
        self.sensors = sensors  # of its host
        self._news = news
        self._listener = listener
        self._session: Session[ToHead] | None = None
        self._away = "it has not come yet"
        self._away_s = time.monotonic()
        self._kept = ""  # why it gets nothing new although it could work
        self._in_flight = 0
        self._busy_told = self._telling = False
        self._progress_s = float("-inf")
        self._told = ServerState.STOPPED  # the state that the listener knows
        self._preferred: tuple[int, ...] = ()  # slots for the next load
        self._slots = _FIXED  # what the tuner has to know
        self._resuming: asyncio.Task[None] | None = None
        self._tasks = TaskSet(self)
        self._mirror()

    # --- what its host tells ----------------------------------------------------------------------------------------

    def heard(self, news: ServerNews, session: Session[ToHead]) -> None:
        """What there is of it now, in a session of its host; checked before."""
        self._news = news
        if self._session is not session:
            self._session, self._busy_told = session, False
            self._tell_busy()
        self._mirror()
        self._tell()

    def lost(self, reason: str) -> None:
        """Its host is away."""
        self._session, self._away, self._away_s = None, reason, time.monotonic()
        self._mirror()
        self._tell()

    def keep(self, reason: str) -> None:
        """Give it nothing new while there is a reason; empty: it works as its host says."""
        self._kept = reason
        self._mirror()
        if self._session is not None:
            self._tell()

    def _mirror(self) -> None:
        news, here = self._news, self._session is not None
        self.base_url, self.gpu_label, self.gpus = news.base_url, news.gpu_label, tuple(news.gpus)
        self.slots, self.version, self.load_s, self.restarts = news.slots, news.version, news.load_s, news.restarts
        self.loaded: Profile | None = news.loaded if here else None
        self.loading: Profile | None = news.loading if here else None
        self.pid = news.pid if here else None
        self._slots = slots = news.tuning or _FIXED
        self.device, self.driver, self.memory_bytes = slots.device, slots.driver, slots.memory_bytes
        self.vram_bytes, self.process_slots = slots.vram_bytes, slots.process_slots
        self.fresh, self.beside_others = slots.fresh, slots.beside_others
        told = ServerState(news.state) if here else ServerState.BACKOFF
        self.state = ServerState.DRAINING if told is ServerState.READY and self._kept else told
        self.ready = self.state is ServerState.READY

    def _tell(self) -> None:
        old, new = self._told, self.state
        self._told = new
        if old is not new:
            level = _log.warning if new in (ServerState.BACKOFF, ServerState.FAILED) else _log.info
            level("server_state", server=self.id, gpu=self.gpu_label, old=old, new=new, reason=self.reason)
        self._listener.server_changed(self, old, new, self.reason)

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def store(self) -> str:
        """All servers of a host share one."""
        return self.host

    @property
    def is_here(self) -> bool:
        """Whether its host is here, and has told of it in this session."""
        return self._session is not None

    @property
    def reason(self) -> str:
        if self._session is None:
            return f"host {self.host} is away: {self._away}"
        return "; ".join(self.holds.values()) if self._kept and self.up else self._news.reason

    @property
    def up(self) -> bool:
        return self.state in _UP

    @property
    def out_of_use(self) -> bool:
        if self._session is None:
            return time.monotonic() - self._away_s > _WAITED_FOR_S
        return self.state in (ServerState.FAILED, ServerState.QUARANTINED)

    @property
    def down(self) -> str:
        return self.reason if self._session is None else self._news.down

    @property
    def in_words(self) -> str:
        state = ServerState.BACKOFF if self.state is ServerState.STARTING and self.down else self.state
        return f"{self.id} is {server_state(state)}: {self.down or self.reason}"

    @property
    def holds(self) -> Mapping[str, str]:
        return self._news.holds | ({_HOST: self._kept} if self._kept else {})

    @property
    def gpu(self) -> Gpu | None:
        return self.gpus[0] if len(self.gpus) == 1 else None

    @property
    def starting_runner(self) -> bool:
        return self._session is not None and self._news.starting_runner

    @property
    def model_vram_bytes(self) -> int | None:
        return self._news.model_vram_bytes

    @property
    def unloads_in_s(self) -> float | None:
        return self._news.unloads_in_s

    @property
    def utilisation(self) -> int | None:
        """Of its busiest GPU in percent; None where nobody knows it."""
        return self.sensors.utilisation(self.gpu_label.split(","))

    @property
    def loads(self) -> int:
        """Loads of models since its host's process began."""
        return self._news.loads

    def load_options(self, profile: Profile) -> dict[str, Any]:
        return self._news.load_options | {"num_ctx": profile.context_length}

    # --- slots, chosen by :mod:`obatchd.dispatch.tuning` ------------------------------------------------------------

    @property
    def tuning(self) -> HostedServer | None:
        return self if self._news.tuning is not None else None

    def first_slots(self, profile: Profile) -> int:
        return self._slots.first_slots

    def use(self, slots: int) -> None:
        if self._session is not None:
            self.slots = slots
            self._session.say(UseSlots(self.local_id, slots))

    def prefer(self, slots: Sequence[int]) -> None:
        self._preferred = tuple(slots)

    # --- commands ---------------------------------------------------------------------------------------------------

    async def load(self, profile: Profile) -> None:
        """As :meth:`obatchd.servers.server.Server.load`; also raises ServerError where the host is lost meanwhile."""
        afresh = self.loaded is None and self._news.loaded == profile  # dispatch does not believe it any more
        self.loaded, self.loading = None, profile
        prefer, self._preferred = self._preferred, ()
        try:
            await self._call("load", type(None), profile=profile, afresh=afresh, prefer=prefer)
        finally:
            self._mirror()
        if self.loaded != profile:
            words = f"host {self.host} says that {self.id} has loaded {profile}, and shows {self.loaded or 'nothing'}"
            raise ServerError(words, code="load_failed")

    async def unload(self) -> None:
        await self._call("unload", type(None))

    async def drain(self, reason: str) -> bool:
        return await self._call("drain", bool, reason=reason)

    async def restart(self, reason: str) -> None:
        await self._call("restart", type(None), reason=reason)

    async def try_again(self) -> None:
        if self._resuming is not None:
            await asyncio.wait([self._resuming])
        await self._call("try_again", type(None))

    def resume(self) -> None:
        """End a drain by an administrator; the host does so in a moment."""
        self._resuming = self._tasks.start(self._resume(), f"resume-{self.id}")

    async def _resume(self) -> None:
        try:
            await self._call("resume", type(None))
        except ServerError as error:
            _log.warning("resume_failed", server=self.id, host=self.host, reason=error.message)

    def task_failed(self, name: str, error: BaseException) -> None:
        """A resume failed by a defect, which is in the log; the state of the server shows it."""

    async def one_token(self, timeout_s: float) -> None:
        await self._call("one_token", type(None), timeout_s=timeout_s)

    async def fallen_back(self) -> str:
        return await self._call("fallen_back", str)

    def log(self, lines: int, *, follow: bool) -> AsyncGenerator[str, None]:
        """Its output, as the host has it."""
        return self._present().stream("servers.log", str, server=self.local_id, lines=lines, follow=follow)

    def _present(self) -> Session[ToHead]:
        if self._session is None:
            raise ServerError(self.in_words, code="not_ready")
        return self._session

    async def _call(self, name: str, kind: type[T], **arguments: Any) -> T:
        """Ask its host. Whatever goes wrong there is a ServerError or ModelError here, as dispatch expects it."""
        try:
            return await self._present().call(f"servers.{name}", kind, None, server=self.local_id, **arguments)
        except (ServerError, ModelError):
            raise
        except ObatchError as error:
            raise ServerError(error.message, code=error.code) from None

    # --- what the dispatcher tells ----------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @in_flight.setter
    def in_flight(self, count: int) -> None:
        self._in_flight = count
        if (count > 0) != self._busy_told and not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_soon(self._tell_busy)  # it changes often within one turn of the loop

    def _tell_busy(self) -> None:
        self._telling, busy = False, self._in_flight > 0
        if busy != self._busy_told and self._session is not None:
            self._busy_told = busy
            self._session.say(Busy(self.local_id, busy))

    def progress(self) -> None:
        now_s = time.monotonic()
        if self._session is not None and now_s - self._progress_s >= _PROGRESS_S:
            self._progress_s = now_s
            self._session.say(Progressed(self.local_id))

    def fault(self, reason: str) -> None:
        self._fault(reason, broken=False)

    def broken(self, reason: str) -> None:
        self._fault(reason, broken=True)

    def _fault(self, reason: str, *, broken: bool) -> None:
        if self._session is not None:
            self._session.say(Fault(self.local_id, reason, broken))
