from __future__ import annotations

import subprocess
import sys

import pytest

from obatchd.daemon import process
from obatchd.errors import HostError

_BURST = """
import asyncio, ctypes, time
from obatchd.daemon import process
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

async def main():
    returning = asyncio.create_task(process.return_memory([1]))
    await asyncio.sleep(0)
    before = resident_kb()
    burst()
    ends_s = time.monotonic() + 20
    while resident_kb() - before > 2_000 and time.monotonic() < ends_s:
        await asyncio.sleep(0.05)
    print(resident_kb() - before)
    returning.cancel()

asyncio.run(main())
"""


_LEARNED = """
import sys
import msgspec
from obatchd.daemon import life, process

process.prepare()
seen = []
sys.setprofile(lambda frame, event, _: seen.append(frame.f_code.co_name) if event == "call" else None)
for kind in msgspec.Struct.__subclasses__():
    if kind.__module__.startswith("obatchd."):
        msgspec.json.Decoder(kind)
sys.setprofile(None)
print(len(msgspec.Struct.__subclasses__()) > 100, seen)
"""


def test_no_struct_is_learned_by_msgspec_when_threads_run() -> None:
    """It runs Python when it learns one, and a second thread that comes meanwhile ends the process."""
    found = subprocess.run([sys.executable, "-c", _LEARNED], capture_output=True, check=True, text=True)
    assert found.stdout.strip() == "True []"


def test_what_a_burst_needed_is_given_back() -> None:
    found = subprocess.run([sys.executable, "-c", _BURST], capture_output=True, check=True, text=True)
    assert int(found.stdout) <= 2_000


@pytest.mark.parametrize(
    ("may", "servers", "needed"),
    [(64, 0, "128"), (128, 0, None), (128, 4, "160 or more with 4 servers"), (4096, 64, None)],
)
def test_too_few_open_files_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, may: int, servers: int, needed: str | None
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (may, may))
    if needed is None:
        process.check_open_files(servers)
        return
    with pytest.raises(HostError) as caught:
        process.check_open_files(servers)
    assert f"only {may} files open and needs {needed}" in caught.value.message and "ulimit -n" in caught.value.message
