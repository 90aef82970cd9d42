"""A server that we start ourselves, on a GPU, a slice, a group of GPUs or the CPU."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

import obatchd.log
from obatchd.errors import ModelError, ServerError
from obatchd.gpus.model import Gpu
from obatchd.jobs.model import Profile, round_context
from obatchd.model_names import folded
from obatchd.ollama.api import LoadedModel
from obatchd.servers import environment
from obatchd.servers.cores import cpu_threads, usable_cores
from obatchd.servers.process import ServerProcess
from obatchd.servers.program import Program
from obatchd.servers.server import Server, ServerListener
from obatchd.servers.states import ServerState
from obatchd.servers.stores.known import LOCAL
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.words import counted

log = obatchd.log.get(__name__)

AUTO_SLOTS = 8  # of a GPU server; halved until a model is wholly in VRAM
CPU_SLOTS = 4  # a CPU gains nothing by more
_ANSWER_TIMEOUT_S = 2.0
_ASK_AGAIN_S = 0.05
_LOG_LAG_S = 2.0  # the log line that names the GPU is written before the server answers
_PS_TIMEOUT_S = 15.0


class FactStore(Protocol):
    """Strings kept across restarts of the daemon: ports, and the slots that fit; :class:`obatchd.jobs.store.Facts`."""

    def get(self, key: str) -> str | None: ...

    def set(self, key: str, value: str) -> None: ...


class Host(msgspec.Struct, frozen=True):
    """Shared by the managed servers of one daemon."""

    settings: Current[Settings]
    work: Path
    instance: str
    facts: FactStore
    listener: ServerListener
    base: Mapping[str, str]  # the daemon's own environment
    program: Program
    cpu_servers: int  # how many share the cores
    models_dir: Path  # their model store


class ManagedServer(Server):
    """One ``ollama serve`` of ours."""

    kind = "managed"

    def __init__(self, server_id: str, gpus: Sequence[Gpu], port: int, host: Host) -> None:
        super().__init__(server_id, "", host.settings, host.listener)
        self.gpus = tuple(gpus)
        self.gpu_label = ",".join(gpu.uuid for gpu in gpus) or "cpu"
        self.port = port
        self.base_url = self._url()
        self._host = host
        self._auto_slots = (AUTO_SLOTS if gpus else CPU_SLOTS) if self._settings.slots == "auto" else 0
        self.slots = self._auto_slots or int(self._settings.slots)
        self._parallel = self.slots  # the number given to the process; a model may allow it less
        self._preferred: Sequence[int] = ()  # slots for the next load, the first with which all fits
        self.fresh = True  # its process has loaded nothing yet
        self._served: Profile | None = None  # what that loaded last
        self.vram_bytes = 0  # of the loaded model; 0 where nobody tells
        self._threads = 0 if gpus else cpu_threads(usable_cores(), host.cpu_servers)  # the same for life: load_options
        self._proven: bool | None = None  # whether it is known to compute on its GPUs
        self._process = ServerProcess(server_id, self.log_file, self)

    def _url(self) -> str:
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._settings.listen, self._settings.listen)
        return f"http://[{address}]:{self.port}" if ":" in address else f"http://{address}:{self.port}"

    @property
    def store(self) -> str:
        return LOCAL

    @property
    def models_dir(self) -> Path:
        """The model store all managed servers share."""
        return self._host.models_dir

    @property
    def log_file(self) -> Path:
        """Its output; the part before is ``<name>.1`` beside it."""
        return self._host.work / "logs" / f"{self.id}.log"

    # --- process ----------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        command, variables = self._prepare()
        self.fresh, self._served = True, None
        await self._process.start(command, variables, self._host.work)
        self.pid = self._process.pid
        while True:
            if self._ending is not None and self._ending.done():
                raise ServerError(self._ending.result().reason)
            try:
                await self._check_version(_ANSWER_TIMEOUT_S)
                break
            except ServerError as error:
                if error.code not in ("server_unreachable", "timeout"):
                    raise
                await asyncio.sleep(_ASK_AGAIN_S)
        if self.gpus:
            self._proven = await self._process.sees([gpu.uuid for gpu in self.gpus], _LOG_LAG_S)
            if self._proven is False:
                raise ServerError(
                    f"{self.id} does not see GPU {self.gpu_label} and would compute on the CPU. Look at nvidia-smi and "
                    f"at logs/{self.id}.log in the work directory.",
                    code="cpu_fallback",
                )

    def _prepare(self) -> tuple[list[str], dict[str, str]]:
        host, settings = self._host, self._settings
        self._take_port()
        home = host.work / "home" / self.id
        home.mkdir(parents=True, exist_ok=True)
        launch = environment.Launch(
            server=self.id,
            instance=host.instance,
            host=settings.listen,
            port=self.port,
            slots=self._parallel,
            context_length=round_context(host.settings.value.context_length),
            home=home,
            models_dir=self.models_dir,
            gpus=self.gpus,
            own=host.program.environment(),
        )
        return host.program.command(), environment.build(host.base, settings, launch)

    def _take_port(self) -> None:
        """Make sure of a port: the configured one, else the one kept from last time, else a free one."""
        listen, base_port = self._settings.listen, self._settings.base_port
        if self.port and port_is_free(listen, self.port):
            return
        if base_port:
            raise ServerError(
                f"Port {self.port} at {listen} is in use by another process: stop that (ss -tlnp shows it), or set "
                "servers.base_port to other ports or to 0.",
                code="port_in_use",
            )
        self.port = free_port(listen)
        self._host.facts.set(f"port/{self.id}", str(self.port))
        self.base_url = self._url()

    def process_ended(self) -> None:
        """End the run with what the process said last."""
        code = self._process.returncode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
        said = self._process.log.last_words()
        quote = f'; it said: "{said}"' if said else ""
        self._end(f"its process {how}{quote}; more: obatchctl servers logs {self.id}", planned=False)

    async def _close(self) -> None:
        await self._process.stop(self._settings.stop_grace_s)
        self.pid = None

    # --- looking closer ---------------------------------------------------------------------------------------------

    @property
    def ended(self) -> Sequence[float]:
        return self._process.stopped

    @property
    def starting_runner(self) -> bool:
        since_s = self._process.loading_since_s
        return since_s is not None and time.monotonic() - since_s < self._settings.load_timeout_s

    @property
    def model_vram_bytes(self) -> int | None:
        return (self.vram_bytes or None) if self.gpus else 0

    async def fallen_back(self) -> str:
        found = await self._shown(self.loaded.model) if self.gpus and self.loaded else None
        if found is None or found.size_vram >= found.size:
            return ""
        return f"only {found.size_vram / 2**30:.1f} of {found.size / 2**30:.1f} GiB of the model are in VRAM"

    async def _shown(self, model: str) -> LoadedModel | None:
        models = await self.api.loaded(_PS_TIMEOUT_S)
        wanted = folded(model)
        return next((entry for entry in models if wanted in (folded(entry.name), folded(entry.model))), None)

    # --- profiles ---------------------------------------------------------------------------------------------------

    def load_options(self, profile: Profile) -> dict[str, Any]:
        return super().load_options(profile) | ({} if self.gpus else {"num_thread": self._threads})

    def _as_wanted(self, profile: Profile) -> bool:
        wanted = super()._as_wanted(profile) and (not self._preferred or self._preferred[0] == self._parallel)
        if wanted:
            self._preferred = ()
        return wanted

    async def _load(self, profile: Profile) -> None:
        again = self._served == profile and self.tuning is not None  # as by the watchdog: it keeps its slots
        slots, *others = self._preferred or (self._parallel if again else self.first_slots(profile),)
        first, self._preferred = slots, ()
        while reason := await self._try(profile, slots):
            if not self._auto_slots or (slots == 1 and not others):
                known = [gpu.memory_bytes for gpu in self.gpus if gpu.memory_bytes]
                memory = f"{sum(known) / 2**30:.0f} GiB" if known else "CPU"
                raise ModelError(
                    f"{profile.model} with a context of {profile.context_length} tokens and "
                    f"{counted(slots, 'slot')} does not fit {self.id} ({memory}): {reason} Use a smaller model, "
                    "quantization, context_length"
                    f"{'' if slots == 1 else ' or servers.slots'}, or a [[servers.group]] of GPUs.",
                    code="does_not_fit",
                )
            fewer = others.pop(0) if others else 1 << (slots - 1).bit_length() - 1  # the next power of two below
            log.info("slots_halved", server=self.id, model=profile.model, slots=fewer, reason=reason)
            slots = fewer
        self.slots = 1 if self._process.one_slot else slots
        self.fresh, self._served = False, profile
        if self._auto_slots and not self.foreign:  # slots that fit beside somebody else's process say nothing of later
            self._remember_fit(profile, slots, fell_back=slots != first)

    def _remember_fit(self, profile: Profile, slots: int, *, fell_back: bool) -> None:
        """Keep how many slots fit; a smaller number that was asked for is no news."""
        known = self._known_fit(profile)
        if fell_back or known is None or slots > known:
            self._host.facts.set(self._slots_key(profile), str(slots))

    # --- slots, chosen by :mod:`obatchd.dispatch.tuning` ------------------------------------------------------------

    @property
    def tuning(self) -> ManagedServer | None:
        return self if self._auto_slots and self._settings.tune else None

    @property
    def device(self) -> str:
        """What it computes on; the same for GPUs of one model."""
        return self.gpu.name if self.gpu else f"{len(self.gpus)} x {self.gpus[0].name}" if self.gpus else "cpu"

    @property
    def driver(self) -> str:
        return self.gpus[0].driver if self.gpus else ""

    @property
    def memory_bytes(self) -> int:
        """Of its GPUs in all; 0 where one is not known."""
        known = [gpu.memory_bytes or 0 for gpu in self.gpus]
        return sum(known) if all(known) else 0

    @property
    def process_slots(self) -> int:
        return self._parallel

    @property
    def beside_others(self) -> bool:
        return bool(self.foreign)

    def use(self, slots: int) -> None:
        self.slots = 1 if self._process.one_slot else max(1, min(slots, self._parallel))

    def prefer(self, slots: Sequence[int]) -> None:
        self._preferred = slots

    def _slots_key(self, profile: Profile) -> str:
        return f"slots/{self.device}/{profile.model}/{profile.context_length}"

    def _known_fit(self, profile: Profile) -> int | None:
        known = self._host.facts.get(self._slots_key(profile)) or ""
        return int(known) if known.isdecimal() and int(known) > 0 else None

    def first_slots(self, profile: Profile) -> int:
        """A number, or as many of 8, 4, 2 and 1 as fitted before."""
        if not self._auto_slots:
            return self._parallel
        return min(self._known_fit(profile) or self._auto_slots, self._auto_slots)

    async def _change_slots(self, slots: int) -> None:
        """Start the process again with other slots: Ollama takes them from its environment only."""
        self._parallel = self.slots = slots
        await self.restart(f"it is to have {counted(slots, 'slot')}")
        await self.until(set(ServerState) - {ServerState.STARTING, ServerState.STOPPING})
        if self.state not in (ServerState.READY, ServerState.DRAINING):
            raise ServerError(self.in_words, code="not_ready")

    async def _try(self, profile: Profile, slots: int) -> str:
        """Load once, with ``slots``. Empty when all is well, else why the profile does not fit."""
        if slots != self._parallel:
            await self._change_slots(slots)
        self._process.one_slot = False
        try:
            await super()._load(profile)
        except ModelError as error:
            if error.code != "does_not_fit":
                raise
            return error.message
        return await self._not_in_vram(profile) if self.gpus else ""

    async def _not_in_vram(self, profile: Profile) -> str:
        """Ollama puts layers that do not fit on the CPU without a word; only ``/api/ps`` shows it."""
        found = await self._shown(profile.model)
        if found is None:
            raise ServerError(f"{self.id} does not show {profile.model} after loading it.", code="load_failed")
        if found.size_vram >= found.size:
            self._proven = True
            self.vram_bytes = found.size_vram
            return ""
        if found.size_vram == 0 and not self._proven:
            self._end(f"computes on the CPU instead of GPU {self.gpu_label}", planned=False)
            raise ServerError(f"{self.id} computes on the CPU instead of its GPU.", code="cpu_fallback")
        await self.api.unload(profile.model, self._settings.load_timeout_s)
        return f"only {found.size_vram / 2**30:.1f} of {found.size / 2**30:.1f} GiB are in VRAM."


def _bind(address: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        return int(probe.getsockname()[1])


def port_is_free(address: str, port: int) -> bool:
    with contextlib.suppress(OSError):
        return _bind(address, port) == port
    return False


def free_port(address: str) -> int:
    """A port nobody has now; raises ServerError (``bad_address``) where this host does not have the address."""
    try:
        return _bind(address, 0)
    except OSError as error:
        raise ServerError(
            f"servers.listen = {address!r} cannot be used: {error.strerror}. Name an address of this host.",
            code="bad_address",
        ) from error
