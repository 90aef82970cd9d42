"""The memory that the protocol of claim needs across a crash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec


class Intent(msgspec.Struct, frozen=True):
    """One drop about to be claimed: enough to find it again wherever a crash left it."""

    job: str
    name: bytes  # in the inbox, as the file system has it
    owner: int  # uid
    device: int
    inode: int
    size: int  # bytes
    kind: str  # file or folder
    at_s: float  # wall clock


class Ledger(Protocol):
    """Durable memory of the protocol; every call is one flushed transaction."""

    def add_intents(self, intents: Sequence[Intent]) -> None:
        """These drops are about to be renamed into work."""

    def forget(self, jobs: Sequence[str]) -> None:
        """These intents came to nothing."""

    def accept(self, intents: Sequence[Intent]) -> None:
        """These drops are jobs now; their intents are over."""

    def intents(self) -> list[Intent]:
        """Intents neither accepted nor forgotten."""
        ...

    def jobs(self) -> set[str]:
        """Ids of all jobs ever accepted and not forgotten."""
        ...
