"""Processes of our own at the other end of a socket: how each starts, ends, and is followed by another.

Workers, the response writer, the preparer and the probe are such children. multiprocessing's forkserver starts them,
which has their imports loaded, so that another one is there within some 10 ms. ``ProcessPoolExecutor`` breaks as a
whole when one process dies. What passes over the socket: :mod:`obatchd.frames`.

A child ignores SIGINT, SIGTERM and SIGUSR1: Ctrl-C in a terminal reaches the whole process group before the daemon has
drained, and Slurm may signal every process of a step (its proctrack/linuxproc does).
It ends when the daemon's end of its socket closes, so that nothing of ours outlives a killed daemon. It may hang in the
kernel and never end, so nobody waits for its end but for a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import multiprocessing.process
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, Generic, NamedTuple, Never, Protocol, TypeVar

import attrs

from obatchd import log
from obatchd.frames import Channel, Decoder, Drained, Message

_log = log.get(__name__)
_LOOKS = 10  # at a silent child, until it is given up
_EXIT_S = 0.5
_KILLED_S = 0.5  # the longest that is waited for one that was killed: it may hang in the kernel
_NOT_FOR_CHILDREN = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SHORT_LIFE_S = 5.0  # a child that lived no longer is followed by another one after a pause
_PAUSE_S = 1.0
_forkserver = multiprocessing.get_context("forkserver")
Heard = TypeVar("Heard", contravariant=True)
Work = Callable[[socket.socket], object]  # of a child, with its end of the socket


def preload(modules: Sequence[str]) -> None:
    """Let the forkserver import modules of children, once for all; to be called before the first child is started.

    Nothing is imported from the current directory, which is in the path of ``python -c``, as the forkserver runs.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    _forkserver.set_forkserver_preload(list(modules))


# In the child.


def fork(work: Work, close: Sequence[socket.socket] = ()) -> socket.socket:
    """Start a child as a fork of this process, which must have one thread; returns our end of its socket.

    ``close`` are sockets of this process that the child must not keep open.
    """
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        for other in (ours, *close):
            other.close()
        _main(work, theirs)
    theirs.close()
    return ours


def _main(work: Work, connection: socket.socket) -> Never:
    for number in _NOT_FOR_CHILDREN:
        signal.signal(number, signal.SIG_IGN)
    status = 1
    try:
        with contextlib.suppress(ConnectionError):  # the daemon is gone
            work(connection)
        status = 0
    except Exception:  # noqa: BLE001 - the last chance to say why it ends; another one follows
        traceback.print_exc()
    finally:
        # Without os._exit the interpreter would wait for its threads.
        sys.stderr.flush()
        os._exit(status)


def end_with_parent(connection: socket.socket) -> None:
    """End this process when the other end closes, whatever it does then; for a child that is told nothing."""

    def wait() -> Never:
        with contextlib.suppress(OSError):
            while connection.recv(1):
                pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


# In the daemon.


class End(NamedTuple):
    """How a child ended, in words that follow a name: ``died of signal 9``, ``said nothing for 30 s`` …

    ``host`` names the machine that was lost, and the child with it; empty where the child ended by itself.
    """

    words: str
    lived_s: float
    silent: bool = False  # it was ended, because it said nothing for too long
    host: str = ""

    @property
    def pause_s(self) -> float:
        """Until another one is started. One that cannot live is not started again and again without a pause."""
        return _PAUSE_S if self.lived_s < _SHORT_LIFE_S else 0.0


