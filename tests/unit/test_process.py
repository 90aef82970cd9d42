from __future__ import annotations

import subprocess
import sys

import pytest

_FREED = """
import ctypes, threading
from obatchd import process
if {prepared}:
    process.prepare()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def resident_kb():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0])

def burst():
    # A large block that is freed raises glibc's thresholds; what is freed after it stays.
    libc.free(libc.malloc(30_000_000))
    blocks = [libc.malloc(60_000) for _ in range(400)]
    for block in blocks:
        ctypes.memset(block, 1, 60_000)
    for block in blocks:
        libc.free(block)

before = resident_kb()
burst()
print(resident_kb() - before)
"""


def kept_kb(*, prepared: bool) -> int:
    code = _FREED.format(prepared=prepared)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about the C library of Linux")
def test_what_a_burst_needed_is_given_back() -> None:
    if kept_kb(prepared=False) < 10_000:
        pytest.skip("this C library gives memory back by itself")
    assert kept_kb(prepared=True) < 2_000
