"""The functions of NVIDIA's driver (libcuda.so.1) that the stress process needs, through ctypes.

Names, types and codes are those of cuda.h; all have been there since CUDA 11, so that any driver since 450 will do.
Some names have a suffix in the library: those of functions whose parameters or meaning changed once.
"""

from __future__ import annotations

import contextlib
import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any

from obatchd.errors import DeviceError

LIBRARY = "libcuda.so.1"
BLOCKING_SYNC = 4  # CU_CTX_SCHED_BLOCKING_SYNC: who waits for the GPU does not keep a core busy meanwhile
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
EVENT_BLOCKING_SYNC = 1  # CU_EVENT_BLOCKING_SYNC
MAJOR, MINOR, MULTIPROCESSORS = 75, 76, 16  # of CUdevice_attribute
PEER_ENABLED = 704  # CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED
_pointer = c_ulonglong  # CUdeviceptr
_out = POINTER(c_void_p)
_FUNCTIONS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "cuInit": ("", (c_uint,)),
    "cuDriverGetVersion": ("", (POINTER(c_int),)),
    "cuDeviceGetCount": ("", (POINTER(c_int),)),
    "cuDeviceGet": ("", (POINTER(c_int), c_int)),
    "cuDeviceGetName": ("", (c_char_p, c_int, c_int)),
    "cuDeviceGetUuid": ("_v2|", (c_char_p, c_int)),  # the newer one knows slices, and is of CUDA 11.4
    "cuDeviceGetPCIBusId": ("", (c_char_p, c_int, c_int)),
    "cuDeviceGetAttribute": ("", (POINTER(c_int), c_int, c_int)),
    "cuDevicePrimaryCtxSetFlags": ("_v2", (c_int, c_uint)),
    "cuDevicePrimaryCtxRetain": ("", (_out, c_int)),
    "cuDevicePrimaryCtxRelease": ("_v2", (c_int,)),
    "cuCtxSetCurrent": ("", (c_void_p,)),
    "cuDeviceCanAccessPeer": ("", (POINTER(c_int), c_int, c_int)),
    "cuCtxEnablePeerAccess": ("", (c_void_p, c_uint)),
    "cuMemGetInfo": ("_v2", (POINTER(c_size_t), POINTER(c_size_t))),
    "cuMemAlloc": ("_v2", (POINTER(_pointer), c_size_t)),
    "cuMemFree": ("_v2", (_pointer,)),
    "cuMemHostAlloc": ("", (_out, c_size_t, c_uint)),
    "cuMemFreeHost": ("", (c_void_p,)),
    "cuMemcpyHtoDAsync": ("_v2", (_pointer, c_void_p, c_size_t, c_void_p)),
    "cuMemcpyDtoHAsync": ("_v2", (c_void_p, _pointer, c_size_t, c_void_p)),
    "cuMemcpyPeerAsync": ("", (_pointer, c_void_p, _pointer, c_void_p, c_size_t, c_void_p)),
    "cuMemsetD32Async": ("", (_pointer, c_uint, c_size_t, c_void_p)),
    "cuStreamCreate": ("", (_out, c_uint)),
    "cuStreamSynchronize": ("", (c_void_p,)),
    "cuEventCreate": ("", (_out, c_uint)),
    "cuEventRecord": ("", (c_void_p, c_void_p)),
    "cuEventSynchronize": ("", (c_void_p,)),
    "cuEventElapsedTime": ("_v2|", (POINTER(c_float), c_void_p, c_void_p)),
    "cuEventDestroy": ("_v2", (c_void_p,)),
    "cuModuleLoadData": ("", (_out, c_char_p)),
    "cuModuleGetFunction": ("", (_out, c_void_p, c_char_p)),
    "cuLaunchKernel": ("", (c_void_p, *[c_uint] * 7, c_void_p, _out, _out)),
    "cuGetErrorString": ("", (c_int, POINTER(c_char_p))),
}
# CUresult by number; what is not here means that a call failed in another way.
_CODES = {
    2: "out_of_memory",
    # 46: another process has the card for itself (compute mode), which is no fault of it.
    **dict.fromkeys((3, 34, 46, 100, 101, 102, 802, 803, 804, 805, 807, 808, 809), "no_device"),
    214: "bad_memory",
    **dict.fromkeys((220, 226, 999), "device_lost"),
}


class Driver:
    """Each function by its name; one that fails raises DeviceError. Raises it itself without a driver."""

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._library = ctypes.CDLL(library)
            self._functions = {name: self._function(name) for name in _FUNCTIONS}
        except (OSError, AttributeError) as error:
            words = f"The NVIDIA driver cannot be used for computing ({error}): see nvidia-smi."
            raise DeviceError(words, code="no_device") from None

    def _function(self, name: str) -> Any:
        suffixes, types = _FUNCTIONS[name]
        names = [name + suffix for suffix in suffixes.split("|")]
        function = self._library[next((known for known in names[:-1] if hasattr(self._library, known)), names[-1])]
        function.argtypes, function.restype = types, c_int
        return function

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function; raises DeviceError unless it says that all is well."""
        if result := self._functions[name](*arguments):
            raise self.error(name, result)

    def error(self, name: str, result: int) -> DeviceError:
        """What a result that is not 0 means."""
        text = c_char_p()
        with contextlib.suppress(OSError):
            self._functions["cuGetErrorString"](result, ctypes.byref(text))
        words = (text.value or b"an error that it does not know").decode("utf-8", "replace")
        return DeviceError(f"The NVIDIA driver says at {name}: {words} ({result}).", code=code_of(result))

    def number(self, name: str, *arguments: Any) -> int:
        """The number that a function writes to its first argument."""
        value = c_int()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value

    def handle(self, name: str, *arguments: Any) -> c_void_p:
        """The handle that a function writes to its first argument."""
        value = c_void_p()
        self.call(name, ctypes.byref(value), *arguments)
        return value

    def allocate(self, size_bytes: int) -> int:
        """Memory of the device of the current context: its address."""
        address = _pointer()
        self.call("cuMemAlloc", ctypes.byref(address), size_bytes)
        return int(address.value)

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device of the current context."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return int(free.value), int(total.value)

    def elapsed_s(self, begin: c_void_p, end: c_void_p) -> float:
        """Time between two events that have happened."""
        milliseconds = c_float()
        self.call("cuEventElapsedTime", ctypes.byref(milliseconds), begin, end)
        return float(milliseconds.value) / 1000

    def launch(self, function: c_void_p, blocks: int, threads: int, stream: c_void_p, *arguments: Any) -> None:
        """Run a kernel; ``arguments`` are ctypes of its parameters' sizes."""
        pointers = (c_void_p * len(arguments))(*(ctypes.cast(ctypes.byref(value), c_void_p) for value in arguments))
        self.call("cuLaunchKernel", function, blocks, 1, 1, threads, 1, 1, 0, stream, pointers, None)


def code_of(result: int) -> str:
    """Trouble's code of a CUresult."""
    return _CODES.get(result, "launch_failed")
