"""Child processes: real ones, that do what their test says."""

from __future__ import annotations

import asyncio
import multiprocessing.forkserver
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from child_support import (
    ANYTHING,
    echo,
    echo_with_a_loop,
    exit_with,
    fail,
    hang,
    hang_for_good,
    send_raw,
    speak_slowly,
)  # fmt: skip
from fleet_support import wait_for
from process_support import alive

from obatchd import child, frames
from obatchd.child import Child, End, Keeper
from obatchd.frames import Channel


class Watched:
    """A parent that remembers; ``pauses`` are its answers to the ends of its children, then there is no other."""

    def __init__(self, *pauses: float) -> None:
        self.children: list[Child] = []
        self.said: list[Any] = []
        self.ends: list[End] = []
        self._pauses = list(pauses)

    @property
    def pid(self) -> int:
        return self.children[-1].pid

    def started(self, child: Child) -> None:
        self.children.append(child)

    def heard(self, message: Any) -> None:
        self.said.append(message)
        if message == "defect":
            raise ValueError("what is said cannot be used")

    def ended(self, end: End) -> float | None:
        self.ends.append(end)
        return self._pauses.pop(0) if self._pauses else None


@asynccontextmanager
async def kept(work: Callable[[socket.socket], object], parent: Watched, **how: Any) -> AsyncIterator[Watched]:
    keeper = Keeper("test", work, ANYTHING, parent, **how)
    task = asyncio.create_task(keeper.run())
    try:
        await keeper.tried.wait()
        yield parent
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("work", [echo, echo_with_a_loop])
async def test_a_child_that_is_paused_waits_and_loses_nothing(work: Callable[[socket.socket], object]) -> None:
    async with kept(work, Watched()) as parent:
        child = parent.children[0]
        child.pause()
        for number in range(40):
            child.send([number, "x" * 2**20])
        child.send("last")
        await asyncio.sleep(0.3)
        heard = len(parent.said)
        assert heard <= 1  # one may have been on its way
        child.resume()
        await wait_for(lambda: parent.said[-1:] == ["last"])
        assert [said[0] for said in parent.said[:-1]] == list(range(40))
        child.pause()
        child.kill()  # and its end is heard all the same
        await wait_for(lambda: bool(parent.ends))


@pytest.mark.parametrize("work", [echo, echo_with_a_loop])
async def test_messages_of_any_size_go_both_ways(work: Callable[[socket.socket], object]) -> None:
    messages: list[Any] = [b"", "short", {"a": [1, 2.5, None]}, b"x" * 5_000_000, *range(1000)]
    async with kept(work, Watched()) as parent:
        for message in messages:
            assert parent.children[0].send(message)
        await wait_for(lambda: len(parent.said) == len(messages))
        assert parent.said == messages


async def test_a_child_ignores_the_signals_of_a_terminal_and_ends_with_its_parents_end() -> None:
    async with kept(echo, Watched()) as parent:
        parent.children[0].send("there?")
        await wait_for(lambda: parent.said)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(parent.pid, number)
        parent.children[0].send("still there?")
        await wait_for(lambda: len(parent.said) == 2)
    assert parent.ends == []  # it was ended on purpose
    assert not alive(parent.pid)


async def test_a_child_that_hangs_ends_with_its_parents_end() -> None:
    async with kept(hang, Watched(), exit_s=0.0) as parent:
        await wait_for(lambda: parent.said)
    await wait_for(lambda: not alive(parent.pid))


async def test_a_child_that_does_not_notice_is_killed() -> None:
    async with kept(hang_for_good, Watched()) as parent:
        await wait_for(lambda: parent.said)
    await wait_for(lambda: not alive(parent.pid))


@pytest.mark.parametrize(
    ("work", "words"),
    [(partial(exit_with, 3), "died with exit code 3"), (fail, "died with exit code 1")],
)
async def test_how_a_child_ended_is_said(work: Callable[[socket.socket], object], words: str) -> None:
    async with kept(work, Watched()) as parent:
        await wait_for(lambda: parent.ends)
        assert parent.ends[0].words == words