@attrs.define(eq=False)
class Child:
    """A process that runs, as its parent sees it."""

    _process: BaseProcess
    _channel: Channel[Any]
    pid: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def away_s(self) -> float:
        """How far away it is; not at all."""
        return 0.0

    def send(self, message: object) -> bool:
        """Queue a message. False: the child is known to be gone, and the message with it."""
        return self._channel.send(message)

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be sent that nothing large should follow; only of one with a listener."""
        return self._channel.is_full

    def listen(self, listener: Drained) -> None:
        """Have ``listener`` hear when there is room again after ``is_full``."""
        self._channel.listen(listener)

    def pause(self) -> None:
        """Hear nothing more of it until ``resume``; it waits when its socket is full. Its end is not heard either."""
        self._channel.pause()

    def resume(self) -> None:
        self._channel.resume()

    def kill(self) -> None:
        """End a child that hangs, and listen to it no longer; it then ends like one that died."""
        if not self._channel.is_closed:  # else it may be gone, and its pid somebody else's
            self._signal()
            self._channel.close()
            self._channel.resume()

    def _signal(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    async def end(self, exit_s: float) -> str:
        """Close the socket, which ends the child; kill one that has not ended after ``exit_s``. How it ended."""
        self._channel.close()
        if exit_s:
            await asyncio.to_thread(self._process.join, exit_s)
            if self._process.exitcode is None:
                self._signal()
                await asyncio.to_thread(self._process.join, _KILLED_S)
        code = self._process.exitcode
        if code is not None:
            self._process.close()  # now: somebody may know this child until the garbage collector comes by
        return "died" if code is None else f"died of signal {-code}" if code < 0 else f"died with exit code {code}"


class Parent(Protocol[Heard]):
    """The owner of a child: decides the consequences of its messages, and of its end. Called in the event loop."""

    def started(self, child: Child) -> None:
        """A process runs. It can get its first messages at once."""

    def heard(self, message: Heard) -> None:
        """The child said something."""

    def ended(self, end: End) -> float | None:
        """The child is gone, or could not be started. Returns seconds until the next is started; None: none is."""


@attrs.define(eq=False)
class Keeper(Generic[Message]):
    """Keeps one child running."""

    name: str  # of the process, for the log
    _work: Work  # it returns, or raises ConnectionError, when its end of the socket closes; pickled
    _decoder: Decoder[Message]  # of the child's messages
    _parent: Parent[Message]
    # A child that says nothing for so long is killed; None: it may be silent. A change holds from the next message on.
    silent_s: float | None = attrs.field(default=None, kw_only=True)
    _exit_s: float = attrs.field(default=_EXIT_S, kw_only=True)  # how long its end is waited for; 0: not at all
    # Set when the first process runs, or could not be started.
    tried: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)

    async def run(self) -> None:
        """Start a child, and another one after its end, until the parent wants none; cancelled, end it."""
        try:
            while True:
                began_s = time.monotonic()
                words, silent = await self._one()
                pause_s = self._parent.ended(End(words, time.monotonic() - began_s, silent))
                self.tried.set()
                if pause_s is None:
                    return
                await asyncio.sleep(pause_s)
        finally:
            self.tried.set()  # also after a defect: whoever waits is not to wait for ever

    async def _one(self) -> tuple[str, bool]:
        """One child, from its start to its end; says how it ended, and whether it was silent for too long."""
        try:
            process, connection = await _spawn(self.name, self._work)
            channel = await Channel.open(connection, self._decoder)
        except (OSError, EOFError) as error:  # no descriptor or memory now, or the forkserver was killed meanwhile
            return f"cannot be started: {log.reason(error)}", False
        except Exception as error:  # noqa: BLE001 - it is tried again
            _log.exception("child_not_started", child=self.name)
            return f"cannot be started: {log.reason(error)}", False
        child, reason, silent = Child(process, channel), "", False
        try:
            self._parent.started(child)
            self.tried.set()
            while True:
                self._parent.heard(await self._next(channel))
        except ConnectionError:
            pass
        except TimeoutError:
            child.kill()
            silent, reason = True, f"said nothing for {self.silent_s:g} s"
        except Exception as error:  # noqa: BLE001 - no message of a child must end the daemon
            _log.exception("child_failed", child=self.name)
            reason = f"is ended after a defect ({type(error).__name__})"
        finally:
            words = await child.end(self._exit_s)
        return reason or words, silent

    async def _next(self, channel: Channel[Message]) -> Message:
        if self.silent_s is None:
            return await channel.receive()
        for _ in range(_LOOKS):  # looks and not seconds, because this loop itself may have stood still
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.silent_s / _LOOKS):
                    return await channel.receive()
        raise TimeoutError


async def _spawn(name: str, work: Work) -> tuple[BaseProcess, socket.socket]:
    """Start a process; returns it and our end of its socket."""
    starting = asyncio.get_running_loop().run_in_executor(None, _start, name, work)
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        starting.add_done_callback(_abandon)
        raise


def _start(name: str, work: Work) -> tuple[BaseProcess, socket.socket]:
    # The sockets are made here because this thread goes on when its waiter is cancelled, and a number that
    # is closed meanwhile may be another file's when it is sent to the forkserver.
    ours, theirs = socket.socketpair()
    # A signal for the whole group must not end a forkserver that still imports. What is started has the same signals
    # blocked; multiprocessing unblocks them itself when it has started the resource tracker, so that goes first.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_CHILDREN)
    try:
        with theirs:
            process = _forkserver.Process(target=_main, args=(work, theirs), name=name, daemon=True)
            process.start()
    except BaseException:
        ours.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # multiprocessing waits for its children when the interpreter ends, and one may hang in the kernel.
    multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
    return process, ours


def _abandon(started: asyncio.Future[tuple[BaseProcess, socket.socket]]) -> None:
    if not started.cancelled() and started.exception() is None:
        started.result()[1].close()
