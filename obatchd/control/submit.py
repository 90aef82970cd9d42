"""Takes submissions over ``<runtime>/submit.sock``: drops handed over as open descriptors.

So any file that its user can read can be submitted, whatever the rights of the inbox. A client that lies, stalls or
goes away costs one thread for at most a frame's timeout, and its submission; one that goes on stalling holds up the
other submissions of its user alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeGuard

import msgspec

from obatchd import errors, log
from obatchd.client.handover import BATCH, close_all, receive_frame, send_frame
from obatchd.client.runtime import SUBMIT_SOCKET
from obatchd.control import auth
from obatchd.control.api import INTERNAL, error_document
from obatchd.control.auth import Access
from obatchd.control.operations import JobOperations, Submission
from obatchd.control.sockets import listen
from obatchd.documents.answers import ErrorDocument
from obatchd.documents.jobs import Submitted
from obatchd.tasks import TaskOwner, TaskSet

_log = log.get(__name__)
_SIMULTANEOUS = 4  # submissions at once, each holds a thread; further clients wait
_OF_ONE_USER = 2  # of them
_CONNECTIONS_OF_ONE_USER = 64  # that wait for it, too
_FRAME_TIMEOUT_S = 30.0
_STOP_GRACE_S = 5.0
_NAME_LIMIT_BYTES = 255  # NAME_MAX
_FILES_LIMIT = 1_000_000
TOKEN_LIMIT = 64  # characters
_DEPTH = 33  # one more than folders in one another that are read


class SubmitServer:
    """Accepts submissions while it runs.

    Args:
        owner: told when no submission is accepted any more. One that fails is its client's alone.
    """

    def __init__(
        self,
        jobs: JobOperations,
        runtime_dir: Path,
        access: Access,
        owner: TaskOwner,
        *,
        frame_timeout_s: float = _FRAME_TIMEOUT_S,
    ) -> None:
        self._jobs = jobs
        self._access = access
        self._path = runtime_dir / SUBMIT_SOCKET
        self._frame_timeout_s = frame_timeout_s  # longest wait for a client's next frame
        self._threads = ThreadPoolExecutor(_SIMULTANEOUS, thread_name_prefix="submit")
        self._free = asyncio.Semaphore(_SIMULTANEOUS)
        self._turns: dict[int, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(_OF_ONE_USER))
        self._connections: Counter[int] = Counter()
        self._accepting = TaskSet(owner)
        self._serving = TaskSet(self)
        self._tasks: dict[asyncio.Task[None], socket.socket] = {}
        self._listener: socket.socket | None = None

    async def start(self) -> None:
        """Listen; raises SpoolError where the socket cannot be made."""
        self._listener = listen(self._path, shared=self._access.is_shared)
        self._accepting.start(self._accept(self._listener), "submit-accept")

    async def stop(self) -> None:
        """Accept no more; submissions in progress have a moment to end before their clients are cut off."""
        await self._accepting.stop()
        if self._listener is not None:
            self._listener.close()
            self._path.unlink(missing_ok=True)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_STOP_GRACE_S)
        for connection in self._tasks.values():
            with contextlib.suppress(OSError):  # the client may have gone already
                connection.shutdown(socket.SHUT_RDWR)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # e.g. no descriptors left: try again later
                _log.warning("submit_accept_failed", error=error)
                await asyncio.sleep(1)
                continue
            task = self._serving.start(self._serve(connection), "submission")
            self._tasks[task] = connection
            task.add_done_callback(self._tasks.pop)

    def task_failed(self, name: str, error: BaseException) -> None:
        """A submission failed by a defect: its client finds its connection closed, the others go on."""

    async def _serve(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        with connection:
            answer = await self._answer(connection)
            connection.setblocking(False)  # by itself it fills no buffer: nobody has to wait for the client here
            try:
                send_frame(connection, msgspec.to_builtins(answer))
            except OSError as error:
                _log.info("submitter_gone", error=error)

    async def _answer(self, connection: socket.socket) -> Submitted | ErrorDocument:
        files = received_files(connection, self._frame_timeout_s)
        peer: auth.Peer | None = None
        try:
            peer = auth.peer_of(connection.fileno())
            await self._access.caller(peer)
            async with self._turn(peer.uid):
                header, descriptors = await asyncio.get_running_loop().run_in_executor(
                    self._threads, receive_frame, connection, self._frame_timeout_s
                )
                close_all(descriptors)
                return Submitted(await self._jobs.submit(_submission(header, peer, files)))
        except errors.ObatchError as error:
            _log.info("submission_refused", owner=peer.uid if peer else None, code=error.code)
            return error_document(error)
        except Exception:  # noqa: BLE001 - one faulty submission must not end the server; the traceback is in the log
            _log.exception("submission_failed")
            return INTERNAL
        finally:
            files.close()  # descriptors that nobody took

    @contextlib.asynccontextmanager
    async def _turn(self, uid: int) -> AsyncIterator[None]:
        """A place among the simultaneous submissions.

        Raises:
            ControlError: too many of the user's clients wait for one.
        """
        if self._connections[uid] >= _CONNECTIONS_OF_ONE_USER:
            raise errors.ControlError(f"uid {uid} has too many submissions under way; try again later", code="busy")
        self._connections[uid] += 1
        try:
            async with self._turns[uid], self._free:
                yield
        finally:
            self._connections[uid] -= 1


def _submission(header: dict[str, Any], peer: auth.Peer, files: Iterator[tuple[str, int]]) -> Submission:
    wanted = header.get("submit")
    if not isinstance(wanted, dict):
        raise errors.ControlError('the first frame must be {"submit": {…}}', code="bad_frame")
    name, kind, settings = wanted.get("name"), wanted.get("kind"), wanted.get("settings", {})
    if kind not in ("file", "folder") or not isinstance(settings, dict):
        raise errors.ControlError("kind must be file or folder, settings a table", code="bad_frame")
    if not is_file_name(name):
        raise errors.ControlError("name must be a file name", code="bad_frame")
    token, again = wanted.get("token", ""), wanted.get("again", False)
    if not isinstance(token, str) or len(token) > TOKEN_LIMIT or not isinstance(again, bool):
        raise errors.ControlError(
            f"token must be a text of {TOKEN_LIMIT} characters at most, again true or false", code="bad_frame"
        )
    return Submission(name, kind, peer.uid, settings, files, token, again)


def received_files(connection: socket.socket, timeout_s: float) -> Generator[tuple[str, int], None, None]:
    """The files of a submission as they come; see :class:`Submission`."""
    count = 0
    while True:
        try:
            send_frame(connection, {"next": True})
        except OSError as error:
            raise errors.ControlError(f"the client went away: {error}", code="handover_broken") from error
        frame, descriptors = receive_frame(connection, timeout_s)
        try:
            if frame.get("end") is True:
                return
            names = _checked_names(frame.get("files"), descriptors)
            count += len(names)
            if count > _FILES_LIMIT:
                raise errors.ControlError(f"more than {_FILES_LIMIT} files in one submission", code="too_many_files")
            yield from zip(names, descriptors, strict=True)
        finally:
            close_all(descriptors)


def _checked_names(names: Any, descriptors: list[int]) -> list[str]:
    if not isinstance(names, list) or not 0 < len(names) <= BATCH or len(names) != len(descriptors):
        raise errors.ControlError("names and descriptors do not match", code="bad_frame")
    for name, descriptor in zip(names, descriptors, strict=True):
        if not is_path_in_folder(name):
            raise errors.ControlError("a file's name is no path in a folder", code="bad_frame")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise errors.ControlError(f"{name} is not a regular file", code="not_a_file")
    return names


def is_path_in_folder(name: Any) -> TypeGuard[str]:
    """The name of a file below a folder, such as ``a/b.jsonl``."""
    return isinstance(name, str) and all(map(is_file_name, parts := name.split("/"))) and len(parts) <= _DEPTH


def is_file_name(name: Any) -> TypeGuard[str]:
    """One path component that the filesystem can hold."""
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
        return False
    try:
        return len(os.fsencode(name)) <= _NAME_LIMIT_BYTES
    except UnicodeEncodeError:
        return False