async def test_a_killed_child_is_followed_by_another_one() -> None:
    async with kept(echo, Watched(0.0)) as parent:
        os.kill(parent.pid, signal.SIGKILL)
        await wait_for(lambda: len(parent.children) == 2)
        assert parent.ends[0].words == "died of signal 9"
        parent.children[1].send("hello")
        await wait_for(lambda: parent.said)
        assert not parent.children[0].send("hello")


async def test_no_other_child_follows_where_the_parent_wants_none() -> None:
    parent = Watched(0.0)
    async with asyncio.timeout(20):
        await Keeper("test", partial(exit_with, 0), ANYTHING, parent).run()
    assert len(parent.children) == len(parent.ends) == 2


def test_only_a_child_that_cannot_live_is_followed_after_a_pause() -> None:
    assert End("died", 4.9).pause_s > 0.0 == End("died", 5.0).pause_s


async def test_a_silent_child_is_killed_and_one_that_speaks_is_not() -> None:
    async with kept(hang_for_good, Watched(), silent_s=0.3) as parent:
        await wait_for(lambda: parent.ends)
        assert parent.ends[0].words == "said nothing for 0.3 s"
        assert parent.ends[0].lived_s >= 0.3
        await wait_for(lambda: not alive(parent.pid))
    async with kept(speak_slowly, Watched(), silent_s=1.5) as parent:
        await wait_for(lambda: len(parent.said) >= 40)
        assert parent.ends == []


async def test_a_loop_that_stood_still_takes_no_child_for_silent() -> None:
    async with kept(speak_slowly, Watched(), silent_s=1.5) as parent:
        await wait_for(lambda: parent.said)
        time.sleep(2.0)
        said = len(parent.said)
        await wait_for(lambda: len(parent.said) > said)
        assert parent.ends == []


async def test_a_child_that_is_killed_is_not_listened_to_any_more() -> None:
    async with kept(speak_slowly, Watched()) as parent:
        await wait_for(lambda: parent.said)
        parent.children[0].kill()
        parent.children[0].kill()
        await wait_for(lambda: parent.ends)
        assert not alive(parent.pid)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (struct.pack("<I", frames.FRAME_LIMIT_BYTES + 1), "is ended after a defect (ValueError)"),
        (struct.pack("<I", 1) + b"\xc1", "is ended after a defect (DecodeError)"),
        (frames.frame("defect"), "is ended after a defect (ValueError)"),
    ],
)
async def test_what_is_no_message_ends_the_child_and_not_the_daemon(data: bytes, words: str) -> None:
    async with kept(partial(send_raw, data), Watched()) as parent:
        await wait_for(lambda: parent.ends)
        await wait_for(lambda: not alive(parent.pid))
        assert parent.ends[0].words == words


async def test_a_child_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [OSError(24, "Too many open files"), None]
    make_pair = socket.socketpair

    def pair() -> tuple[socket.socket, socket.socket]:
        if (error := pairs.pop(0)) is not None:
            raise error
        return make_pair()

    monkeypatch.setattr("obatchd.child.socket.socketpair", pair)
    async with kept(echo, Watched(0.0)) as parent:
        await wait_for(lambda: parent.children)
        assert [end.words for end in parent.ends] == ["cannot be started: Too many open files (errno 24)"]


