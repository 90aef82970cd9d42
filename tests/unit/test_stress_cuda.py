"""The code that calls NVIDIA's driver and cuBLASLt, against a shared library with their functions.

Memory of its device is memory of the process, and its kernels are ours, compiled as C; so what is tested is each call
with its parameters, their order, and what the kernels compute. That a GPU does the same nobody has seen here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from obatchd.burnin.stress import cublaslt, cuda
from obatchd.burnin.stress.cuda_driver import code_of
from obatchd.burnin.stress.device import PRECISIONS
from obatchd.errors import DeviceError

HERE = Path(__file__).parent
KERNELS = Path(cuda.__file__).with_name("kernels.cu")
COMPILER = shutil.which("cc") or shutil.which("gcc")
UUID, PEER = (f"GPU-{start}0{start}1{start}2{start}3-{start}4{start}5-{start}6{start}7-{start}8{start}9-" + "".join(
    f"{start}{digit}" for digit in "abcdef"
) for start in "01")  # fmt: skip
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")

OPEN = f"""
import msgspec, sys
from obatchd.burnin.stress import cuda
from obatchd.burnin.stress.device import Pattern
from obatchd.errors import DeviceError
def tell(**report):
    sys.stdout.buffer.write(msgspec.json.encode(report))
try:
    device = cuda.open_device({UUID!r}, PEERS, [DIRECTORY])
    facts = device.facts
except DeviceError as error:
    tell(code=error.code, words=error.message)
    sys.exit(0)
"""
PATTERNS = """
import numpy
from obatchd.burnin.stress.cpu import words_of
free = device.free_bytes()
block = device.allocate(8192)
same = {}
numbers = {"walking ones": 70, "walking zeros": 3, "address": 0, "inverted address": 0, "random": 9}
for name, number in numbers.items():
    pattern = Pattern(name, number)
    device.fill(block, pattern)
    words = numpy.ctypeslib.as_array((cuda.c_ulonglong * 1024).from_address(block.address))
    same[name] = bool((words == words_of(pattern, block.address, 1024)).all())
    same[name] = same[name] and device.check(block, pattern, 4).count == 0
    words[17] ^= numpy.uint64(1 << 40)
    words[1023] ^= numpy.uint64(1)
    wrong = device.check(block, pattern, 4)
    expected = {place: int(words_of(pattern, block.address, 1024)[place]) for place in (17, 1023)}
    same[name + " wrong"] = wrong.count == 2 and sorted(wrong.some) == [
        (17 * 8, expected[17], expected[17] ^ 1 << 40), (1023 * 8, expected[1023], expected[1023] ^ 1)]
    same[name + " most"] = len(device.check(block, pattern, 1).some) == 1
block.free()
tell(same=same, freed=device.free_bytes() == free)
"""
PRODUCTS = """
import ctypes, numpy
from obatchd.burnin.stress.cpu import rounded
made = {}
free = device.free_bytes()
for precision in facts.precisions:
    product = device.product(64, precision, 5)
    left, right, first = product._memory[:3]
    kind = product._plan.kind
    def matrix(address, size_bytes):
        raw = numpy.frombuffer((ctypes.c_char * (64 * 64 * size_bytes)).from_address(address), f"u{size_bytes}")
        if size_bytes == 4:
            values = raw.view(numpy.float32)
        elif size_bytes == 2 and kind.operand == 2 and address != first:
            values = raw.view(numpy.float16)
        elif size_bytes == 2:
            values = (raw.astype(numpy.uint32) << 16).view(numpy.float32)
        else:
            exponents = ((raw >> 3) & 15).astype(int) - 7
            values = (1 - 2.0 * (raw >> 7)) * (1 + (raw & 7) / 8) * 2.0 ** exponents
        return values.astype(numpy.float64).reshape(64, 64).T  # columns are kept together
    a, b, c = matrix(left, kind.operand_bytes), matrix(right, kind.operand_bytes), matrix(first, kind.result_bytes)
    precise = a.T @ b
    made[precision] = {
        "from": float(numpy.abs(a).min()), "to": float(numpy.abs(a).max()), "negative": float((b < 0).mean()),
        "different": bool((a != b).mean() > 0.5), "error": float(numpy.abs(c - precise).max()), "first": product.first,
    }
    product.start(3)
    done = product.finish(4)
    made[precision] |= {"operations": done.operations, "wrong": done.wrong_tiles, "took": done.seconds > 0}
    again = device.product(64, precision, 5)
    other = device.product(64, precision, 6)
    made[precision] |= {"again": again.first == product.first, "other": other.first == product.first}
    for one in (product, again, other):
        one.free()
