"""The CPU as a device: real arithmetic and real memory on numpy, with small sizes; for tests and stand-ins.

A :class:`Disturbance` may change what was written or multiplied, as a faulty card does. numpy belongs to the extras, so
that only what opens this device imports this module.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any, Protocol

import attrs
import numpy
from numpy.typing import NDArray

from obatchd.burnin.stress.device import (
    PRECISIONS,
    TILES,
    WORD_BYTES,
    Facts,
    Mismatch,
    Mismatches,
    Pattern,
    Products,
    WrongTile,
)
from obatchd.burnin.stress.device import Product as DeviceProduct
from obatchd.burnin.stress.protocol import LinkKind
from obatchd.errors import DeviceError
from obatchd.words import binary_size

Words = NDArray[numpy.uint64]
Result = NDArray[numpy.float32]
FIRST_ADDRESS = 0x7F0000000000  # as CUDA has them
_SIGNIFICANT_BITS = {"FP32": 24, "TF32": 11, "FP16": 11, "BF16": 8, "FP8": 4}  # E4M3
_GOLDEN = numpy.uint64(0x9E3779B97F4A7C15)
_FACTORS = (numpy.uint64(0xBF58476D1CE4E5B9), numpy.uint64(0x94D049BB133111EB))
_SHIFTS = (numpy.uint64(30), numpy.uint64(27), numpy.uint64(31))


class Disturbance(Protocol):
    """What makes this device faulty; it does nothing by itself."""

    def written(self, block: CpuBlock) -> None:
        """A block was filled; its words may be changed."""

    def multiplied(self, result: Result, precision: str) -> None:
        """A product was computed, and is compared next; not called for the first one."""


class _Healthy:
    def written(self, block: CpuBlock) -> None: ...
    def multiplied(self, result: Result, precision: str) -> None: ...


@attrs.define(eq=False)
class CpuBlock:
    """Words of memory."""

    address: int
    words: Words
    _device: CpuDevice

    @property
    def size_bytes(self) -> int:
        return int(self.words.nbytes)

    def free(self) -> None:
        self._device.give_back(self.size_bytes)
        self.words = numpy.empty(0, numpy.uint64)


@attrs.define(eq=False)
class CpuProduct:
    """A matrix product."""

    _left: Result
    _right: Result
    _precision: str
    _device: CpuDevice
    _reference: Result = attrs.field(init=False)
    _result: Result = attrs.field(init=False)
    _started: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._result = numpy.empty_like(self._left)
        numpy.matmul(self._left, self._right, out=self._result)
        self._reference = self._result.copy()

    @property
    def operations(self) -> int:
        return 2 * int(self._left.shape[0]) ** 3

    @property
    def first(self) -> str:
        return hashlib.blake2b(self._reference.tobytes(), digest_size=8).hexdigest()

    def start(self, times: int) -> None:
        self._started += times

    def finish(self, most: int) -> Products:
        times, self._started = self._started, 0
        began_s, some, count = time.perf_counter(), list[WrongTile](), 0
        for _ in range(times):
            numpy.matmul(self._left, self._right, out=self._result)
            self._device.disturbance.multiplied(self._result, self._precision)
            wrong = wrong_tiles(self._reference, self._result)
            count += len(wrong)
            some += wrong[: most - len(some)]
        self._device.rest(began_s)
        return Products(times * self.operations, time.perf_counter() - began_s, count, some)

    def free(self) -> None:
        self._device.give_back(4 * int(self._left.nbytes))


def wrong_tiles(reference: Result, result: Result) -> list[WrongTile]:
    """The tiles of a result whose bits are not those of the reference."""
    expected, found = reference.view(numpy.uint32), result.view(numpy.uint32)
    rows, columns = numpy.nonzero(expected != found)
    edge = expected.shape[0] // TILES
    tiles: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        tiles.setdefault((row // edge, column // edge), []).append((row, column))
    return [
        WrongTile(*tile, len(places), int(expected[places[0]]), int(found[places[0]])) for tile, places in tiles.items()
    ]


@attrs.define(eq=False)
class CpuDevice:
    """As much memory as it is given, and no peers."""

    _name: str = "CPU"
    _total_bytes: int = 64 * 2**20
    _block_bytes: int = 4 * 2**20
    _product_size: int = 2 * TILES
    _precisions: Sequence[str] = PRECISIONS
    _step_s: float = 0.1
    _share: float = 1.0  # of the processor: it sleeps for the rest of the time, as many stand-ins on one host have to
    disturbance: Disturbance = attrs.field(factory=_Healthy)
    _taken_bytes: int = attrs.field(default=0, init=False)
    _next_address: int = attrs.field(default=FIRST_ADDRESS, init=False)

    @property
    def facts(self) -> Facts:
        return Facts(
            library="numpy",
            version=numpy.__version__,
            name=self._name,
            precisions=tuple(self._precisions),
            total_bytes=self._total_bytes,
            product_size=self._product_size,
            block_bytes=self._block_bytes,
            copy_bytes=min(2**20, self._block_bytes),
            step_s=self._step_s,
        )

    def free_bytes(self) -> int:
        return self._total_bytes - self._taken_bytes

    def rest(self, since_s: float) -> None:
        """Sleep as long as its share of the processor wants it after work since ``time.perf_counter()`` was that."""
        if self._share < 1:
            time.sleep((time.perf_counter() - since_s) * (1 / self._share - 1))

    def give_back(self, size_bytes: int) -> None:
        self._taken_bytes -= size_bytes

    def _take(self, size_bytes: int) -> None:
        if size_bytes > self.free_bytes():
            raise DeviceError(f"{self._name} has no {binary_size(size_bytes)} of memory free.", code="out_of_memory")
        self._taken_bytes += size_bytes

    def allocate(self, size_bytes: int) -> CpuBlock:
        self._take(size_bytes)
        address, self._next_address = self._next_address, self._next_address + size_bytes
        return CpuBlock(address, numpy.zeros(size_bytes // WORD_BYTES, numpy.uint64), self)

    def fill(self, block: Any, pattern: Pattern) -> None:
        began_s = time.perf_counter()
        block.words[:] = words_of(pattern, block.address, len(block.words))
        self.disturbance.written(block)
        self.rest(began_s)

    def check(self, block: Any, pattern: Pattern, most: int) -> Mismatches:
        began_s = time.perf_counter()
        expected = words_of(pattern, block.address, len(block.words))
        (places,) = numpy.nonzero(block.words != expected)
        some = [
            Mismatch(place * WORD_BYTES, int(expected[place]), int(block.words[place]))
            for place in places[:most].tolist()
        ]
        self.rest(began_s)
        return Mismatches(len(places), some)

    def product_bytes(self, size: int, precision: str) -> int:
        return 4 * 4 * size**2

    def product(self, size: int, precision: str, seed: int) -> DeviceProduct:
        self._take(self.product_bytes(size, precision))
        random = numpy.random.default_rng(seed)
        bits = _SIGNIFICANT_BITS[precision]
        left, right = (rounded(random.uniform(-1, 1, (size, size)), bits) for _ in range(2))
        return CpuProduct(left, right, precision, self)

    def copy_bytes_per_s(self, kind: LinkKind, size_bytes: int, peer: str = "") -> float:
        if kind == "to_peer":
            raise DeviceError(f"{self._name} has no peers.", code="launch_failed")
        here = numpy.ones(size_bytes // WORD_BYTES, numpy.uint64)
        there = numpy.empty_like(here)
        began_s = time.perf_counter()
        numpy.copyto(there, here)
        return size_bytes / max(time.perf_counter() - began_s, 1e-9)

    def peers(self) -> Sequence[str]:
        return ()

    def close(self) -> None: ...


def open_device(total_bytes: int = 64 * 2**20, block_bytes: int = 4 * 2**20) -> CpuDevice:
    """A device that is healthy."""
    return CpuDevice(total_bytes=total_bytes, block_bytes=block_bytes)


def rounded(values: NDArray[numpy.float64], significant_bits: int) -> Result:
    """Values rounded to so many significant bits, the leading one counted."""
    fractions, exponents = numpy.frexp(values)
    scale = float(2**significant_bits)
    return numpy.ldexp(numpy.rint(fractions * scale) / scale, exponents).astype(numpy.float32)


def words_of(pattern: Pattern, address: int, count: int) -> Words:
    """The words of a pattern from an address on; the numbers of Pattern's docstring."""
    numbers = numpy.arange(count, dtype=numpy.uint64) + numpy.uint64(address // WORD_BYTES)
    match pattern.name:
        case "address":
            return numbers * numpy.uint64(WORD_BYTES)
        case "inverted address":
            return ~(numbers * numpy.uint64(WORD_BYTES))
        case "random":
            return _mixed(numbers * _GOLDEN + numpy.uint64(pattern.number % 2**64))
    ones = numpy.uint64(1) << ((numbers + numpy.uint64(pattern.number % 64)) % numpy.uint64(64))
    return ones if pattern.name == "walking ones" else ~ones


def _mixed(values: Words) -> Words:
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        values = (values ^ (values >> shift)) * factor
    return values ^ (values >> _SHIFTS[2])
