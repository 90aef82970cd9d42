"""A confined child: what it can do, how it is ended, and that nothing of it is left."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from obatchd import confined
from obatchd.confined import Died, Limits, Send

MIB = 1024**2
_decoder: msgspec.msgpack.Decoder[list[int]] = msgspec.msgpack.Decoder(list[int])


@pytest.fixture
def parent() -> Iterator[socket.socket]:
    """The end of the daemon."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield theirs


def run(
    work: Callable[[Send], None], parent: socket.socket, timeout_s: float = 10, memory_bytes: int = 64 * MIB
) -> list[int]:
    return [
        n for message in confined.messages(work, _decoder, Limits(timeout_s, memory_bytes), parent) for n in message
    ]


def tried(action: Callable[[], object]) -> int:
    try:
        action()
    except OSError as error:
        return error.errno or 0
    return 0


def test_it_has_no_network_no_program_no_file_and_no_other_process(parent: socket.socket, tmp_path: Path) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address, path, me = listening.getsockname(), tmp_path / "file", os.getpid()
        path.touch()
        open_before = os.open(path, os.O_WRONLY)

        def misbehave(send: Send) -> None:
            send([
                tried(lambda: socket.create_connection(address)),
                tried(lambda: socket.socket(socket.AF_UNIX)),
                tried(lambda: os.execv("/bin/true", ["true"])),
                tried(lambda: os.kill(me, signal.SIGKILL)),
                tried(lambda: os.write(open_before, b"x")),
            ])  # fmt: skip

        assert run(misbehave, parent) == [errno.EACCES] * 4 + [errno.EFBIG]
        os.close(open_before)
    assert path.read_bytes() == b""


def test_it_changes_no_file_and_leaves_no_process_behind(parent: socket.socket, tmp_path: Path) -> None:
    """A write limit of 0 bytes lets it empty, rename and delete files, and write into the memory of its parent."""
    path, me = tmp_path / "file", os.getpid()
    path.write_bytes(b"kept")
    actions: list[Callable[[], object]] = [
        lambda: os.open(path, os.O_WRONLY),
        lambda: os.open(path, os.O_RDONLY | os.O_TRUNC),
        lambda: os.open(tmp_path / "new", os.O_RDONLY | os.O_CREAT),
        lambda: os.open(f"/proc/{me}/mem", os.O_RDWR),
        lambda: os.truncate(path, 0),
        lambda: os.unlink(path),
        lambda: os.rename(path, tmp_path / "other"),
        lambda: os.link(path, tmp_path / "other"),
        lambda: os.symlink(path, tmp_path / "other"),
        lambda: os.mkdir(tmp_path / "folder"),
        lambda: os.rmdir(tmp_path),
        lambda: os.mkfifo(tmp_path / "pipe"),
        lambda: os.chmod(path, 0o666),
        lambda: os.chown(path, os.getuid(), os.getgid()),
        lambda: os.setxattr(path, "user.x", b"x"),
        lambda: resource.prlimit(me, resource.RLIMIT_CPU, (1, 1)),
        lambda: os.fork() or os._exit(0),
    ]

    def misbehave(send: Send) -> None:
        send([tried(action) for action in actions])

    assert run(misbehave, parent) == [errno.EACCES] * len(actions)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"kept", ["file"])


def test_a_signal_to_a_thread_is_a_signal_to_a_process(parent: socket.socket) -> None:
    libc, me = ctypes.CDLL(None, use_errno=True), os.getpid()
    tgkill = 234 if platform.machine() == "x86_64" else 131

    def misbehave(send: Send) -> None:
        assert libc.syscall(tgkill, me, me, 0) == -1
        send([ctypes.get_errno(), libc.syscall(tgkill, os.getpid(), os.getpid(), 0)])

    assert run(misbehave, parent) == [errno.EACCES, 0]