tell(facts=facts, made=made, freed=device.free_bytes() == free)
"""
RUN = """
from obatchd.burnin.stress import process, protocol
from obatchd.burnin.stress.telling import Teller
said = []
free = device.free_bytes()
device._facts = msgspec.structs.replace(facts, step_s=0.05)
stress = process.Stress(device, Teller(said.append))
stress.begin(protocol.Begin(LOADS, 80, PRECISIONS, 3))
for _ in range(STEPS):
    if not stress.runs or not stress.step():
        break
stress.end()
tell(said=said, freed=device.free_bytes() - free)
"""

PROCESS = f"""
import asyncio, msgspec, sys
from functools import partial
from obatchd.burnin.stress import cuda
from obatchd.burnin.stress.parent import StressProcess
from obatchd.burnin.stress.protocol import Begin, Opened, Work
class Owner:
    def task_failed(self, name, error):
        raise error
async def main():
    opening = partial(cuda.open_device, {UUID!r}, (), (DIRECTORY,))
    process = StressProcess("stress", opening, 2**31, Owner())
    process.start()
    said, loads = [], set()
    async for frame in process.frames():
        said.append(frame)
        if isinstance(frame, Opened):
            process.send(Begin(["compute", "memory"], 80, ["BF16"], 3))
        if isinstance(frame, Work) and (frame.bytes_checked or frame.operations):
            loads.add(frame.load)
        if len(loads) == 2:
            break
    gone = await process.end()
    sys.stdout.buffer.write(msgspec.json.encode(dict(said=said, gone=gone)))
