"""The device that is loaded, as its loads see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from obatchd.burnin.stress.protocol import LinkKind

WORD_BYTES = 8
PRECISIONS = ("FP32", "TF32", "FP16", "BF16", "FP8")
TILES = 64  # of a result in each direction

PatternName = Literal["walking ones", "walking zeros", "address", "inverted address", "random"]


class Facts(msgspec.Struct, frozen=True):
    """Of a device that can be used."""

    library: str
    version: str
    name: str
    precisions: tuple[str, ...]
    total_bytes: int
    product_size: int  # of matrices that keep it busy
    block_bytes: int  # of memory in one call
    copy_bytes: int  # in one measurement of a link
    step_s: float = 0.5  # of products between two looks at what else is to be done


class Pattern(NamedTuple):
    """The 64-bit word at each address; ``number`` turns the walking bit, or is the seed.

    At address ``a``, which is that of the device, with ``i = a / 8``:
    walking ones ``1 << ((i + number) % 64)``, walking zeros its complement; address ``a``, inverted address its
    complement; random ``mix(i * 0x9E3779B97F4A7C15 + number)`` with the mixing function of SplitMix64 (Steele, Lea and
    Flood, "Fast splittable pseudorandom number generators", 2014).
    """

    name: PatternName
    number: int = 0

    @property
    def words(self) -> str:
        """For people."""
        return {"random": f"random, seed {self.number}"}.get(self.name, self.name)


class Mismatch(NamedTuple):
    """A word that is not as it was written."""

    offset_bytes: int
    expected: int
    found: int


class Mismatches(msgspec.Struct, frozen=True):
    """All are counted; the first few have their place."""

    count: int
    some: Sequence[Mismatch]


class WrongTile(NamedTuple):
    """A tile of a result that differs from the first one: ``wrong`` elements of it; the first of them as bits."""

    row: int
    column: int
    wrong: int
    expected: int
    found: int


class Products(NamedTuple):
    """Results of some products that were run and compared."""

    operations: int
    seconds: float  # that the device took for multiplying and comparing
    wrong_tiles: int  # all
    some: Sequence[WrongTile]  # some of them


class Block(Protocol):
    """Memory of the device."""

    @property
    def address(self) -> int:
        """Of its first word, on the device."""

    @property
    def size_bytes(self) -> int:
        """A multiple of ``WORD_BYTES``."""

    def free(self) -> None: ...


class Product(Protocol):
    """A matrix product, with operands that stay the same; its first result is kept, all others are compared with it."""

    @property
    def operations(self) -> int:
        """Of one product."""

    @property
    def first(self) -> str:
        """A short digest of the first result: devices of one kind with one library have the same."""

    def start(self, times: int) -> None:
        """Let the device multiply and compare so many times; returns before it is done where the device can do that."""

    def finish(self, most: int) -> Products:
        """Wait for what was started; at most so many wrong tiles are told."""

    def free(self) -> None: ...


class Device(Protocol):
    """One GPU, in a process of its own. Every call may block for ever, and raises DeviceError."""

    @property
    def facts(self) -> Facts: ...

    def free_bytes(self) -> int: ...

    def allocate(self, size_bytes: int) -> Block:
        """Memory of its own; raises DeviceError ``out_of_memory``."""

    def fill(self, block: Block, pattern: Pattern) -> None:
        """Write every word, and wait until it is done."""

    def check(self, block: Block, pattern: Pattern, most: int) -> Mismatches:
        """Read every word and compare it; at most so many mismatches are told."""

    def product_bytes(self, size: int, precision: str) -> int:
        """Memory that a product of ``size`` takes, at most."""

    def product(self, size: int, precision: str, seed: int) -> Product:
        """A product of two matrices of ``size`` × ``size``, a multiple of ``TILES``; multiplies once, for the first."""

    def copy_bytes_per_s(self, kind: LinkKind, size_bytes: int, peer: str = "") -> float:
        """The speed of one copy, of pinned memory where the other end is the host."""

    def peers(self) -> Sequence[str]:
        """UUIDs of the GPUs that can be reached without the host."""

    def close(self) -> None: ...


OpenDevice = Callable[[], Device]  # pickled for the process, which calls it
