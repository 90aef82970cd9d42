"""The stress process and its loads, on the CPU."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import TypeVar

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obatchd.burnin.stress import process
from obatchd.burnin.stress.compute import TURN_S, Compute, fitting_size
from obatchd.burnin.stress.cpu import FIRST_ADDRESS, CpuBlock, CpuDevice, Result, rounded, words_of
from obatchd.burnin.stress.device import PRECISIONS, TILES, WORD_BYTES, Pattern
from obatchd.burnin.stress.memory import PAUSE_EVERY_S, PAUSE_S, Memory, patterns
from obatchd.burnin.stress.protocol import (
    WORK_EVERY_S,
    WRONG_A_MINUTE,
    Bandwidth,
    Begin,
    End,
    Ended,
    FromProcess,
    Leave,
    ToProcess,
    Trouble,
    Work,
    Wrong,
)
from obatchd.burnin.stress.telling import Teller
from obatchd.errors import DeviceError

BLOCK_BYTES = 8192
Frame = TypeVar("Frame", bound=FromProcess)


class Clock:
    """Goes on by a tenth of a second whenever it is asked."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.slept_s = 0.0

    def time(self) -> float:
        return self.monotonic()

    def monotonic(self) -> float:
        self.now_s += 0.1
        return self.now_s

    def sleep(self, seconds: float, /) -> None:
        self.now_s += seconds
        self.slept_s += seconds


class Faulty:
    """Changes one word of memory after each write, and one element of each result."""

    def __init__(self) -> None:
        self.word: tuple[int, int] | None = None  # address, and the bits that are turned
        self.element: tuple[int, int, int] | None = None  # row, column, and the bits that are turned
        self.stuck: tuple[int, int] | None = None  # address, and the bits that are always 1

    def written(self, block: CpuBlock) -> None:
        for fault in (self.word, self.stuck):
            if fault is None or not 0 <= fault[0] - block.address < block.size_bytes:
                continue
            place = (fault[0] - block.address) // WORD_BYTES
            bits = numpy.uint64(fault[1])
            block.words[place] = block.words[place] ^ bits if fault is self.word else block.words[place] | bits

    def multiplied(self, result: Result, precision: str) -> None:
        if self.element is not None:
            row, column, bits = self.element
            result.view(numpy.uint32)[row, column] ^= numpy.uint32(bits)


class Rig:
    """Loads on a small device, and what they tell."""

    def __init__(self, total_bytes: int = 16 * BLOCK_BYTES, block_bytes: int = BLOCK_BYTES) -> None:
        self.said: list[FromProcess] = []
        self.clock = Clock()
        self.faulty = Faulty()
        self.teller = Teller(self.said.append, self.clock)
        self.device = CpuDevice(
            total_bytes=total_bytes,
            block_bytes=block_bytes,
            product_size=TILES,
            step_s=0.002,
            disturbance=self.faulty,
        )

    def told(self, kind: type[Frame]) -> list[Frame]:
        return [frame for frame in self.said if isinstance(frame, kind)]

    def memory(self, wanted_bytes: int = 4 * BLOCK_BYTES, seed: int = 1) -> Memory:
        memory = Memory(self.device, self.teller, wanted_bytes, seed)
        for _ in memory.allocate():
            pass
        return memory

    def compute(self, *precisions: str, size: int = TILES) -> Compute:
        return Compute(self.device, self.teller, precisions or PRECISIONS, 1, size)

    def served(self, *commands: ToProcess) -> list[FromProcess]:
        waiting: queue.SimpleQueue[ToProcess] = queue.SimpleQueue()
        for command in commands:
            waiting.put(command)
        process.serve(process.Stress(self.device, self.teller), waiting)
        return self.said


def go_on(steps: Iterator[None], times: int) -> None:
    for _ in range(times):
        next(steps)


def one_pass(memory: Memory) -> None:
    steps = memory.steps(alone=False)
    while not memory.meter.passes:
        next(steps)


# Memory.


@given(number=st.integers(0, 130), seed=st.integers(0, 2**70), first=st.integers(0, 2**40))
def test_patterns_are_what_their_description_says(number: int, seed: int, first: int) -> None:
    address = FIRST_ADDRESS + first * WORD_BYTES
    for pattern in patterns(number, seed):
        for place, word in enumerate(words_of(pattern, address, 4).tolist()):
            assert word == described(pattern, address + place * WORD_BYTES)


