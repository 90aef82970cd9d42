"""What the tuner needs of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from obatchd.jobs.model import Profile


class TunableServer(Protocol):
    """A server whose slots obatchd chooses; :class:`obatchd.servers.managed.ManagedServer`."""

    id: str
    version: str  # of Ollama
    slots: int  # that it uses of those of its process
    restarts: int  # runs that ended unasked

    @property
    def device(self) -> str:
        """What it computes on, the same for GPUs of one model: the name of the GPU, ``2 x`` that, or ``cpu``."""

    @property
    def driver(self) -> str:
        """The driver of its GPU; empty on the CPU."""

    @property
    def memory_bytes(self) -> int:
        """Of its GPUs in all; 0 where nobody knows it."""

    @property
    def vram_bytes(self) -> int:
        """What the loaded model takes of it; 0 where nobody tells."""

    @property
    def process_slots(self) -> int:
        """The number that its process was started with; a model may have fewer."""

    @property
    def fresh(self) -> bool:
        """Whether its process has loaded nothing yet, so that another one costs no load."""

    @property
    def beside_others(self) -> bool:
        """Whether other people's processes hold memory of its GPU: what fits beside them says nothing of later."""

    def first_slots(self, profile: Profile) -> int:
        """The slots for a profile that nothing was measured of."""

    def use(self, slots: int) -> None:
        """Use so many of the slots of its process from now on, until a load; a model may have fewer."""

    def prefer(self, slots: Sequence[int]) -> None:
        """Give the next load the first of these numbers of slots with which all fits."""


class FactStore(Protocol):
    """Strings kept across restarts of the daemon; :class:`obatchd.jobs.store.Facts`."""

    def get(self, key: str) -> str | None: ...
    def set(self, key: str, value: str) -> None: ...
    def starting_with(self, prefix: str) -> dict[str, str]: ...


class Digests(Protocol):
    """Knows the models in the stores; :class:`obatchd.daemon.served.ServedModels`."""

    def digest_on(self, server_id: str, model: str) -> str:
        """The digest of a model as a server has it; empty where it is not known."""


class InteractiveWork(Protocol):
    """Knows whether somebody waits for an answer; :class:`obatchd.dispatch.interactive.desk.Desk`."""

    def waits(self) -> bool:
        """Whether an interactive request waits for a slot: no server is restarted for its slots then."""


class Clock(Protocol):
    """Seconds; the module :mod:`time`, or that of a test."""

    def monotonic(self) -> float: ...
    def time(self) -> float: ...
