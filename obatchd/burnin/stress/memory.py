"""The load ``memory``: patterns over nearly all memory that is free, written, and read back later.

One pattern is written over all of it before any of it is read back, so that what is read comes from the memory and not
from a cache, and has been there while the rest was written. Now and then nothing is done in between for some seconds:
the clocks fall, and cells have to hold what they have. With products at the same time it is read at the clocks of a
full load.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import attrs

from obatchd.burnin.stress.device import WORD_BYTES, Block, Device, Mismatch, Pattern
from obatchd.burnin.stress.telling import Meter, Teller
from obatchd.errors import DeviceError

PAUSE_EVERY_S, PAUSE_S = 75.0, 5.0  # an idle device in 6 % of the time still counts as busy
_WAIT_S = 0.5  # between two signs of life in a pause
_TOLD_WORDS = 16  # of a block
_ALIGNED_BYTES = 4096


def patterns(number: int, seed: int) -> Iterator[Pattern]:
    """One after the other; the walking bit has been at each place of every word after 64 numbers."""
    yield Pattern("random", seed + number)
    yield Pattern("walking ones", number)
    yield Pattern("address")
    yield Pattern("walking zeros", number)
    yield Pattern("inverted address")


@attrs.define(eq=False)
class Memory:
    """Blocks of the device, which are written and checked one after the other."""

    _device: Device
    _teller: Teller
    _wanted_bytes: int
    _seed: int
    meter: Meter = attrs.field(init=False)
    _blocks: list[Block] = attrs.field(factory=list, init=False)
    _paused_s: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.meter = Meter("memory", self._teller)
        self._paused_s = self._teller.clock.monotonic()

    def allocate(self) -> Iterator[None]:
        """Take the memory; as much as there is. Raises DeviceError ``out_of_memory`` where nothing can be had."""
        block_bytes = self._device.facts.block_bytes
        left_bytes = self._wanted_bytes
        while (size_bytes := -(-min(block_bytes, left_bytes) // _ALIGNED_BYTES) * _ALIGNED_BYTES) > 0:
            try:
                self._blocks.append(self._device.allocate(size_bytes))
            except DeviceError as error:
                if error.code != "out_of_memory":
                    raise
                if size_bytes <= _ALIGNED_BYTES:
                    break
                block_bytes = size_bytes // 2  # what is free may lie in pieces
                continue
            left_bytes -= size_bytes
            self.meter.tell_in_time()
            yield
        if not self._blocks:
            raise DeviceError("No memory of the device is free.", code="out_of_memory")

    def steps(self, alone: bool) -> Iterator[None]:
        """One block at a time, for ever."""
        for number in count():
            for pattern in patterns(number, self._seed):
                yield from self._write(pattern)
                if alone and self._teller.clock.monotonic() - self._paused_s >= PAUSE_EVERY_S:
                    yield from self._pause()
                yield from self._check(pattern)
                self.meter.passes += 1

    def free(self) -> None:
        """Free the memory of the device, and tell the last counts."""
        self.meter.tell()
        blocks, self._blocks = self._blocks, []
        for block in blocks:
            block.free()

    def _write(self, pattern: Pattern) -> Iterator[None]:
        for block in self._blocks:
            began_s = self._teller.clock.monotonic()
            self._device.fill(block, pattern)
            self.meter.accessing_s += self._teller.clock.monotonic() - began_s
            self.meter.bytes_written += block.size_bytes
            self.meter.tell_in_time()
            yield

    def _pause(self) -> Iterator[None]:
        until_s = self._teller.clock.monotonic() + PAUSE_S
        while (left_s := until_s - self._teller.clock.monotonic()) > 0:
            self._teller.clock.sleep(min(left_s, _WAIT_S))
            self.meter.tell_in_time()
            yield
        self._paused_s = self._teller.clock.monotonic()

    def _check(self, pattern: Pattern) -> Iterator[None]:
        checked_bytes = 0
        for block in self._blocks:
            began_s = self._teller.clock.monotonic()
            wrong = self._device.check(block, pattern, _TOLD_WORDS)
            self.meter.accessing_s += self._teller.clock.monotonic() - began_s
            self.meter.bytes_checked += block.size_bytes
            self.meter.wrong += wrong.count
            checked_bytes += block.size_bytes
            self.meter.covered_bytes = max(self.meter.covered_bytes, checked_bytes)
            for mismatch in wrong.some:
                self._tell(block, pattern, mismatch)
            self.meter.tell_in_time()
            yield

    def _tell(self, block: Block, pattern: Pattern, mismatch: Mismatch) -> None:
        differing = mismatch.expected ^ mismatch.found
        bits = [str(bit) for bit in range(8 * WORD_BYTES) if differing >> bit & 1]
        place = f"address 0x{block.address + mismatch.offset_bytes:x}, {'bits' if len(bits) > 1 else 'bit'} "
        place += ", ".join(bits) if len(bits) <= 8 else f"{', '.join(bits[:8])} and {len(bits) - 8} more"
        self._teller.wrong("memory", place, pattern.words, f"0x{mismatch.expected:016x}", f"0x{mismatch.found:016x}")
