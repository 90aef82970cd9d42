"""A matrix product on an NVIDIA GPU: multiplied by cuBLASLt, and compared with the first one by a kernel of ours."""

from __future__ import annotations

from ctypes import c_uint, c_ulonglong, c_void_p
from typing import Any, Protocol

import attrs

from obatchd.burnin.stress import cuda_driver as cuda
from obatchd.burnin.stress.cublaslt import WORKSPACE_BYTES, CublasLt, Plan
from obatchd.burnin.stress.cuda_driver import Driver
from obatchd.burnin.stress.device import TILES, WORD_BYTES, Products, WrongTile
from obatchd.errors import DeviceError

_POISON = 0xFFFFFFFF  # in place of a result: not a number, in each precision
# The bits of one half in each precision, and those of sign and significand (TF32 takes the upper 10 of FP32's).
_OPERANDS = {
    "FP32": (0x3F000000, 0x807FFFFF),
    "TF32": (0x3F000000, 0x807FFFFF),
    "FP16": (0x3800, 0x83FF),
    "BF16": (0x3F00, 0x807F),
    "FP8": (0x30, 0x87),
}


class Maker(Protocol):
    """The GPU, as a product uses it."""

    @property
    def driver(self) -> Driver: ...

    def launch(self, kernel: str, count: int, stream: c_void_p, *arguments: Any) -> None:
        """Queue a kernel over so many elements."""

    def read(self, buffer: Any, address: int, stream: c_void_p) -> None:
        """Copy memory of the GPU to ``buffer``, after what the stream has to do."""


@attrs.define(eq=False)
class CudaProduct:
    """A product, on a stream of its own, so that memory is worked on meanwhile."""

    _device: Maker
    _blas: CublasLt
    _plan: Plan
    _size: int
    first: str = attrs.field(default="", init=False)
    _memory: list[int] = attrs.field(factory=list, init=False)  # left, right, first, result, workspace, report
    _stream: c_void_p = attrs.field(init=False)
    _events: list[c_void_p] = attrs.field(init=False)
    _times: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        driver = self._device.driver
        self._stream = driver.handle("cuStreamCreate", cuda.NON_BLOCKING)
        self._events = [driver.handle("cuEventCreate", cuda.EVENT_BLOCKING_SYNC) for _ in range(2)]

    @property
    def operations(self) -> int:
        return 2 * self._size**3

    def prepare(self, precision: str, seed: int) -> None:
        """Take the memory, make the operands, and multiply for the first time."""
        kind, count = self._plan.kind, self._size**2
        sizes = [count * kind.operand_bytes] * 2 + [count * kind.result_bytes] * 2
        for size_bytes in (*sizes, WORKSPACE_BYTES, TILES**2 * 3 * WORD_BYTES):
            self._memory.append(self._device.driver.allocate(size_bytes))
        left, right, first, _, workspace, report = self._memory
        one_half, random_bits = map(c_uint, _OPERANDS[precision])
        for number, matrix in enumerate((left, right)):
            values = (c_ulonglong(matrix), c_ulonglong(count), c_ulonglong((seed + number * 2**32) % 2**64))
            kernel = f"operands{8 * kind.operand_bytes}"
            self._device.launch(kernel, count, self._stream, *values, one_half, random_bits)
        self._blas.multiply(self._plan, left, right, first, workspace, self._stream)
        self._device.driver.call("cuMemsetD32Async", report, 0, 2, self._stream)
        words = count * kind.result_bytes // 4
        self._device.launch("digest", words, self._stream, c_ulonglong(first), c_ulonglong(words), c_ulonglong(report))
        found = c_ulonglong()
        self._device.read(found, report, self._stream)
        self.first = f"{found.value:016x}"
        self._prove()

    def _prove(self) -> None:
        """See that a result which is wrong everywhere is found everywhere; raises DeviceError where not."""
        self._clear()
        self._compare()
        report = self._read_report()
        if sum(report[3 * tile] for tile in range(TILES**2)) != self._size**2 * self._plan.kind.result_bytes // 4:
            raise DeviceError("A wrong product is not found, so the card cannot be tested.", code="launch_failed")

    def _clear(self) -> None:
        """Forget what was found, and put what is wrong everywhere in place of the result: then no work is no result."""
        driver, words = self._device.driver, self._size**2 * self._plan.kind.result_bytes // 4
        driver.call("cuMemsetD32Async", self._memory[5], 0, TILES**2 * 3 * 2, self._stream)
        driver.call("cuMemsetD32Async", self._memory[3], _POISON, words, self._stream)

    def _compare(self) -> None:
        _, _, first, result, _, report = map(c_ulonglong, self._memory)
        row_words = self._size * self._plan.kind.result_bytes // 4
        shape = c_ulonglong(self._size), c_ulonglong(row_words), c_uint(TILES)
        self._device.launch("compare", self._size * row_words, self._stream, first, result, *shape, report)

    def _read_report(self) -> Any:
        report = (c_ulonglong * (TILES**2 * 3))()
        self._device.read(report, self._memory[5], self._stream)
        return report

    def start(self, times: int) -> None:
        left, right, _, result, workspace, _ = self._memory
        driver, self._times = self._device.driver, times
        self._clear()
        driver.call("cuEventRecord", self._events[0], self._stream)
        for _ in range(times):
            self._blas.multiply(self._plan, left, right, result, workspace, self._stream)
            self._compare()
        driver.call("cuEventRecord", self._events[1], self._stream)

    def finish(self, most: int) -> Products:
        self._device.driver.call("cuEventSynchronize", self._events[1])
        seconds = self._device.driver.elapsed_s(*self._events)
        report = self._read_report()
        wrong = [tile for tile in range(TILES**2) if report[3 * tile]]
        some = [self._wrong(tile, *(int(value) for value in report[3 * tile : 3 * tile + 3])) for tile in wrong[:most]]
        return Products(self._times * self.operations, seconds, len(wrong), some)

    def _wrong(self, tile: int, count: int, index: int, found: int) -> WrongTile:
        expected = c_uint()
        self._device.read(expected, self._memory[2] + 4 * index, self._stream)
        # cuBLAS keeps columns together: what the kernel takes for a row is a column of the matrix.
        return WrongTile(tile % TILES, tile // TILES, count, int(expected.value), found)

    def free(self) -> None:
        self._blas.free(self._plan)
        memory, self._memory = self._memory, []
        for address in memory:
            self._device.driver.call("cuMemFree", address)
        for event in self._events:
            self._device.driver.call("cuEventDestroy", event)
