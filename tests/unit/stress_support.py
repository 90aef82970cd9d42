"""Stress processes that live in memory: they say what a real one says, and misbehave as one can."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from obatchd.burnin.stress.parent import Gone
from obatchd.burnin.stress.protocol import (
    Bandwidth,
    Begin,
    End,
    Ended,
    FromProcess,
    Leave,
    Load,
    Opened,
    ToProcess,
    Trouble,
    Work,
    Wrong,
)

GIB = 2**30
WORK_S = 0.02  # between two frames; stands for 2 s


@dataclass
class Card:
    """One GPU as its stress processes find it."""

    uuid: str
    gone: Gone | None = None  # how the process ends, once it works
    trouble: Trouble | None = None  # said in place of work
    wrong: Wrong | None = None
    free_bytes: int = 70 * GIB
    memory_percent: float = 0.0  # that it was told to take
    link_bytes_per_s: float = 50e9
    begun: list[tuple[Load, ...]] = field(default_factory=list)  # the commands it got
    processes: list[MemoryStress] = field(default_factory=list)


class MemoryStress:
    """One process of a card."""

    def __init__(self, card: Card, peers: Sequence[str]) -> None:
        card.processes.append(self)
        self.gone: Gone | None = None
        self._card = card
        self._peers = peers
        self._frames: asyncio.Queue[FromProcess | None] = asyncio.Queue()
        self._loads: list[Load] = []
        self._working: asyncio.Task[None] | None = None

    def start(self) -> None:
        card = self._card
        self._say(Opened("cuBLAS", "12.8", card.uuid, ["FP16"], card.free_bytes, card.free_bytes))

    def send(self, message: ToProcess) -> bool:
        if self.gone is not None:
            return False
        self._rest()
        match message:
            case Begin(loads, memory_percent):
                self._card.memory_percent = memory_percent or self._card.memory_percent
                self._card.begun.append(tuple(loads))
                self._loads = list(loads)
                self._working = asyncio.create_task(self._work())
            case End() | Leave():
                pass
        return True

    async def frames(self) -> AsyncIterator[FromProcess]:
        while (frame := await self._frames.get()) is not None:
            yield frame

    async def end(self) -> Gone:
        self._rest()
        return self._go(Gone("left", "was told to leave"))

    def _go(self, gone: Gone) -> Gone:
        if self.gone is None:
            self.gone = gone
            self._say(None)
        return self.gone

    def _say(self, frame: FromProcess | None) -> None:
        self._frames.put_nowait(frame)

    def _rest(self) -> None:
        if self._working is not None:
            self._working.cancel()
            self._working = None
        for load in self._loads:
            self._say(Ended(load))
        self._loads = []

    async def _work(self) -> None:
        if self._loads == ["links"]:
            for kind in ("to_host", "from_host"):
                self._say(Bandwidth(time.time(), kind, "", self._card.link_bytes_per_s))
            for peer in self._peers:
                self._say(Bandwidth(time.time(), "to_peer", peer, 300e9))
            self._rest()
            return
        while True:
            await asyncio.sleep(WORK_S)
            if self._card.trouble is not None:
                self._loads = []
                self._say(self._card.trouble)
                return
            for load in list(self._loads):
                self._tell(load)
            if self._card.gone is not None:
                self._loads = []
                self._go(self._card.gone)
                return

    def _tell(self, load: Load) -> None:
        now_s, card = time.time(), self._card
        wrong = int(card.wrong is not None and card.wrong.load == load)
        if wrong and card.wrong is not None:
            self._say(card.wrong)
        if load == "compute":
            self._say(
                Work(at_s=now_s, load=load, span_s=2, precision="FP16", operations=10**12, operating_s=2, wrong=wrong)
            )
        else:
            covered = int(0.96 * card.free_bytes)
            self._say(Work(
                at_s=now_s, load=load, span_s=2, bytes_written=covered, bytes_checked=covered, accessing_s=2,
                covered_bytes=covered, free_bytes=card.free_bytes, passes=1, wrong=wrong,
            ))  # fmt: skip
