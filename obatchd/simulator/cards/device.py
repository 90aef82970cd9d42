"""A stand-in GPU as its stress process sees it: real arithmetic and memory on a small scale, the pace of a real card.

A product of 64 × 64 stands for one of 8192 × 8192, the first words of a block for all of it. What the loads are told
about speed is that of the card, from a clock of its own that catches up with what the host was too slow for; so
stand-ins on a busy host are not slower than one another. Faults come from the timeline.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import attrs
import numpy

from obatchd.burnin.stress.cpu import FIRST_ADDRESS, CpuBlock, CpuDevice, Result
from obatchd.burnin.stress.device import TILES, WORD_BYTES, Facts, Mismatches, Pattern, Products
from obatchd.burnin.stress.device import Block as DeviceBlock
from obatchd.burnin.stress.device import Product as DeviceProduct
from obatchd.burnin.stress.protocol import LinkKind
from obatchd.errors import DeviceError
from obatchd.simulator.cards.load import StressReporter, present, server_file
from obatchd.simulator.gpus import MEMORY_BYTES, simulated_uuid
from obatchd.simulator.timeline import EventKind, GpuEvent, Timeline, pace

_BLOCK_BYTES = 4 * 1024**3
_RESERVED_BYTES = 512 * 1024**2  # by the driver
_SAMPLE_WORDS = 4096  # of each block, which are really there
_PRODUCT_SIZE = 8192
_OPERATIONS = 2 * _PRODUCT_SIZE**3
_OPERATIONS_PER_S = {"FP32": 50e12, "TF32": 400e12, "FP16": 800e12, "BF16": 800e12, "FP8": 1600e12}
_MEMORY_BYTES_PER_S = 40 * 1024**3  # slower than any card, so that a step takes a time that a clock can tell
_LINKS: dict[LinkKind, float] = {"to_host": 25e9, "from_host": 24e9, "to_peer": 300e9}  # bytes/s
_NOISE = 0.003
_COMPUTE_POWER, _MEMORY_POWER = 1.19, 0.8  # of that of a server whose slots are all busy
_STEP_S = 0.25
_LATEST_S = 1.0  # a card's clock falls no further behind
_EATEN_BYTES = 16 * 1024**2  # at each call
_HANG_S = 3600.0
_MOST_GPUS = 1000


@attrs.define(eq=False)
class _Engine:
    """A part of the card that does one thing after the other, at the card's pace."""

    _free_at_s: float = attrs.field(default=0.0, init=False)  # monotonic time

    def start(self, seconds: float) -> None:
        self._free_at_s = max(self._free_at_s, time.monotonic() - _LATEST_S) + seconds

    def wait(self) -> None:
        time.sleep(max(0.0, self._free_at_s - time.monotonic()))


@attrs.define(eq=False)
class _Faults:
    """Wrong results; a :class:`obatchd.burnin.stress.cpu.Disturbance`. Bits that are stuck need the whole block."""

    _active: Callable[[EventKind], list[GpuEvent]]
    _products: Iterator[int] = attrs.field(factory=partial(itertools.count, 1), init=False)

    def written(self, block: CpuBlock) -> None: ...

    def multiplied(self, result: Result, precision: str) -> None:
        number = next(self._products)
        for event in self._active("wrong_tile"):
            if number % event.every == 0:
                element = (number * 7) % result.shape[0], (number * 13) % result.shape[1]
                result.view(numpy.uint32)[element] ^= numpy.uint32(1 << event.bit)


@attrs.define(eq=False)
class SimulatedBlock:
    """Memory of a stand-in; the first words of it are real."""

    sample: CpuBlock
    size_bytes: int
    _device: SimulatedDevice

    @property
    def address(self) -> int:
        return self.sample.address

    def free(self) -> None:
        self.sample.free()
        self._device.give_back(self)


@attrs.define(eq=False)
class SimulatedProduct:
    """A small product that stands for large ones."""

    _small: DeviceProduct
    _seconds: float  # of one product, at full speed
    _device: SimulatedDevice
    _size_bytes: int
    _times: int = attrs.field(default=0, init=False)
    _taken_s: float = attrs.field(default=0.0, init=False)

    @property
    def operations(self) -> int:
        return _OPERATIONS

    @property
    def first(self) -> str:
        return self._small.first

    def start(self, times: int) -> None:
        self._device.strike()
        taken_s = times * self._seconds / self._device.pace
        self._times += times
        self._taken_s += taken_s
        self._device.compute.start(taken_s)

    def finish(self, most: int) -> Products:
        times, taken_s, self._times, self._taken_s = self._times, self._taken_s, 0, 0.0
        self._small.start(1 if times else 0)
        done = self._small.finish(most)
        self._device.compute.wait()
        return Products(times * _OPERATIONS, taken_s, done.wrong_tiles, done.some)

    def free(self) -> None:
        self._small.free()
        self._device.products -= 1
        self._device.hold(-self._size_bytes)


