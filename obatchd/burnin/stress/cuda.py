"""One NVIDIA GPU as the device: products by cuBLASLt, everything else by our own kernels (kernels.cu).

cuBLAS documents (2.1.4, Results reproducibility) that a version of it gives bit-wise the same results in every run on
GPUs of one architecture with as many multiprocessors; with cublasLtMatmul and a workspace of the caller also while
other streams are busy. So results are compared bit by bit, and cards of one kind have the same first result.

A process has one GPU: CUDA is told by its UUID, before the driver is loaded, so that neither another card nor its fault
is seen. Only a process that measures links sees the peers, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence
from ctypes import c_uint, c_ulonglong, c_void_p
from pathlib import Path
from typing import Any

import attrs

from obatchd.burnin.stress import cublaslt
from obatchd.burnin.stress import cuda_driver as cuda
from obatchd.burnin.stress.cublaslt import WORKSPACE_BYTES, CublasLt
from obatchd.burnin.stress.cuda_driver import Driver
from obatchd.burnin.stress.cuda_product import CudaProduct
from obatchd.burnin.stress.device import (
    PRECISIONS,
    WORD_BYTES,
    Facts,
    Mismatch,
    Mismatches,
    Pattern,
)
from obatchd.burnin.stress.protocol import LinkKind
from obatchd.errors import DeviceError

KERNELS = ("fill", "check", "operands32", "operands16", "operands8", "compare", "digest")
KINDS = ("walking ones", "walking zeros", "address", "inverted address", "random")
_PCI_DEVICES = Path("/sys/bus/pci/devices")
_PTX = Path(__file__).with_name("kernels.ptx")
_THREADS, _BLOCKS_EACH = 256, 16  # of a block; blocks for each multiprocessor
_MOST = 1024  # mismatches that a check can tell
_BLOCKS = 16  # of all memory: each takes a kernel some milliseconds, beside which starting it is nothing
_PROOF_BYTES = 2**20
_COPY_BYTES = 256 * 2**20
_SIZES = ((16 * 2**30, 8192), (2 * 2**30, 4096), (0, 2048))  # of products, by the memory of the card


@attrs.define(eq=False)
class CudaBlock:
    """Memory of the GPU."""

    address: int
    size_bytes: int
    _device: CudaDevice

    def free(self) -> None:
        self._device.driver.call("cuMemFree", self.address)


@attrs.define(eq=False)
class CudaDevice:
    """The GPU of the current context."""

    driver: Driver
    _blas: CublasLt
    _number: int  # of the GPU, among those that are visible
    _context: c_void_p
    _peers: Sequence[str]  # UUIDs, in the order of their numbers from 1 on
    _multiprocessors: int = attrs.field(init=False)
    _capability: int = attrs.field(init=False)
    _kernels: dict[str, c_void_p] = attrs.field(init=False)
    stream: c_void_p = attrs.field(init=False)
    _report: int = attrs.field(init=False)
    _facts: Facts | None = attrs.field(default=None, init=False)
    _others: dict[int, c_void_p] = attrs.field(factory=dict, init=False)  # contexts of peers, by number

    def __attrs_post_init__(self) -> None:
        driver = self.driver
        self._multiprocessors = driver.number("cuDeviceGetAttribute", cuda.MULTIPROCESSORS, self._number)
        self._capability = capability(driver, self._number)
        module = driver.handle("cuModuleLoadData", _PTX.read_bytes())
        self._kernels = {name: driver.handle("cuModuleGetFunction", module, name.encode()) for name in KERNELS}
        self.stream = driver.handle("cuStreamCreate", cuda.NON_BLOCKING)
        self._report = driver.allocate((1 + 2 * _MOST) * WORD_BYTES)
        self._prove()

    @property
    def facts(self) -> Facts:
        if self._facts is None:
            name = ctypes.create_string_buffer(256)
            self.driver.call("cuDeviceGetName", name, 256, self._number)
            _, total_bytes = self.driver.memory()
            self._facts = Facts(
                library="cuBLAS",
                version=self._blas.version,
                name=name.value.decode("utf-8", "replace"),
                precisions=tuple(filter(self._has, PRECISIONS)),
                total_bytes=total_bytes,
                product_size=next(size for least_bytes, size in _SIZES if total_bytes >= least_bytes),
                block_bytes=max(total_bytes // _BLOCKS // 2**20, 1) * 2**20,
                copy_bytes=min(_COPY_BYTES, total_bytes // 8),
            )
        return self._facts

    def _prove(self) -> None:
        """See that a wrong word is found; raises DeviceError where not: nothing that follows would mean anything."""
        block, pattern, offset = self.allocate(_PROOF_BYTES), Pattern("random", 1), _PROOF_BYTES // 2
        self.fill(block, pattern)
        self.driver.call("cuMemsetD32Async", block.address + offset, 0, 1, self.stream)
        wrong = self.check(block, pattern, _MOST)
        block.free()
        if wrong.count < _MOST and offset not in (word.offset_bytes for word in wrong.some):  # there may be more
            raise DeviceError(
                "A word that was changed is not found, so the card cannot be tested.", code="launch_failed"
            )

    def _has(self, precision: str) -> bool:
        if self._capability < cublaslt.KINDS[precision].capability:
            return False
        plan = self._blas.plan(precision, _SIZES[-1][1])
        if plan is not None:
            self._blas.free(plan)
        return plan is not None

    def free_bytes(self) -> int:
        return self.driver.memory()[0]

    def allocate(self, size_bytes: int) -> CudaBlock:
        return CudaBlock(self.driver.allocate(size_bytes), size_bytes, self)

    def fill(self, block: Any, pattern: Pattern) -> None:
        self.launch("fill", block.size_bytes // WORD_BYTES, self.stream, *_described(block, pattern))
        self.wait()

    def check(self, block: Any, pattern: Pattern, most: int) -> Mismatches:
        most = min(most, _MOST)
        report = (c_ulonglong * (1 + 2 * most))()
        self.driver.call("cuMemsetD32Async", self._report, 0, 2, self.stream)
        arguments = (*_described(block, pattern), c_ulonglong(self._report), c_ulonglong(most))
        self.launch("check", block.size_bytes // WORD_BYTES, self.stream, *arguments)
        self.read(report, self._report, self.stream)
        found = ((int(report[1 + 2 * i]), int(report[2 + 2 * i])) for i in range(min(int(report[0]), most)))
        some = [
            Mismatch(index * WORD_BYTES, word_at(pattern, block.address // WORD_BYTES + index), word)
            for index, word in found
        ]
        return Mismatches(int(report[0]), some)

    def product_bytes(self, size: int, precision: str) -> int:
        kind = cublaslt.KINDS[precision]
        return 2 * (kind.operand_bytes + kind.result_bytes) * size**2 + WORKSPACE_BYTES + 2**20

    def product(self, size: int, precision: str, seed: int) -> CudaProduct:
        plan = self._blas.plan(precision, size)
        if plan is None:
            raise DeviceError(f"cuBLAS has no product of {precision} for this card.", code="no_precision")
        product = CudaProduct(self, self._blas, plan, size)
        try:
            product.prepare(precision, seed)
        except DeviceError:
            product.free()
            raise
        return product

    def copy_bytes_per_s(self, kind: LinkKind, size_bytes: int, peer: str = "") -> float:
        here = self.driver.allocate(size_bytes)
        try:
            if kind == "to_peer":
                return size_bytes / self._to_peer_s(here, size_bytes, 1 + self._peers.index(peer))
            there = self.driver.handle("cuMemHostAlloc", size_bytes, 0)
            try:
                if kind == "to_host":
                    return size_bytes / self._timed_s("cuMemcpyDtoHAsync", there, here, size_bytes)
                return size_bytes / self._timed_s("cuMemcpyHtoDAsync", here, there, size_bytes)
            finally:
                self.driver.call("cuMemFreeHost", there)
        finally:
            self.driver.call("cuMemFree", here)

    def peers(self) -> Sequence[str]:
        return [
            uuid
            for number, uuid in enumerate(self._peers, 1)
            if self.driver.number("cuDeviceCanAccessPeer", self._number, number)
        ]

    def close(self) -> None:
        for number in self._others:
            self.driver.call("cuDevicePrimaryCtxRelease", number)
        self.driver.call("cuDevicePrimaryCtxRelease", self._number)

    # For blocks and products.

    def launch(self, kernel: str, count: int, stream: c_void_p, *arguments: Any) -> None:
        """Queue a kernel over so many elements."""
        blocks = min(-(-count // _THREADS), self._multiprocessors * _BLOCKS_EACH)
        self.driver.launch(self._kernels[kernel], blocks, _THREADS, stream, *arguments)

    def wait(self) -> None:
        self.driver.call("cuStreamSynchronize", self.stream)

    def read(self, buffer: Any, address: int, stream: c_void_p) -> None:
        """Copy memory of the GPU to ``buffer``, after what the stream has to do."""
        self.driver.call("cuMemcpyDtoHAsync", ctypes.byref(buffer), address, ctypes.sizeof(buffer), stream)
        self.driver.call("cuStreamSynchronize", stream)

    def _timed_s(self, copy: str, *arguments: Any) -> float:
        begin, end = (self.driver.handle("cuEventCreate", cuda.EVENT_BLOCKING_SYNC) for _ in range(2))
        self.driver.call("cuEventRecord", begin, self.stream)
        self.driver.call(copy, *arguments, self.stream)
        self.driver.call("cuEventRecord", end, self.stream)
        self.wait()
        seconds = self.driver.elapsed_s(begin, end)
        for event in (begin, end):
            self.driver.call("cuEventDestroy", event)
        return max(seconds, 1e-9)

    def _to_peer_s(self, here: int, size_bytes: int, number: int) -> float:
        """To memory of the other GPU, in its own context, which takes a second to make and lasts to the end."""
        if (other := self._others.get(number)) is None:
            other = self._others[number] = self.driver.handle("cuDevicePrimaryCtxRetain", number)
            self.driver.call("cuCtxEnablePeerAccess", other, 0)
        self.driver.call("cuCtxSetCurrent", other)
        try:
            there = self.driver.allocate(size_bytes)
            try:
                self.driver.call("cuCtxSetCurrent", self._context)
                return self._timed_s("cuMemcpyPeerAsync", there, other, here, self._context, size_bytes)
            finally:
                self.driver.call("cuCtxSetCurrent", other)
                self.driver.call("cuMemFree", there)
        finally:
            self.driver.call("cuCtxSetCurrent", self._context)


def open_device(uuid: str, peers: Sequence[str] = (), directories: Sequence[str] = ()) -> CudaDevice:
    """The GPU or slice with this UUID, as nvidia-smi -L has it; ``directories`` of Ollama may hold cuBLAS.

    With ``peers`` these are seen, too, and a fault of theirs may hit this process: for measuring links only. Raises
    DeviceError.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join((uuid, *peers))
    os.environ["CUDA_MODULE_LOADING"] = "LAZY"  # cuBLAS has hundreds of megabytes of code, most of it for other cards
    driver = Driver()
    driver.call("cuInit", 0)
    if not driver.number("cuDeviceGetCount"):
        raise DeviceError(f"The NVIDIA driver does not show {uuid} to programs that compute.", code="no_device")
    number = driver.number("cuDeviceGet", 0)
    found = ctypes.create_string_buffer(16)
    driver.call("cuDeviceGetUuid", found, number)
    if uuid.startswith("GPU-") and uuid[4:].replace("-", "").lower() != found.raw.hex():
        raise DeviceError(f"The NVIDIA driver shows another GPU in place of {uuid}.", code="no_device")
    _stay_near(driver, number)
    version = driver.number("cuDriverGetVersion")
    library = cublaslt.find(directories, version, capability(driver, number))
    driver.call("cuDevicePrimaryCtxSetFlags", number, cuda.BLOCKING_SYNC)
    context = driver.handle("cuDevicePrimaryCtxRetain", number)
    driver.call("cuCtxSetCurrent", context)
    return CudaDevice(driver, CublasLt(library), number, context, peers)


