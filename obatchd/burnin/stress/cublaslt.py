"""The functions of cuBLASLt that make matrix products, through ctypes; names, types and numbers as in cublasLt.h.

The library comes with every Ollama for NVIDIA GPUs (its CMakeLists.txt installs cublasLt beside its engine), with a
CUDA toolkit, and as the wheel ``nvidia-cublas-cu12``, which the extra ``stress`` brings to hosts that have neither.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from ctypes import POINTER, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import attrs

from obatchd.errors import DeviceError

WORKSPACE_BYTES = 32 * 2**20  # what NVIDIA recommends for Hopper; 4 MiB were enough before
MISSING = (
    "No cuBLAS was found, which computes the products: it comes with Ollama for NVIDIA GPUs and with a CUDA toolkit; "
    "or install it with  pip install 'obatchd[stress]'."
)
_NAME = re.compile(r"libcublasLt\.so\.(\d+)$")
_F32, _F16, _BF16, _E4M3 = 0, 2, 14, 28  # cudaDataType
_COMPUTE_32F, _COMPUTE_TF32 = 68, 77  # cublasComputeType_t
_TRANSA = 3  # cublasLtMatmulDescAttributes_t
_MAX_WORKSPACE, _REDUCTION_SCHEMES = 1, 3  # cublasLtMatmulPreferenceAttributes_t
# Sums in one sequence; else any that the library has, which are in a fixed order, too (cublasLtReductionScheme_t).
_SCHEMES = (0, 7)
_CODES = {1: "no_device", 3: "out_of_memory", 8: "no_library"}  # of cublasStatus_t; 8 is another architecture
_out = POINTER(c_void_p)
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cublasLtCreate": (_out,),
    "cublasLtMatmulDescCreate": (_out, c_int, c_int),
    "cublasLtMatmulDescSetAttribute": (c_void_p, c_int, c_void_p, c_size_t),
    "cublasLtMatmulDescDestroy": (c_void_p,),
    "cublasLtMatrixLayoutCreate": (_out, c_int, c_uint64, c_uint64, c_int64),
    "cublasLtMatrixLayoutDestroy": (c_void_p,),
    "cublasLtMatmulPreferenceCreate": (_out,),
    "cublasLtMatmulPreferenceSetAttribute": (c_void_p, c_int, c_void_p, c_size_t),
    "cublasLtMatmulPreferenceDestroy": (c_void_p,),
    "cublasLtMatmulAlgoGetHeuristic": (*[c_void_p] * 7, c_int, c_void_p, POINTER(c_int)),
    "cublasLtMatmul": (*[c_void_p] * 14, c_size_t, c_void_p),
    "cublasLtGetVersion": (),
    "cublasLtGetStatusString": (c_int,),
}
_RESULTS = {"cublasLtGetVersion": c_size_t, "cublasLtGetStatusString": c_char_p}


class Kind(NamedTuple):
    """How a precision computes: types of operands and result, and the least compute capability (×10) that has it."""

    operand: int
    operand_bytes: int
    result: int
    result_bytes: int
    compute: int
    capability: int


# cublasLtMatmul's table of supported types, in the documentation of cuBLAS.
KINDS = {
    "FP32": Kind(_F32, 4, _F32, 4, _COMPUTE_32F, 50),
    "TF32": Kind(_F32, 4, _F32, 4, _COMPUTE_TF32, 80),
    "FP16": Kind(_F16, 2, _F16, 2, _COMPUTE_32F, 70),
    "BF16": Kind(_BF16, 2, _BF16, 2, _COMPUTE_32F, 80),
    "FP8": Kind(_E4M3, 1, _BF16, 2, _COMPUTE_32F, 89),
}


class _Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t; the algorithm in it is a cublasLtMatmulAlgo_t."""

    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace_bytes", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


@attrs.define(eq=False)
class Plan:
    """A product of square matrices: descriptors, and the algorithm, which stays the same for all of them."""

    kind: Kind
    operation: c_void_p
    operands: c_void_p  # layout of both
    result: c_void_p
    found: _Heuristic


