"""What the main process asks of the interpreter, the C library and the system before it begins."""

from __future__ import annotations

import ctypes
import gc
import resource

_GARBAGE_THRESHOLD = 20_000  # new objects between two small collections; Python begins with 700
_OPEN_FILES = 65_536  # as in the systemd unit
# From malloc.h of glibc, with its own beginning values (mallopt(3)).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_TRIM_BYTES = _MMAP_BYTES = 128 * 1024


def prepare() -> None:
    """Set what holds for the whole life of the process; before any thread is started."""
    # A full collection looks at everything that lives, in the main loop: what was imported never dies, and a flood of
    # jobs makes hundreds of thousands of objects that all live for a while.
    gc.freeze()
    gc.set_threshold(_GARBAGE_THRESHOLD)
    _return_memory()
    _allow_many_files()


def _return_memory() -> None:
    """Give freed memory back to the system.

    glibc keeps an arena for each thread, and raises its thresholds to twice the largest block that was ever freed:
    of a burst of large frames and commits some 10 MB stay (bench/memory.py).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none, and none of these habits
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)


def _allow_many_files() -> None:
    """Each large job that waits has its store open; the usual soft limit of 1,024 files is there for select(2) only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