asyncio.run(main())
"""


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert COMPILER is not None
    directory = tmp_path_factory.mktemp("cuda")
    library = directory / "libcuda.so.1"
    command = [COMPILER, "-shared", "-fPIC", "-O2", f'-DKERNELS="{KERNELS}"', "-x", "c", HERE / "cuda_stand_in.c"]
    subprocess.run([*command, "-o", library], check=True)
    (directory / "cuda_v12").mkdir()
    (directory / "cuda_v12" / "libcublasLt.so.12").symlink_to(library)
    return directory


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(libraries: Path, tmp_path: Path) -> Run:
    """Run a part of a program in a process of its own, because a library is loaded for life; what it tells."""

    def run(part: str, faults: str = "memory=50331648", **values: object) -> dict[str, Any]:
        program = part if part is PROCESS else OPEN + part
        for name, value in {"PEERS": (), "DIRECTORY": str(libraries), **values}.items():
            program = program.replace(name, repr(value))
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(libraries),
            "CUDA_STAND_IN": faults,
            "CUDA_STAND_IN_LOG": str(tmp_path / "calls"),
        }
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=100)
        assert done.returncode == 0, done.stderr.decode()
        report: dict[str, Any] = msgspec.json.decode(done.stdout)
        report["calls"] = (tmp_path / "calls").read_text("ascii").split()
        return report

    return run


def said(report: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [frame for frame in report["said"] if frame["type"] == kind]


def test_the_code_for_the_driver_is_made_of_its_source() -> None:
    digest = hashlib.sha256(KERNELS.read_bytes()).hexdigest()
    text = KERNELS.with_suffix(".ptx").read_text("ascii")
    assert digest in text.splitlines()[0], "run scripts/kernels.py"
    assert all(f".visible .entry {kernel}(" in text for kernel in cuda.KERNELS)


def test_patterns_are_written_and_checked_as_described(run: Run) -> None:
    report = run(PATTERNS)
    assert [name for name, same in report["same"].items() if not same] == []
    assert report["freed"]


def test_products_of_every_precision_are_those_of_their_operands(run: Run) -> None:
    report = run(PRODUCTS, faults="memory=201326592")
    assert report["facts"]["precisions"] == list(PRECISIONS)
    assert (report["facts"]["library"], report["facts"]["version"]) == ("cuBLAS", "12.9.3")
    for precision, made in report["made"].items():
        assert 0.5 <= made["from"] < 0.52 and 0.93 <= made["to"] < 1 and 0.4 < made["negative"] < 0.6
        assert made["different"]
        if precision != "FP16":  # for which the stand-in writes something else
            assert made["error"] < (0.2 if precision in ("BF16", "FP8") else 1e-4)
        assert (made["operations"], made["wrong"], made["took"]) == (3 * 2 * 64**3, 0, True)
        assert made["again"] and not made["other"]
    assert report["freed"]


def test_both_loads_run_on_a_healthy_card_and_give_everything_back(run: Run) -> None:
    report = run(RUN, LOADS=["compute", "memory"], PRECISIONS=["FP16"], STEPS=24)
    work = said(report, "work")
    assert {frame["load"] for frame in work} == {"compute", "memory"}
    assert said(report, "wrong") == said(report, "trouble") == []
    assert sum(frame.get("operations", 0) for frame in work) > 0
    assert [frame["load"] for frame in said(report, "ended")] == ["compute", "memory"]
    assert report["freed"] == 0


def test_links_to_the_host_are_measured_after_a_second_of_use(run: Run) -> None:
    report = run(RUN, LOADS=["links"], PRECISIONS=[], STEPS=100_000)
    assert [frame["kind"] for frame in said(report, "bandwidth")] == ["to_host", "from_host"] * 5
    assert sum(frame["span_s"] for frame in said(report, "work")) > 1
    assert report["calls"].count("cuMemcpyDtoHAsync_v2") > 5 + 1
    assert [frame["load"] for frame in said(report, "ended")] == ["links"]
    assert report["freed"] == 0


def test_a_process_of_its_own_loads_the_card(run: Run) -> None:
    report = run(PROCESS)
    assert report["gone"] == ["left", "was told to leave", False]
    (opened,) = said(report, "opened")
    assert (opened["library"], opened["device"]) == ("cuBLAS", "Stand-in 0")
    assert said(report, "wrong") == said(report, "trouble") == []


def test_the_calls_come_in_order(run: Run) -> None:
    calls = run(RUN, LOADS=["compute"], PRECISIONS=["FP32"], STEPS=1)["calls"]
    order = ["cuInit", "cuDeviceGetCount", "cuDevicePrimaryCtxSetFlags_v2", "cuDevicePrimaryCtxRetain",
             "cuCtxSetCurrent", "cublasLtCreate", "cuModuleLoadData", "cublasLtMatmulAlgoGetHeuristic",
             "cublasLtMatmul"]  # fmt: skip
    first = [calls.index(name) for name in order]
    assert first == sorted(first)
    made = calls.count("cublasLtMatmulDescCreate"), calls.count("cublasLtMatrixLayoutCreate")
    assert made == (calls.count("cublasLtMatmulDescDestroy"), calls.count("cublasLtMatrixLayoutDestroy"))
    assert calls.count("cuMemAlloc_v2") == calls.count("cuMemFree_v2") + 1  # the report of memory stays


@pytest.mark.parametrize(("index", "bit"), [(0, 0), (63, 31), (64 * 32 + 5, 7), (64 * 64 - 1, 13)])
def test_a_wrong_tile_is_found_with_its_place(run: Run, index: int, bit: int) -> None:
    faults = f"memory=43000000 wrong={index}:{bit}"
    report = run(RUN, faults, LOADS=["compute", "memory"], PRECISIONS=["FP32"], STEPS=2)
    wrong = said(report, "wrong")
    assert {frame["place"] for frame in wrong} == {f"tile {index % 64},{index // 64} of 64×64, FP32"}
    assert all(int(frame["expected"], 16) ^ int(frame["found"], 16) == 1 << bit for frame in wrong)
    assert sum(frame.get("wrong", 0) for frame in said(report, "work")) == len(wrong)


@pytest.mark.parametrize(("index", "bit"), [(0, 0), (777, 63), (50_000, 31)])
def test_a_stuck_bit_is_found_with_its_address(run: Run, index: int, bit: int) -> None:
    report = run(RUN, f"memory=43000000 stuck={index}:{bit}", LOADS=["memory"], PRECISIONS=[], STEPS=24)
    wrong = said(report, "wrong")
    assert wrong and {frame["place"].split(", ")[1] for frame in wrong} == {f"bit {bit}"}
    assert {int(frame["place"].split()[1].rstrip(","), 16) % 4096 for frame in wrong} == {index * 8 % 4096}
    assert all(int(frame["expected"], 16) | 1 << bit == int(frame["found"], 16) for frame in wrong)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("cuLaunchKernel:719:9", "launch_failed"),
        ("cuMemcpyDtoHAsync_v2:214:4", "bad_memory"),
        ("cublasLtMatmul:13:3", "launch_failed"),
        ("cuMemAlloc_v2:2:3", "out_of_memory"),
        ("cuStreamSynchronize:999:6", "device_lost"),
    ],
)
def test_what_fails_is_told(run: Run, fault: str, code: str) -> None:
    report = run(RUN, f"memory=50331648 fail={fault}", LOADS=["compute", "memory"], PRECISIONS=["FP16"], STEPS=20)
    (trouble,) = said(report, "trouble")
    assert trouble["code"] == code
    assert fault.split(":")[0].removesuffix("_v2") in trouble["text"] or code == "out_of_memory"


def test_a_card_on_which_nothing_is_found_is_not_tested(run: Run) -> None:
    report = run("tell()", "blind=1")
    assert (report["code"], report["words"].split(",")[0]) == ("launch_failed", "A word that was changed is not found")
    report = run(RUN, "memory=50331648 idle=1", LOADS=["compute"], PRECISIONS=["FP32"], STEPS=3)
    assert said(report, "wrong")  # no work is no result
    report = run(RUN, "memory=50331648 dim=1", LOADS=["compute"], PRECISIONS=["FP32"], STEPS=3)
    assert [frame["text"].split(",")[0] for frame in said(report, "trouble")] == ["A wrong product is not found"]


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        ("fail=cuInit:100:1", "no_device"),
        ("fail=cuInit:803:1", "no_device"),
        ("gpus=0", "no_device"),
        ("fail=cublasLtCreate:1:1", "no_device"),
        ("driver=11040", "no_library"),
        ("fail=cuModuleLoadData:222:1", "launch_failed"),
    ],
)
def test_a_card_that_cannot_be_opened_says_why(run: Run, faults: str, code: str) -> None:
    assert run("tell()", faults)["code"] == code


def test_precisions_are_those_that_card_and_library_have(run: Run) -> None:
    assert run("tell(has=facts.precisions)", "capability=75")["has"] == ["FP32", "FP16"]
    assert run("tell(has=facts.precisions)", "capability=61")["has"] == ["FP32"]
    assert run("tell(has=facts.precisions)", f"kinds={1 << 0 | 1 << 2 | 1 << 14}")["has"] == list(PRECISIONS[:4])


def test_peers_are_measured_in_their_own_context(run: Run) -> None:
    report = run(RUN, "gpus=2", LOADS=["links"], PRECISIONS=[], STEPS=100_000, PEERS=(PEER,))
    assert {frame["peer"] for frame in said(report, "bandwidth") if frame["kind"] == "to_peer"} == {PEER}
    assert report["freed"] == 0
    calls = report["calls"]
    assert calls.count("cuDevicePrimaryCtxRetain") == 2  # its own, and one of the other
    assert calls.count("cuMemcpyPeerAsync") == 5


def test_another_gpu_in_place_of_the_one_asked_for_is_refused(run: Run) -> None:
    report = run("tell()")
    assert "code" not in report
    other = OPEN.replace(UUID, PEER)
    assert other != OPEN
    program = "tell()"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "OPEN", other)
        assert "another GPU" in run(program)["words"]


def test_the_newest_library_that_driver_and_card_can_use_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setenv("PATH", "")
    for name in ("cuda_v12/libcublasLt.so.12", "cuda_v13/libcublasLt.so.13", "cuda_v12/libcublasLt.so.12.9.1.4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    given = [str(tmp_path)]
    assert cublaslt.find(given, 13000, 89).endswith("so.13")
    assert cublaslt.find(given, 12080, 89).endswith("so.12")
    assert cublaslt.find(given, 13000, 70).endswith("so.12")
    with pytest.raises(DeviceError, match=r"another driver or card: .*so\.12") as caught:
        cublaslt.find(given, 11040, 89)
    assert caught.value.code == "no_library"
    with pytest.raises(DeviceError, match=r"pip install 'obatchd\[stress\]'"):
        cublaslt.find([], 12080, 89)


def test_codes_of_the_driver() -> None:
    assert [code_of(result) for result in (2, 46, 100, 214, 719, 999, 700)] == [
        "out_of_memory", "no_device", "no_device", "bad_memory", "launch_failed", "device_lost", "launch_failed",
    ]  # fmt: skip


def test_the_thread_stays_on_the_cores_of_its_card(tmp_path: Path, run: Run) -> None:
    assert cuda.listed("0-2,7,9-10\n") == {0, 1, 2, 7, 9, 10}
    assert cuda.listed("\n") == set()
    core = min(os.sched_getaffinity(0))
    card = tmp_path / "ffff:00:00.0"
    card.mkdir()
    (card / "local_cpulist").write_text(f"{core},4000-4001\n", "ascii")
    near = f"""
import os
from pathlib import Path
cuda._PCI_DEVICES = Path({str(tmp_path)!r})
cuda._stay_near(device.driver, 0)
tell(cores=sorted(os.sched_getaffinity(0)))
"""
    assert run(near)["cores"] == [core]
