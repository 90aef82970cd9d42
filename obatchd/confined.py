"""Work on a stranger's bytes in a child that can hurt nobody: parsers of sources, readers of archives and tables.

The child is a fork of a process with one thread (2 ms), so that libraries are imported once. The kernel ends it when it
takes too long (setitimer(2): the default of SIGALRM kills, whatever a parser is doing) or computes too much
(RLIMIT_CPU), gives it no more memory than its limit (RLIMIT_AS) and lets it write into no file (RLIMIT_FSIZE). A filter
of system calls (seccomp(2)) leaves it no network, no other program and no other process, and no file to open for
writing, to rename or to delete. It can only read files and send messages.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, Never, TypeVar

from obatchd import frames

Send = Callable[[object], None]
Message = TypeVar("Message")
_NO_MEMORY, _NOT_CONFINED = 77, 78  # exit codes
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38  # linux/prctl.h
_MODE_FILTER = 2  # linux/seccomp.h
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16  # struct seccomp_data; the lower half of an argument comes first
_ALLOW, _KILL, _REFUSE, _UNKNOWN = 0x7FFF0000, 0x80000000, 0x00050000 | 13, 0x00050000 | 38  # EACCES, ENOSYS
_X32 = 0x40000000  # the calls of x86-64 have other numbers there
_TO_CHANGE = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
_CLONE_THREAD = 0x10000  # linux/sched.h
_CLONE3 = 435  # its flags cannot be seen; without it the C library uses clone


class _Calls(NamedTuple):
    """Numbers of system calls: asm/unistd_64.h, asm-generic/unistd.h."""

    architecture: int  # AUDIT_ARCH of linux/audit.h
    refused: tuple[int, ...]
    opening: tuple[tuple[int, int], ...]  # with the place of the flags
    clone: int
    tgkill: int
    prlimit: int


# Refused are, in this order: socket, connect, execve, execveat, kill, pidfd_send_signal, ptrace, process_vm_readv,
# process_vm_writev, io_uring_setup (which opens sockets, too), tkill, rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_getfd;
# openat2, truncate, ftruncate, renameat, renameat2, linkat, symlinkat, unlinkat, mkdirat, mknodat, fchmod, fchmodat,
# fchmodat2, fchown, fchownat, and those that set and remove extended attributes; then older forms of x86-64: creat,
# fork, vfork, rename, mkdir, rmdir, link, unlink, symlink, chmod, chown, lchown, mknod.
_CALLS = {
    "x86_64": _Calls(
        0xC000003E,
        (41, 42, 59, 322, 62, 424, 101, 310, 311, 425, 200, 129, 297, 438,
         437, 76, 77, 264, 316, 265, 266, 263, 258, 259, 91, 268, 452, 93, 260, 188, 189, 190, 463, 197, 198, 199, 466,
         85, 57, 58, 82, 83, 84, 86, 87, 88, 90, 92, 94, 133),
        ((2, 1), (257, 2)), 56, 234, 302,
    ),
    "aarch64": _Calls(
        0xC00000B7,
        (198, 203, 221, 281, 129, 424, 117, 270, 271, 425, 130, 138, 240, 438,
         437, 45, 46, 38, 276, 37, 36, 35, 34, 33, 52, 53, 452, 55, 54, 5, 6, 7, 463, 14, 15, 16, 466),
        ((56, 2),), 220, 131, 261,
    ),
}  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)


class Limits(NamedTuple):
    timeout_s: float
    memory_bytes: int  # beside what the forking process has


class Died(Exception):
    """The child did not end well; ``words`` follow a name: ``took longer than 20 s``, ``crashed (signal 11)``."""

    def __init__(self, cause: Literal["timeout", "memory", "crash"], words: str) -> None:
        super().__init__(words)
        self.cause = cause
        self.words = words


def messages(
    work: Callable[[Send], None], decoder: frames.Decoder[Message], limits: Limits, parent: socket.socket
) -> Iterator[Message]:
    """What ``work`` sends, which is run in the child. The calling process must have one thread.

    Closing the iterator ends the child. The end of ``parent``, on which nothing may come meanwhile, ends both.
    Raises Died after the last message where the child did not end well.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        parent.close()
        _child(work, theirs, limits)
    theirs.close()
    ended = False
    try:
        with ours:
            while True:
                ready, _, _ = select.select([ours, parent], [], [])
                if parent in ready:
                    os.kill(pid, signal.SIGKILL)
                    os._exit(0)
                try:
                    message = frames.receive(ours, decoder)
                except ConnectionError:
                    break
                yield message
        ended = True
    finally:
        if not ended:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    _judge(status, limits)


