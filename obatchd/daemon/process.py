"""Limits and memory of the main process: set in interpreter, C library and system before it begins."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import resource
from collections.abc import Iterator, Sized

import msgspec

from obatchd import child
from obatchd.errors import HostError
from obatchd.words import counted

# Imported once by the forkserver; the preparer is not, because few need it.
PRELOADED = ("obatchd.dispatch.worker.worker", "obatchd.gpus.probe_child", "obatchd.spool.response_process")
_GARBAGE_THRESHOLD = 20_000  # new objects between two small collections; Python begins with 700
_OPEN_FILES = 65_536  # as in the systemd unit
_LEAST_FILES = 128  # a daemon has 40, and some for each job in work
_FILES_OF_A_SERVER = 8  # 6 were counted
_M_ARENA_MAX = -8  # malloc.h of glibc; mallopt(3)
_RETURN_S = 1.0
_libc = ctypes.CDLL(None)


def prepare() -> None:
    """Set them for the whole life of the process; before any thread is started."""
    learn_structs()
    # A full collection looks at everything that lives, in the main loop: imported objects never die, and a flood of
    # jobs makes hundreds of thousands of objects that all live for a while.
    gc.freeze()
    gc.set_threshold(_GARBAGE_THRESHOLD)
    # One heap for all threads: glibc has one for each, and keeps in each the memory of its largest burst.
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:  # musl has none, and one heap only
        mallopt(_M_ARENA_MAX, 1)
    # Each large job that waits has its store open; the usual soft limit of 1,024 files is there for select(2) only.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    check_open_files(0)
    child.preload(PRELOADED)


def learn_structs() -> None:
    """Let msgspec learn what each class of ours holds that is imported by now; before threads decode them.

    It learns that when a class is decoded for the first time, and runs Python meanwhile. A second thread that decodes
    the class then finds it half learned, and the process ends with SIGSEGV (seen with msgspec 0.22).
    """
    for struct in _structs(msgspec.Struct):
        if struct.__module__.startswith("obatchd."):
            msgspec.json.Decoder(struct)


def _structs(kind: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for struct in kind.__subclasses__():
        yield struct
        yield from _structs(struct)


def check_open_files(servers: int) -> None:
    """Raise HostError where the process may not have the files open that the daemon needs with so many servers."""
    may, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _LEAST_FILES + servers * _FILES_OF_A_SERVER
    if may != resource.RLIM_INFINITY and may < needed:
        many = f" with {counted(servers, 'server')}" if servers else ""
        raise HostError(
            f"obatchd may have only {counted(may, 'file')} open and needs {needed} or more"
            f"{many}: allow more in the shell with  ulimit -n {_OPEN_FILES}, "
            f"in a unit with LimitNOFILE={_OPEN_FILES}, in a container with --ulimit nofile={_OPEN_FILES}.",
            code="open_files",
        )


async def return_memory(jobs: Sized) -> None:
    """Give freed memory back to the system now and then while there are ``jobs`` in work.

    glibc keeps up to twice the largest block that was ever freed: of bursts of large frames and commits some 10 MB. Its
    threshold for that would cost ten times the page faults in a flood (bench/memory.py, bench/drops.py).
    """
    trim = getattr(_libc, "malloc_trim", None)
    while trim is not None:
        await asyncio.sleep(_RETURN_S)
        if len(jobs):
            await asyncio.to_thread(trim, 0)