class SimulatedDevice:
    """Stand-in GPU ``index``; ``directory`` has its timeline and its load."""

    def __init__(self, directory: Path, index: int, peers: Sequence[str] = ()) -> None:
        self._peers = peers
        self._directory, self._index, self._uuid = directory, index, simulated_uuid(index)
        self._timeline = Timeline(directory, {})
        self._reporter = StressReporter(directory, self._uuid)
        self._cpu = CpuDevice(name="Simulated GPU 80GB", product_size=TILES, disturbance=_Faults(self._active))
        self._random = random.Random(index)
        self._held_bytes = 0
        self._blocks, self._address = 0, FIRST_ADDRESS
        self._eaten: list[object] = []
        self.compute, self.memory = _Engine(), _Engine()
        self.products = 0  # that are there, and computed again and again

    def _active(self, kind: EventKind) -> list[GpuEvent]:
        return self._timeline.active(self._index, kind)

    @property
    def pace(self) -> float:
        """The share of its speed that is left to it now."""
        return pace(self._timeline, self._index)

    @property
    def facts(self) -> Facts:
        facts = self._cpu.facts
        return Facts(
            facts.library, facts.version, facts.name, tuple(_OPERATIONS_PER_S), MEMORY_BYTES, _PRODUCT_SIZE,
            _BLOCK_BYTES, _BLOCK_BYTES, _STEP_S,
        )  # fmt: skip

    def free_bytes(self) -> int:
        server = present(server_file(self._directory, self._uuid))
        taken_bytes = server.vram_bytes if server and server.holder else 0
        return max(0, MEMORY_BYTES - _RESERVED_BYTES - taken_bytes - self._held_bytes)

    def hold(self, size_bytes: int) -> None:
        """Take so much memory, or give it back where it is less than nothing."""
        if size_bytes > self.free_bytes():
            raise DeviceError("No memory of the stand-in is free.", code="out_of_memory")
        self._held_bytes += size_bytes
        power = _COMPUTE_POWER if self.products else _MEMORY_POWER if self._held_bytes else 0.0
        self._reporter.tell(busy=power > 0, power=power, memory_bytes=self._held_bytes)

    def strike(self) -> None:
        """Let faults happen that meet the whole process; at every call into the device."""
        for event in self._active("eats_memory"):
            if len(self._eaten) * _EATEN_BYTES < (event.memory_bytes or 0):
                self._eaten.append(numpy.ones(_EATEN_BYTES // 8))
        if self._active("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._active("hang_kernel"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(_HANG_S)

    def allocate(self, size_bytes: int) -> DeviceBlock:
        self.strike()
        self.hold(size_bytes)
        sample = self._cpu.allocate(min(size_bytes, _SAMPLE_WORDS * WORD_BYTES))
        if not self._blocks:
            self._address = FIRST_ADDRESS
        self._blocks += 1
        sample.address, self._address = self._address, self._address + size_bytes
        return SimulatedBlock(sample, size_bytes, self)

    def give_back(self, block: SimulatedBlock) -> None:
        self._blocks -= 1
        self.hold(-block.size_bytes)

    def fill(self, block: DeviceBlock, pattern: Pattern) -> None:
        assert isinstance(block, SimulatedBlock)
        self._access(block.size_bytes)
        self._cpu.fill(block.sample, pattern)
        self._stick(block)

    def check(self, block: DeviceBlock, pattern: Pattern, most: int) -> Mismatches:
        assert isinstance(block, SimulatedBlock)
        self._access(block.size_bytes)
        return self._cpu.check(block.sample, pattern, most)

    def _access(self, size_bytes: int) -> None:
        self.strike()
        self.memory.start(size_bytes / _MEMORY_BYTES_PER_S / self.pace)
        self.memory.wait()

    def _stick(self, block: SimulatedBlock) -> None:
        for event in self._active("stuck_bit"):
            place_bytes = FIRST_ADDRESS + int(MEMORY_BYTES * event.place_percent / 100)
            if block.address <= place_bytes < block.address + block.size_bytes:
                word = (place_bytes - block.address) // WORD_BYTES % len(block.sample.words)
                block.sample.words[word] |= numpy.uint64(1 << event.bit)

    def product_bytes(self, size: int, precision: str) -> int:
        return 4 * 2 * size**2

    def product(self, size: int, precision: str, seed: int) -> DeviceProduct:
        self.strike()
        size_bytes = self.product_bytes(size, precision)
        self.products += 1
        self.hold(size_bytes)
        speed = _OPERATIONS_PER_S[precision] * self._about_one()
        return SimulatedProduct(self._cpu.product(TILES, precision, seed), _OPERATIONS / speed, self, size_bytes)

    def copy_bytes_per_s(self, kind: LinkKind, size_bytes: int, peer: str = "") -> float:
        """A link to a peer is slow for both of its ends."""
        self.strike()
        speed = _LINKS[kind] * self._about_one()
        other = next((index for index in range(_MOST_GPUS) if simulated_uuid(index) == peer), None)
        slow = [event for event in self._active("slow_link") if event.peer == other]
        if other is not None:
            slow += [event for event in self._timeline.active(other, "slow_link") if event.peer == self._index]
        return speed / math.prod(event.factor for event in slow)

    def _about_one(self) -> float:
        return self._random.gauss(1.0, _NOISE)

    def peers(self) -> Sequence[str]:
        return self._peers

    def close(self) -> None:
        self._held_bytes = self.products = 0
        self._reporter.tell(busy=False, power=0.0, memory_bytes=0)
