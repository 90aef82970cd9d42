"""The load ``compute``: matrix products in each precision in turn, every result compared with the first one."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from obatchd.burnin.stress.device import TILES, Device, Product, WrongTile
from obatchd.burnin.stress.telling import Meter, Teller

TURN_S = 10.0  # of one precision
_MOST_TIMES = 100_000
_SIZE_OF_FIRST = 2048  # of the product whose digest is told: the size of others depends on the memory that is free
_TOLD_TILES = 16  # of one step


@attrs.define(eq=False)
class Compute:
    """One precision after another."""

    _device: Device
    _teller: Teller
    _precisions: Sequence[str]
    _seed: int
    _size: int
    meter: Meter = attrs.field(init=False)
    _turn: int = attrs.field(default=-1, init=False)
    _turn_since_s: float = attrs.field(default=0.0, init=False)
    _product: Product | None = attrs.field(default=None, init=False)
    _times: int = attrs.field(default=1, init=False)
    _firsts: dict[str, str] = attrs.field(factory=dict, init=False)  # by precision, of its first turn

    def __attrs_post_init__(self) -> None:
        self.meter = Meter("compute", self._teller)

    @property
    def most_bytes(self) -> int:
        """Memory that any of the products takes."""
        return max(self._device.product_bytes(self._size, precision) for precision in self._precisions)

    def start(self) -> None:
        """Let the device begin with products for about a step."""
        now_s = self._teller.clock.monotonic()
        if self._product is None or (len(self._precisions) > 1 and now_s - self._turn_since_s >= TURN_S):
            self._next_turn()
            self._turn_since_s = now_s
        assert self._product is not None
        self._product.start(self._times)

    def finish(self) -> None:
        """Wait for them, and count."""
        assert self._product is not None
        done = self._product.finish(_TOLD_TILES)
        self.meter.operations += done.operations
        self.meter.operating_s += done.seconds
        self.meter.wrong += done.wrong_tiles
        for tile in done.some:
            self._tell(tile)
        once_s = done.seconds / max(self._times, 1)
        fitting = int(self._device.facts.step_s / once_s) if once_s > 0 else _MOST_TIMES
        self._times = max(1, min(fitting, 4 * self._times, _MOST_TIMES))
        self.meter.tell_in_time()

    def free(self) -> None:
        """Free the memory of the device, and tell the last counts."""
        if self._product is not None:
            self.meter.tell()
            product, self._product = self._product, None
            product.free()

    def _next_turn(self) -> None:
        self.free()
        self._turn = (self._turn + 1) % len(self._precisions)
        precision = self._precisions[self._turn]
        self._product = self._device.product(self._size, precision, self._seed)
        self._times, self.meter.precision, self.meter.first = 1, precision, self._first(precision)
        before = self._firsts.setdefault(precision, self._product.first)
        if before != self._product.first:  # the same products, with operands made anew
            self.meter.wrong += 1
            place = f"first result of a turn, {precision}"
            self._teller.wrong("compute", place, "differs from the first turn", before, self._product.first)

    def _first(self, precision: str) -> str:
        """The digest of a product that is the same on all cards of one kind; empty where there is no room for it."""
        assert self._product is not None
        size = min(_SIZE_OF_FIRST, self._device.facts.product_size)
        if self._size <= size:
            return self._product.first if self._size == size else ""
        product = self._device.product(size, precision, self._seed)
        product.free()
        return product.first

    def _tell(self, tile: WrongTile) -> None:
        precision = self.meter.precision
        place = f"tile {tile.row},{tile.column} of {TILES}×{TILES}, {precision}"
        expected, found = (f"0x{bits:x}" for bits in (tile.expected, tile.found))
        self._teller.wrong("compute", place, "differs from the first result", expected, found)


def fitting_size(device: Device, precisions: Sequence[str], most_bytes: float) -> int:
    """The size of products that keep the device busy, smaller where their memory were more than ``most_bytes``."""
    size = device.facts.product_size
    while size > TILES and max(device.product_bytes(size, precision) for precision in precisions) > most_bytes:
        size //= 2
    return size