def capability(driver: Driver, number: int) -> int:
    """The compute capability: 89 is 8.9."""
    major, minor = (driver.number("cuDeviceGetAttribute", part, number) for part in (cuda.MAJOR, cuda.MINOR))
    return 10 * major + minor


def _stay_near(driver: Driver, number: int) -> None:
    """Let this thread run on the cores of the card's own socket, where its pinned memory then lies, too.

    Across sockets copies are slower, so that cards would differ by where the kernel happened to start their processes.
    """
    bus = ctypes.create_string_buffer(32)
    driver.call("cuDeviceGetPCIBusId", bus, 32, number)
    with contextlib.suppress(OSError, ValueError):
        text = (_PCI_DEVICES / bus.value.decode("ascii").lower() / "local_cpulist").read_text("ascii")
        if cores := listed(text) & os.sched_getaffinity(0):
            os.sched_setaffinity(0, cores)


def listed(text: str) -> set[int]:
    """Numbers in the kernel's form of lists: ``0-3,8``. Raises ValueError for anything else."""
    parts = (part.partition("-") for part in text.strip().split(",") if part)
    return {number for first, _, last in parts for number in range(int(first), int(last or first) + 1)}


def word_at(pattern: Pattern, index: int) -> int:
    """The word of a pattern at an address divided by 8; as the kernels have it."""
    most = 2**64 - 1
    match pattern.name:
        case "walking ones":
            return 1 << (index + pattern.number) % 64
        case "walking zeros":
            return most ^ 1 << (index + pattern.number) % 64
        case "address":
            return index * WORD_BYTES
        case "inverted address":
            return most ^ index * WORD_BYTES
    value = (index * 0x9E3779B97F4A7C15 + pattern.number) & most
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & most
    value = (value ^ value >> 27) * 0x94D049BB133111EB & most
    return value ^ value >> 31


def _described(block: Any, pattern: Pattern) -> tuple[Any, ...]:
    """The first parameters of the kernels for memory."""
    count, number = block.size_bytes // WORD_BYTES, pattern.number % 2**64
    return c_ulonglong(block.address), c_ulonglong(count), c_uint(KINDS.index(pattern.name)), c_ulonglong(number)