def described(pattern: Pattern, address: int) -> int:
    most = 2**64 - 1
    index = address // WORD_BYTES
    match pattern.name:
        case "walking ones":
            return 1 << (index + pattern.number) % 64
        case "walking zeros":
            return most ^ 1 << (index + pattern.number) % 64
        case "address":
            return address
        case "inverted address":
            return most ^ address
    value = (index * 0x9E3779B97F4A7C15 + pattern.number) & most
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & most
    value = (value ^ value >> 27) * 0x94D049BB133111EB & most
    return value ^ value >> 31


def test_every_bit_of_every_word_is_one_and_zero_within_64_numbers() -> None:
    ones, zeros = numpy.zeros(8, numpy.uint64), numpy.zeros(8, numpy.uint64)
    for number in range(64):
        for pattern in patterns(number, 1):
            if pattern.name.startswith("walking ones"):
                ones |= words_of(pattern, FIRST_ADDRESS, 8)
            if pattern.name.startswith("walking zeros"):
                zeros |= ~words_of(pattern, FIRST_ADDRESS, 8)
    assert set(ones.tolist()) == set(zeros.tolist()) == {2**64 - 1}


@settings(deadline=None)  # the machine may be busy
@given(place=st.integers(0, 4 * BLOCK_BYTES // WORD_BYTES - 1), bit=st.integers(0, 63))
def test_any_bit_of_any_word_is_found_with_its_place(place: int, bit: int) -> None:
    rig = Rig()
    memory = rig.memory()
    address = FIRST_ADDRESS + place * WORD_BYTES
    rig.faulty.word = address, 1 << bit
    one_pass(memory)
    assert {wrong.place for wrong in rig.told(Wrong)} == {f"address 0x{address:x}, bit {bit}"}
    (wrong,) = rig.told(Wrong)
    assert int(wrong.expected, 16) ^ int(wrong.found, 16) == 1 << bit
    assert memory.meter.wrong + sum(work.wrong for work in rig.told(Work)) == 1


@settings(deadline=None)  # the machine may be busy
@given(place=st.integers(0, 4 * BLOCK_BYTES // WORD_BYTES - 1), bit=st.integers(0, 63))
def test_a_bit_that_is_stuck_is_found_by_walking_ones(place: int, bit: int) -> None:
    rig = Rig()
    memory = rig.memory()
    rig.faulty.stuck = FIRST_ADDRESS + place * WORD_BYTES, 1 << bit
    steps = memory.steps(alone=False)
    while memory.meter.passes < 5:
        next(steps)
    assert "walking ones" in {wrong.pattern for wrong in rig.told(Wrong)} or (place + 0) % 64 == bit
    assert {wrong.place for wrong in rig.told(Wrong)} == {
        f"address 0x{FIRST_ADDRESS + place * WORD_BYTES:x}, bit {bit}"
    }


def test_several_bits_of_a_word_are_named() -> None:
    rig = Rig()
    memory = rig.memory()
    rig.faulty.word = FIRST_ADDRESS, 0b101000
    one_pass(memory)
    assert rig.told(Wrong)[0].place == f"address 0x{FIRST_ADDRESS:x}, bits 3, 5"
    rig.faulty.word = FIRST_ADDRESS, 2**64 - 1
    one_pass(memory)


def test_as_much_is_taken_as_there_is() -> None:
    rig = Rig(total_bytes=3 * BLOCK_BYTES + 5000)
    rig.memory(wanted_bytes=10 * BLOCK_BYTES)
    assert rig.device.free_bytes() == 5000 - 4096


@given(wanted_bytes=st.integers(1, 6 * BLOCK_BYTES))
def test_no_less_is_taken_than_wanted(wanted_bytes: int) -> None:
    rig = Rig()
    memory = rig.memory(wanted_bytes)
    one_pass(memory)
    assert wanted_bytes <= memory.meter.covered_bytes < wanted_bytes + 4096


def test_no_memory_at_all_is_trouble() -> None:
    rig = Rig(total_bytes=1000)
    with pytest.raises(DeviceError) as caught:
        rig.memory()
    assert caught.value.code == "out_of_memory"
    assert not caught.value.is_final


def test_all_memory_is_written_before_any_is_read_and_all_is_counted() -> None:
    rig = Rig()
    memory = rig.memory()
    steps = memory.steps(alone=False)
    go_on(steps, 4)
    memory.free()
    work = rig.told(Work)
    assert sum(frame.bytes_written for frame in work) == 4 * BLOCK_BYTES
    assert sum(frame.bytes_checked for frame in work) == 0
    assert rig.device.free_bytes() == 16 * BLOCK_BYTES


def test_covered_is_what_was_checked_once() -> None:
    rig = Rig()
    memory = rig.memory()
    one_pass(memory)
    assert memory.meter.covered_bytes == 4 * BLOCK_BYTES
    one_pass(memory)
    assert memory.meter.covered_bytes == 4 * BLOCK_BYTES


@pytest.mark.parametrize("alone", [True, False])
def test_only_a_load_that_is_alone_pauses_between_writing_and_reading(alone: bool) -> None:
    rig = Rig()
    memory = rig.memory()
    steps = memory.steps(alone=alone)
    began_s = rig.clock.now_s
    while rig.clock.now_s < began_s + 3 * (PAUSE_EVERY_S + PAUSE_S):
        next(steps)
    assert (rig.clock.slept_s > PAUSE_S) is alone


def test_signs_of_life_come_in_time() -> None:
    rig = Rig()
    memory = rig.memory()
    steps = memory.steps(alone=True)
    began_s = rig.clock.now_s
    while rig.clock.now_s < began_s + 100:
        next(steps)
    assert max(frame.span_s for frame in rig.told(Work)) < WORK_EVERY_S
    assert sum(frame.span_s for frame in rig.told(Work)) > 95


def test_few_of_many_wrong_words_are_told_and_all_counted() -> None:
    rig = Rig()
    memory = rig.memory()
    steps = memory.steps(alone=False)
    go_on(steps, 4)
    for block in memory._blocks:
        assert isinstance(block, CpuBlock)
        block.words[:] ^= numpy.uint64(1)
    go_on(steps, 5)
    memory.free()
    assert len(rig.told(Wrong)) == WRONG_A_MINUTE
    assert sum(frame.wrong for frame in rig.told(Work)) == 4 * BLOCK_BYTES // WORD_BYTES


# Products.


@settings(deadline=None)  # the machine may be busy
@given(
    row=st.integers(0, 2 * TILES - 1),
    column=st.integers(0, 2 * TILES - 1),
    bit=st.integers(0, 31),
    precision=st.sampled_from(PRECISIONS),
)
def test_any_wrong_tile_is_found_with_its_place(row: int, column: int, bit: int, precision: str) -> None:
    rig = Rig(total_bytes=2**24)
    compute = rig.compute(precision, size=2 * TILES)
    rig.faulty.element = row, column, 1 << bit
    compute.start()
    compute.finish()
    (wrong,) = rig.told(Wrong)
    assert wrong.place == f"tile {row // 2},{column // 2} of 64×64, {precision}"
    assert int(wrong.expected, 16) ^ int(wrong.found, 16) == 1 << bit
    assert compute.meter.wrong == 1


def test_a_healthy_device_computes_the_same_again_and_again() -> None:
    rig = Rig(total_bytes=2**24)
    compute = rig.compute(size=2 * TILES)
    for _ in range(200):
        compute.start()
        compute.finish()
    compute.free()
    assert rig.told(Wrong) == []
    work = rig.told(Work)
    assert {frame.precision for frame in work} == set(PRECISIONS)
    assert all(frame.wrong == 0 and frame.first for frame in work)
    assert sum(frame.operations for frame in work) % (2 * (2 * TILES) ** 3) == 0
    assert rig.device.free_bytes() == 2**24


def test_each_precision_has_its_turn() -> None:
    rig = Rig(total_bytes=2**24)
    compute = rig.compute("FP32", "FP16")
    seen = []
    for _ in range(3):
        compute.start()
        compute.finish()
        seen.append(compute.meter.precision)
        rig.clock.now_s += TURN_S
    assert seen == ["FP32", "FP16", "FP32"]


def test_the_first_result_of_a_later_turn_is_compared_with_that_of_the_first_turn() -> None:
    rig = Rig(total_bytes=2**24)
    compute = rig.compute("FP32", "FP16")
    compute.start()
    compute.finish()
    compute._firsts["FP32"] = "other"
    for _ in range(2):
        rig.clock.now_s += TURN_S
        compute.start()
        compute.finish()
    (wrong,) = rig.told(Wrong)
    assert wrong.place == "first result of a turn, FP32"


def test_the_digest_that_is_told_is_the_same_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obatchd.burnin.stress.compute._SIZE_OF_FIRST", TILES)
    told = []
    for size in (TILES, 2 * TILES, 4 * TILES):
        rig = Rig(total_bytes=2**24)
        rig.device._product_size = 4 * TILES
        compute = rig.compute("FP16", size=size)
        compute.start()
        compute.finish()
        told.append(compute.meter.first)
        compute.free()
        assert rig.device.free_bytes() == 2**24
    assert len(set(told)) == 1 and told[0]
    monkeypatch.setattr("obatchd.burnin.stress.compute._SIZE_OF_FIRST", 2 * TILES)
    compute = rig.compute("FP16", size=TILES)
    compute.start()
    assert compute.meter.first == ""  # nothing that could be compared


def test_products_fit_beside_memory_that_is_tested() -> None:
    device = CpuDevice(product_size=8 * TILES)
    assert fitting_size(device, PRECISIONS, 2**30) == 8 * TILES
    assert fitting_size(device, PRECISIONS, device.product_bytes(2 * TILES, "FP32")) == 2 * TILES
    assert fitting_size(device, PRECISIONS, 0) == TILES


@pytest.mark.parametrize(("precision", "bits"), [("FP16", 11), ("BF16", 8)])
def test_values_are_rounded_as_the_precision_does(precision: str, bits: int) -> None:
    values = numpy.random.default_rng(5).uniform(-1, 1, 1000)
    found = rounded(values, bits)
    if precision == "FP16":
        normal = numpy.abs(values) > 2**-14
        assert (found[normal] == values[normal].astype(numpy.float16).astype(numpy.float32)).all()
    else:
        assert (found.view(numpy.uint32) & numpy.uint32(0xFFFF) == 0).all()
        assert numpy.max(numpy.abs(found - values)) <= 2**-9


# The process, without one.


def test_commands_begin_and_end_loads() -> None:
    rig = Rig(total_bytes=2**24, block_bytes=2**20)
    commands: queue.SimpleQueue[ToProcess] = queue.SimpleQueue()
    stress = process.Stress(rig.device, rig.teller)
    stress.begin(Begin(["compute", "memory"], 50, ["FP32"], 1))
    for _ in range(50):
        assert stress.step()
    commands.put(End())
    commands.put(Leave())
    process.serve(stress, commands)
    assert [frame.load for frame in rig.told(Ended)] == ["compute", "memory"]
    assert {frame.load for frame in rig.told(Work)} == {"compute", "memory"}
    assert rig.device.free_bytes() == 2**24
    covered_bytes = max(frame.covered_bytes for frame in rig.told(Work))
    assert 0.49 * 2**24 < covered_bytes <= 0.5 * 2**24


def test_memory_leaves_room_for_every_precision_beside_it() -> None:
    rig = Rig(total_bytes=2**26, block_bytes=2**22)
    stress = process.Stress(rig.device, rig.teller)
    stress.begin(Begin(["compute", "memory"], 100, [], 1))
    while {frame.precision for frame in rig.told(Work)} < {"", *PRECISIONS} or not any(
        frame.passes for frame in rig.told(Work)
    ):
        rig.clock.now_s += 0.3
        assert stress.step()
    assert rig.told(Trouble) == []
    assert max(frame.covered_bytes for frame in rig.told(Work)) >= 0.94 * 2**26


def test_links_are_measured_and_end_by_themselves() -> None:
    rig = Rig()
    stress = process.Stress(rig.device, rig.teller)
    stress.begin(Begin(["links"], 0, [], 1))
    while stress.runs:
        assert stress.step()
    assert {frame.kind for frame in rig.told(Bandwidth)} == {"to_host", "from_host"}
    assert all(frame.bytes_per_s > 0 for frame in rig.told(Bandwidth))
    assert rig.told(Ended) == [Ended("links")]


def test_a_precision_that_the_device_has_not_is_told() -> None:
    rig = Rig()
    stress = process.Stress(rig.device, rig.teller)
    stress.begin(Begin(["compute"], 0, ["FP4"], 1))
    assert stress.step()
    assert [trouble.code for trouble in rig.told(Trouble)] == ["no_precision"]
    assert not stress.runs


def test_a_device_that_is_lost_ends_the_process() -> None:
    rig = Rig(total_bytes=2**24)

    def lost(*_: object) -> None:
        raise DeviceError("The GPU has fallen off the bus.", code="device_lost")

    rig.device.disturbance.written = lost  # type: ignore[method-assign]
    rig.served(Begin(["memory"], 50, [], 1))
    assert [trouble.code for trouble in rig.told(Trouble)] == ["device_lost"]
    assert rig.told(Ended) == []
