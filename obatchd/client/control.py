"""The client of the control API, for ``obatchctl``: synchronous, standard library only, quick to import."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, urlencode

from obatchd import errors
from obatchd.client import handover
from obatchd.client.runtime import CONTROL_SOCKET, SUBMIT_SOCKET, daemon_down, permission_denied, read_record

Document = dict[str, Any]

_TIMEOUT_S = 60.0
_LONG_TIMEOUT_S = 3600.0  # the daemon copies and flushes, or writes files of the store anew, before it answers
_BY_STATUS: dict[int, type[errors.ObatchError]] = {
    404: errors.NotFoundError,
    401: errors.ForbiddenError,
    403: errors.ForbiddenError,
    400: errors.ConfigError,
    422: errors.DropRefused,
}


class ControlClient:
    """Talks to the daemon of one spool.

    Every method raises DaemonDownError when none answers, and another ControlError for what is refused or unreadable.
    """

    def __init__(self, spool: Path) -> None:
        self._spool = spool

    def get(self, path: str, *names: str, **query: str | float | None) -> Document:
        """``GET /v1/<path>``, with each of ``names`` as one segment behind it, and the given values of ``query``."""
        return self._call("GET", target(path, names, query))

    def post(self, path: str, *names: str, body: Document | None = None, **query: str | float | None) -> Document:
        """``POST /v1/<path>``, likewise, with a JSON body where there is one."""
        return self._call("POST", target(path, names, query), body)

    def delete(self, path: str, *names: str) -> Document:
        """``DELETE /v1/<path>``, likewise."""
        return self._call("DELETE", target(path, names, {}), timeout_s=_LONG_TIMEOUT_S)

    def remove(self, job_ids: Sequence[str]) -> Document:
        """Erase jobs that are over."""
        with self._asked("POST", "jobs/remove", {"jobs": list(job_ids)}, _LONG_TIMEOUT_S) as response:
            return document_in(response.read())

    def pull(self, model: str) -> Iterator[Document]:
        """Pull a model; yields its progress."""
        return self._lines("POST", "models/pull", {"model": model}, None)

    def server_log(self, server_id: str, lines: int, *, follow: bool) -> Iterator[Document]:
        """The output of a managed server, a line at a time."""
        path = target("servers", (server_id, "log"), {"lines": lines, "follow": int(follow)})
        return self._lines("GET", path, None, None if follow else _TIMEOUT_S)

    def _lines(self, method: str, path: str, body: Document | None, timeout_s: float | None) -> Iterator[Document]:
        """An answer that is one document a line."""
        with self._asked(method, path, body, timeout_s) as response:
            for line in response:
                document = document_in(line)
                if "error" in document:
                    raised(document, 0)
                yield document

    def submit(self, path: Path, settings: Document, token: str = "", *, again: bool = False) -> Document:
        """Hand a file or folder over; returns the job once the daemon has it durably.

        Where the connection is lost (``handover_broken``) nobody knows what became of it. With a ``token`` of its own
        the same may be handed over ``again``: that gives the job of the first time, where it was accepted.
        """
        kind = "folder" if path.is_dir() else "file"
        files = folder_files(path) if kind == "folder" else iter([(path.name, path)])
        with self._connect(SUBMIT_SOCKET, _LONG_TIMEOUT_S) as connection:
            name = os.path.basename(os.path.abspath(path))  # of a link, its own; of "." the directory's
            wanted: Document = {"name": name, "kind": kind, "settings": settings}
            wanted |= {"token": token, "again": again} if token else {}
            try:
                handover.send_frame(connection, {"submit": wanted})
                return self._hand_over(connection, files)
            except OSError as error:
                # The daemon may have said why before it closed the connection.
                answer, _ = handover.receive_frame(connection, 1.0)
                if "error" in answer:
                    raised(answer, 0)
                ended = f"the daemon ended the connection: {error}"
                raise errors.ControlError(ended, code="handover_broken") from error

    @staticmethod
    def _hand_over(connection: socket.socket, files: Iterator[tuple[str, Path]]) -> Document:
        while True:
            answer, _ = handover.receive_frame(connection, _LONG_TIMEOUT_S)
            if "job" in answer:
                job: Document = answer["job"]
                return job
            if "error" in answer:
                raised(answer, 0)
            batch = list(islice(files, handover.BATCH))
            descriptors: list[int] = []
            try:
                for _, file in batch:
                    descriptors.append(_open(file))
                names = [name for name, _ in batch]
                handover.send_frame(connection, {"files": names} if names else {"end": True}, descriptors)
            finally:
                handover.close_all(descriptors)

    def _call(self, method: str, path: str, body: Document | None = None, *, timeout_s: float = _TIMEOUT_S) -> Document:
        with self._asked(method, path, body, timeout_s) as response:
            return document_in(response.read())

    @contextlib.contextmanager
    def _asked(
        self, method: str, path: str, body: Document | None, timeout_s: float | None
    ) -> Iterator[http.client.HTTPResponse]:
        """A good answer, whose body is not read yet; an error is raised."""
        request = http.client.HTTPConnection("localhost")
        sent = None if body is None else json.dumps(body)
        with self._connect(CONTROL_SOCKET, timeout_s) as request.sock:
            try:
                request.request(method, "/v1/" + path, sent, {"Content-Type": "application/json"} if sent else {})
                with request.getresponse() as response:
                    if response.status >= 400:
                        raised(document_in(response.read()), response.status)
                    yield response  # which is read here, too: a daemon that is killed breaks off in the middle
            except (http.client.HTTPException, OSError) as error:
                late = isinstance(error, TimeoutError)
                what = f"does not answer within {timeout_s:.0f} s" if late else f"broke off: {error}"
                raise errors.DaemonDownError(f"obatchd on {self._spool} {what}. Look at its log.") from None

    def _connect(self, name: str, timeout_s: float | None) -> socket.socket:
        directory = read_record(self._spool).runtime_dir
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(directory / name))
        except OSError as error:  # no socket, or nobody behind it: the daemon was killed
            connection.close()
            down = permission_denied if isinstance(error, PermissionError) else daemon_down
            raise down(self._spool) from None
        return connection


def target(path: str, names: Iterable[str], query: Mapping[str, str | float | None]) -> str:
    """A path with names behind it, and what is given of a query."""
    given = {name: value for name, value in query.items() if value is not None}
    whole = "/".join([path, *(quote(name, safe="", errors="surrogateescape") for name in names)])
    return f"{whole}?{urlencode(given)}" if given else whole


def folder_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of a folder and of those in it, by their paths in it and in name order, without hidden ones."""

    def unreadable(error: OSError) -> NoReturn:
        raise errors.ControlError(f"{error.filename} cannot be read: {error.strerror}", code="unreadable") from None

    found: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if (path := Path(place, name)).is_symlink():
                raise errors.ControlError(f"{path} is a link to a folder; put the folder itself there", code="link")
        found += [Path(place, name) for name in files if not name.startswith(".")]
    return ((str(file.relative_to(folder)), file) for file in sorted(found))


def _open(file: Path) -> int:
    try:
        # O_NONBLOCK, because opening a named pipe would wait for a writer.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise errors.ControlError(f"{file} cannot be read: {error.strerror}", code="unreadable") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise errors.ControlError(f"{file} is not a regular file", code="not_a_file")
    return descriptor


def document_in(body: bytes) -> Document:
    """The object in an answer; raises ControlError where there is none."""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise errors.ControlError("the daemon's answer is not JSON; obatchctl and obatchd must have the same version")
    return document


def raised(document: Document, status: int) -> NoReturn:
    """Raise what an answer with this status says."""
    error = document.get("error", {})
    kind = _BY_STATUS.get(status, errors.ControlError)
    raise kind(str(error.get("message", f"the daemon answered {status}")), code=str(error.get("code", "control")))