def test_it_may_have_threads_and_read_files(parent: socket.socket, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")

    def work(send: Send) -> None:
        thread = threading.Thread(target=lambda: send([len(path.read_bytes())]))
        thread.start()
        thread.join()

    assert run(work, parent) == [3]


def test_the_calls_of_other_numbers_are_no_way_out(parent: socket.socket) -> None:
    """io_uring opens sockets by itself; x86-64 has a second set of numbers."""
    libc = ctypes.CDLL(None, use_errno=True)

    def misbehave(send: Send) -> None:
        found = []
        for number in (425, 0x40000000 + 41):
            assert libc.syscall(number, 2, 1, 0) == -1
            found.append(ctypes.get_errno())
        send(found)

    assert run(misbehave, parent) == [errno.EACCES] * 2


def grow(send: Send) -> None:
    hoard = []
    while True:
        hoard.append(bytearray(16 * MIB))


def spin(send: Send) -> None:
    while True:
        pass


def crash(send: Send) -> None:
    send([1])
    ctypes.string_at(0)


@pytest.mark.parametrize(
    ("work", "cause", "words"),
    [
        (grow, "memory", "needs more than 64 MiB of memory"),
        (spin, "timeout", "took longer than 0.5 s"),
        (lambda send: time.sleep(60), "timeout", "took longer than 0.5 s"),
        (crash, "crash", "crashed (signal 11)"),
        (lambda send: os._exit(3), "crash", "crashed (exit code 3)"),
        (lambda send: os.abort(), "crash", "crashed (signal 6)"),
        (lambda send: send(1 / 0), "crash", "crashed (exit code 1)"),
    ],
)
def test_one_that_does_not_end_well_is_told_from_others(
    parent: socket.socket, work: Callable[[Send], None], cause: str, words: str
) -> None:
    before = psutil.Process().children()
    with pytest.raises(Died) as died:
        run(work, parent, timeout_s=0.5 if cause == "timeout" else 20)
    assert (died.value.cause, died.value.words) == (cause, words)
    assert psutil.Process().children() == before


def test_nothing_is_read_where_the_kernel_confines_nobody(
    parent: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(Died, match="cannot be confined"):
        run(lambda send: send([1]), parent)


def test_messages_come_as_they_are_sent_and_nobody_has_to_hear_all(parent: socket.socket) -> None:
    def talk(send: Send) -> None:
        for number in range(1000):
            send([number])
        time.sleep(60)

    before = psutil.Process().children()
    heard = confined.messages(talk, _decoder, Limits(30, 64 * MIB), parent)
    assert [next(heard), next(heard)] == [[0], [1]]
    heard.close()  # type: ignore[attr-defined]
    assert psutil.Process().children() == before


def test_it_ends_with_its_parent_and_that_with_the_daemon() -> None:
    """The process between them is killed, or its daemon goes: the confined one is gone at once."""
    program = (
        "import os, socket, sys, time, msgspec\n"
        "from obatchd import confined\n"
        "daemon = socket.socket(fileno=0)\n"
        "def work(send):\n    send([os.getpid()])\n    time.sleep(60)\n"
        "limits, decoder = confined.Limits(50, 2**26), msgspec.msgpack.Decoder(list[int])\n"
        "for [pid] in confined.messages(work, decoder, limits, daemon):\n"
        "    print(pid, flush=True)\n"
    )
    for kill in (True, False):
        ours, theirs = socket.socketpair()
        with ours, subprocess.Popen([sys.executable, "-c", program], stdin=theirs, stdout=subprocess.PIPE) as between:
            theirs.close()
            assert between.stdout is not None
            confined_one = psutil.Process(int(between.stdout.readline()))
            if kill:
                between.kill()
            else:
                ours.shutdown(socket.SHUT_RDWR)
            assert between.wait(5) == (-signal.SIGKILL if kill else 0)
            deadline_s = time.monotonic() + 5
            while confined_one.is_running() and confined_one.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