class CublasLt:
    """The library, with a handle for the current context. Raises DeviceError."""

    def __init__(self, path: str) -> None:
        try:
            library = ctypes.CDLL(path)
            self._functions = {name: _function(library, name) for name in _FUNCTIONS}
        except (OSError, AttributeError) as error:
            raise DeviceError(f"{path} cannot be used ({error}).", code="no_library") from None
        self._handle = self._made("cublasLtCreate")

    @property
    def version(self) -> str:
        number = int(self._functions["cublasLtGetVersion"]())
        return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"  # CUBLAS_VERSION

    def call(self, name: str, *arguments: Any) -> None:
        if status := self._functions[name](*arguments):
            words = (self._functions["cublasLtGetStatusString"](status) or b"an error").decode("utf-8", "replace")
            code = _CODES.get(status, "launch_failed")
            raise DeviceError(f"cuBLAS says at {name}: {words} ({status}).", code=code)

    def plan(self, precision: str, size: int) -> Plan | None:
        """How to multiply; None where the card and this library cannot do it in that precision."""
        kind = KINDS[precision]
        operation = self._made("cublasLtMatmulDescCreate", kind.compute, _F32)
        # The first operand is transposed: the only form that 8 bits have before compute capability 10.
        transposed = c_int(1)
        self.call("cublasLtMatmulDescSetAttribute", operation, _TRANSA, ctypes.byref(transposed), 4)
        operands = self._made("cublasLtMatrixLayoutCreate", kind.operand, size, size, size)
        result = self._made("cublasLtMatrixLayoutCreate", kind.result, size, size, size)
        for schemes in _SCHEMES:
            found = self._algorithm(operation, operands, result, schemes)
            if found is not None:
                return Plan(kind, operation, operands, result, found)
        self.free(Plan(kind, operation, operands, result, _Heuristic()))
        return None

    def _algorithm(self, operation: c_void_p, operands: c_void_p, result: c_void_p, schemes: int) -> _Heuristic | None:
        preference = self._made("cublasLtMatmulPreferenceCreate")
        most, mask = c_uint64(WORKSPACE_BYTES), ctypes.c_uint32(schemes)
        self.call("cublasLtMatmulPreferenceSetAttribute", preference, _MAX_WORKSPACE, ctypes.byref(most), 8)
        self.call("cublasLtMatmulPreferenceSetAttribute", preference, _REDUCTION_SCHEMES, ctypes.byref(mask), 4)
        found, count = _Heuristic(), c_int()
        status = self._functions["cublasLtMatmulAlgoGetHeuristic"](
            self._handle, operation, operands, operands, result, result, preference, 1, ctypes.byref(found),
            ctypes.byref(count),
        )  # fmt: skip
        self.call("cublasLtMatmulPreferenceDestroy", preference)
        return found if status == 0 and count.value and found.state == 0 else None

    def multiply(self, plan: Plan, left: int, right: int, result: int, workspace: int, stream: c_void_p) -> None:
        """Queue one product."""
        one, zero = c_float(1), c_float(0)
        self.call(
            "cublasLtMatmul", self._handle, plan.operation, ctypes.byref(one), left, plan.operands, right,
            plan.operands, ctypes.byref(zero), result, plan.result, result, plan.result,
            ctypes.byref(plan.found), workspace, WORKSPACE_BYTES, stream,
        )  # fmt: skip

    def free(self, plan: Plan) -> None:
        self.call("cublasLtMatmulDescDestroy", plan.operation)
        self.call("cublasLtMatrixLayoutDestroy", plan.operands)
        self.call("cublasLtMatrixLayoutDestroy", plan.result)

    def _made(self, name: str, *arguments: Any) -> c_void_p:
        value = c_void_p()
        self.call(name, ctypes.byref(value), *arguments)
        return value


def _function(library: ctypes.CDLL, name: str) -> Any:
    function = library[name]
    function.argtypes, function.restype = _FUNCTIONS[name], _RESULTS.get(name, c_int)
    return function


def find(directories: Sequence[str], driver_version: int, capability: int) -> str:
    """The library for this driver and card: the newest major version that both can use.

    ``driver_version`` as cuDriverGetVersion has it (12080 is CUDA 12.8). Raises DeviceError ``no_library``.
    """
    most = driver_version // 1000
    if capability < 75:
        most = min(most, 12)  # CUDA 13 has no code for cards before Turing
    found: dict[int, str] = {}
    for path in candidates(directories):
        if (name := _NAME.search(path.name)) is not None:
            found.setdefault(int(name[1]), str(path))
    usable = {major: path for major, path in found.items() if 11 <= major <= most}
    if usable:
        return usable[max(usable)]
    for major in range(most, 10, -1):
        try:
            ctypes.CDLL(name_of := f"libcublasLt.so.{major}")
        except OSError:
            continue
        return name_of
    unusable = f" Those found are for another driver or card: {', '.join(sorted(found.values()))}." if found else ""
    raise DeviceError(MISSING + unusable, code="no_library")


def candidates(directories: Sequence[str]) -> Iterator[Path]:
    """Where the library may be: given directories, Ollama's own folder, wheels, CUDA toolkits, the system."""
    ollama = shutil.which("ollama")
    homes = [Path(ollama).resolve().parent.parent / "lib" / "ollama"] if ollama else []
    homes += [Path("/usr/local/lib/ollama"), Path("/usr/lib/ollama")]
    for directory in (*map(Path, directories), *homes):
        yield from sorted(directory.glob("libcublasLt.so.*"))
        yield from sorted(directory.glob("*/libcublasLt.so.*"))
    for entry in sys.path:
        yield from sorted(Path(entry).glob("nvidia/*/lib/libcublasLt.so.*"))
    toolkits = [toolkit / "lib64" for toolkit in sorted(Path("/usr/local").glob("cuda*"))]
    for directory in (*toolkits, Path("/usr/lib64"), *sorted(Path("/usr/lib").glob("*-linux-gnu"))):
        yield from sorted(directory.glob("libcublasLt.so.*"))