def _judge(status: int, limits: Limits) -> None:
    code = os.waitstatus_to_exitcode(status)
    if code in (-signal.SIGALRM, -signal.SIGXCPU):
        raise Died("timeout", f"took longer than {limits.timeout_s:g} s")
    if code == _NO_MEMORY:
        raise Died("memory", f"needs more than {limits.memory_bytes // 1024**2} MiB of memory")
    if code == _NOT_CONFINED:
        raise Died("crash", "cannot be confined: this kernel has no seccomp, or the machine is no x86-64 or ARM64")
    if code:
        raise Died("crash", f"crashed ({f'signal {-code}' if code < 0 else f'exit code {code}'})")


def _child(work: Callable[[Send], None], connection: socket.socket, limits: Limits) -> Never:
    try:
        # Complaints of parsers concern their document, not the daemon's log.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(nowhere, standard)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # where memory is short, this process goes first
        _limit(limits)
        try:
            _confine()
        except OSError:
            os._exit(_NOT_CONFINED)
        work(lambda message: frames.send(connection, message))
        os._exit(0)
    except MemoryError:
        os._exit(_NO_MEMORY)
    finally:
        os._exit(1)


def _limit(limits: Limits) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limits.timeout_s)
    seconds = int(limits.timeout_s) + 1
    with open("/proc/self/statm", "rb") as file:  # proc(5): the first number is the size in pages
        size = int(file.read().split()[0]) * resource.getpagesize() + limits.memory_bytes
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_AS, size, size),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(kind, (soft, hard))


def _confine() -> None:
    """Take away network, programs, processes and changes of files, for good.

    Raises OSError where the kernel does not do it.
    """
    machine = platform.machine()
    if machine not in _CALLS:
        raise OSError(f"system calls of {machine} are not known")
    calls = _CALLS[machine]
    steps = [
        (_LOAD, 0, 0, _MACHINE_AT), (_IF_EQUAL, 1, 0, calls.architecture), (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT), (_IF_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _REFUSE),
        (_IF_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _UNKNOWN),
        *(step for number in calls.refused for step in ((_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE))),
        *(step for number, place in calls.opening for step in _where(number, place, _IF_ANY_BIT, _TO_CHANGE, _REFUSE)),
        *_where(calls.clone, 0, _IF_ANY_BIT, _CLONE_THREAD, _ALLOW),
        *_where(calls.tgkill, 0, _IF_EQUAL, os.getpid(), _ALLOW),  # as abort(3) does
        *_where(calls.prlimit, 0, _IF_EQUAL, 0, _ALLOW),
        (_RETURN, 0, 0, _ALLOW),
    ]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(program))


def _where(number: int, argument: int, test: int, value: int, verdict: int) -> list[tuple[int, int, int, int]]:
    """The verdict on a call where ``test`` holds for its argument; the other one where it does not."""
    other = _ALLOW if verdict == _REFUSE else _REFUSE
    return [
        (_IF_EQUAL, 0, 4, number), (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument),
        (test, 0, 1, value), (_RETURN, 0, 0, verdict), (_RETURN, 0, 0, other),
    ]  # fmt: skip


def _prctl(option: int, *values: int) -> None:
    padded = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    if _libc.prctl(option, *padded):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