async def test_a_forkserver_that_is_killed_while_it_starts_a_child_is_no_defect(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, asked = child._forkserver.Process.start, []

    def start(process: Any) -> None:
        asked.append(process)
        if len(asked) == 1:
            raise EOFError("unexpected EOF")  # what multiprocessing says then
        real(process)

    monkeypatch.setattr(child._forkserver.Process, "start", start)
    async with kept(echo, Watched(0.0)) as parent:
        await wait_for(lambda: parent.children)
        assert [end.words for end in parent.ends] == ["cannot be started: unexpected EOF"]
    assert "child_not_started" not in caplog.text


async def test_a_parent_that_gives_up_while_a_child_starts_closes_nothing_under_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread that starts a process goes on; a socket closed meanwhile would be another file when it is sent."""
    starting, go, sent = threading.Event(), threading.Event(), []
    real = child._forkserver.Process.start

    def start(process: Any) -> None:
        [theirs] = [one for one in process._args if isinstance(one, socket.socket)]
        starting.set()
        go.wait(20)
        sent.append(theirs.fileno())
        real(process)

    monkeypatch.setattr(child._forkserver.Process, "start", start)
    parent = Watched()
    task = asyncio.create_task(Keeper("test", echo, ANYTHING, parent).run())
    await wait_for(starting.is_set)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert parent.children == []
    go.set()
    await wait_for(lambda: sent)
    assert sent[0] > 0


async def test_a_message_whose_wait_was_cancelled_is_the_next_ones() -> None:
    ours, theirs = socket.socketpair()
    with theirs, closing(await Channel.open(ours, ANYTHING)) as channel:
        whole = frames.frame("a message in two parts")
        theirs.sendall(whole[:7])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await channel.receive()
        theirs.sendall(whole[7:])
        assert await channel.receive() == "a message in two parts"
        theirs.close()
        with pytest.raises(ConnectionError):
            await channel.receive()
        channel.close()
        assert not channel.send("anybody?")


def test_a_fork_has_its_own_socket_and_no_other() -> None:
    kept_open, other = socket.socketpair()
    with child.fork(echo, [other]) as connection:
        other.close()
        assert kept_open.recv(1) == b""  # nobody else holds the other end
        frames.send(connection, "hello")
        assert frames.receive(connection, ANYTHING) == "hello"
    kept_open.close()


_FROM_ANYWHERE = """
import asyncio, sys
from child_support import ANYTHING, echo
from obatchd.child import Keeper, preload
from test_child import Watched, wait_for

async def main():
    parent = Watched()
    keeping = asyncio.create_task(Keeper("test", echo, ANYTHING, parent).run())
    await wait_for(lambda: parent.children or parent.ends)
    parent.children[0].send("hello")
    await wait_for(lambda: parent.said or parent.ends)
    print(parent.said, parent.ends)
    keeping.cancel()

if __name__ == "__main__":
    preload(["obatchd.dispatch.worker.worker"])
    asyncio.run(main())
"""


@pytest.mark.parametrize("decoy", ["obatchd/__init__.py", "obatchd/__none__.py", "msgspec.py", "selectors.py"])
def test_children_import_nothing_from_the_current_directory(tmp_path: Path, decoy: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / decoy).parent.mkdir(parents=True)
    (elsewhere / decoy).write_text("raise RuntimeError('from the current directory')\n")
    script = tmp_path / "script.py"
    script.write_text(_FROM_ANYWHERE)
    tests = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tests, tests.parent, tests.parents[1])))}
    command: list[str | Path] = [sys.executable, script]
    done = subprocess.run(
        command, cwd=elsewhere, env=environment, timeout=60, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("['hello'] []\n", "")


def blocked(pid: int) -> bool:
    mask = int(Path(f"/proc/{pid}/status").read_text().split("SigBlk:")[1].split()[0], 16)
    return all(mask >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))


async def test_no_signal_for_the_whole_group_ends_the_forkserver() -> None:
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]
    async with kept(echo, Watched()) as parent:
        forkserver = psutil.Process(parent.pid).ppid()
        assert forkserver != os.getpid() and blocked(forkserver) and blocked(parent.pid)
        assert not blocked(os.getpid())
        parent.children[0].send("there?")
        await wait_for(lambda: parent.said)


class Counting(Watched):
    """Counts the open files of this process at each end."""

    def __init__(self, *pauses: float) -> None:
        super().__init__(*pauses)
        self.open_files: list[int] = []

    def ended(self, end: End) -> float | None:
        self.open_files.append(psutil.Process().num_fds())
        return super().ended(end)


async def test_the_end_of_a_child_leaves_no_file_open_whoever_still_knows_it() -> None:
    """Before, two pipes stayed open until the garbage collector came by, which it seldom does."""
    parent = Counting(0.0, 0.0, 0.0)
    async with kept(partial(exit_with, 3), parent):
        await wait_for(lambda: len(parent.ends) == 4)
    first, *later = parent.open_files  # the first one starts the forkserver
    assert later == [first] * 3 and len({child.pid for child in parent.children}) == 4
